"""One of several server processes that share a port.

    python -m neurona_server.processes.worker CHANNEL NUMBER PROCESSES ADDRESSES [OPTIONS]

It is an ordinary server, except that a supervisor starts it, requests its metrics and stops it.
"""

import logging
import os
import sys
import threading
from collections.abc import Sequence

from msgspec.structs import replace

from neurona_server.app import App, exit_status
from neurona_server.config import sources
from neurona_server.config.options import Config
from neurona_server.config.parsers import Addresses
from neurona_server.errors import ConfigError, LoadError
from neurona_server.models.load_check.load_marks import withdraw_marks
from neurona_server.processes.channel import Channel, Command, MetricsReport, WorkerState
from neurona_server.processes.signals import StopSignals
from neurona_server.processes.snapshot import take_snapshot
from neurona_server.telemetry import logs

log = logging.getLogger("neurona_server.processes.worker")


def main() -> int:
    descriptor, number, processes, addresses = sys.argv[1:5]
    channel = Channel.inherited(int(descriptor))
    signals = StopSignals()
    signals.before_exit = withdraw_marks
    try:
        config = _load_config(sys.argv[5:], int(processes), addresses)
        logs.set_up(config.log_format, config.log_level, int(number))
        app = App(config, int(number))
        arguments = channel, app, signals
        threading.Thread(target=_obey, args=arguments, name="channel", daemon=True).start()
        app.start()
        signals.mark_serving()
    except (ConfigError, LoadError) as error:
        logs.report_fatal(error)
        return 1
    channel.send(WorkerState.READY)
    log.info("received %s", signals.wait().name)
    drained = app.stop()
    channel.send(MetricsReport(take_snapshot(app.registry), requested=False))
    return exit_status(drained)


def _load_config(options: Sequence[str], processes: int, addresses: str) -> Config:
    """Load the options again, because their file may have changed since the supervisor started.

    The number of processes and the addresses stay the supervisor's.
    """
    logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # the supervisor has warned
    config = sources.load(options, os.environ)
    config = replace(config, processes=processes, address=Addresses(addresses))
    sources.check_processes(config)
    return config


def _obey(channel: Channel, app: App, signals: StopSignals) -> None:
    """Follow the supervisor's commands until the channel ends.

    If it ends without a command to stop, the supervisor has died: accepted requests still get
    responses. After such a command it does not wait any longer, and the process ends.
    """
    channel.send(WorkerState.CONNECTED)
    stopping = False
    while command := channel.receive():
        if command is Command.REPORT_METRICS:
            channel.send(MetricsReport(take_snapshot(app.registry), requested=True))
        elif command is Command.STOP:
            stopping = True
            signals.stop()
    if stopping:
        logs.flush()
        os._exit(1)
    signals.stop()


if __name__ == "__main__":
    sys.exit(main())
