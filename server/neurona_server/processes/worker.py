"""One of the server processes of a supervisor, which share a port.

    python -m neurona_server.processes.worker CHANNEL JOURNAL STACKS NUMBER PROCESSES ADDRESSES
        [OPTIONS]

It is an ordinary server, except that a supervisor starts it, requests its metrics and stops it.
CHANNEL, JOURNAL and STACKS are file descriptors that it inherits.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence

from msgspec.structs import replace

from neurona_server.app import App, Supervision, exit_status
from neurona_server.config import sources
from neurona_server.config.options import Config
from neurona_server.config.parsers import Addresses, OptionalWebAddress
from neurona_server.errors import ConfigError, LoadError
from neurona_server.models.load_check.load_marks import withdraw_marks
from neurona_server.models.repository.file_versions import FileVersions
from neurona_server.processes.channel import (
    Channel,
    Command,
    LoadedModels,
    MetricsReport,
    StartOptions,
    WorkerState,
)
from neurona_server.processes.signals import StopSignals
from neurona_server.processes.snapshot import take_snapshot
from neurona_server.resources import bound_heap_fragments
from neurona_server.start_text import print_start_text
from neurona_server.telemetry import logs
from neurona_server.telemetry.run_journal import RunJournal
from neurona_server.web import endpoints

log = logging.getLogger("neurona_server.processes.worker")

HEARTBEAT_SECONDS = 0.5
"""Time between two heartbeats."""

REPORT_SECONDS = 1.0
"""Least time between two reports of metrics: what a process that is killed has counted since the
last one is lost."""

REPORT_COST = 0.01
"""Share of the time that may be spent on these reports: with many models they are less frequent."""


def main() -> int:
    bound_heap_fragments()
    descriptor, journal_descriptor, stacks, number, processes, *addresses = sys.argv[1:8]
    channel = Channel.inherited(int(descriptor))
    journal = RunJournal(int(journal_descriptor), int(stacks))
    signals = StopSignals()
    signals.before_exit = withdraw_marks
    process = int(number) if int(processes) > 1 else None
    try:
        config = _load_config(sys.argv[8:], int(processes), *addresses)
        logs.set_up(config.log_format, config.log_level, process)
        journal.write_stacks_at_crash()  # not to standard error, as `logs` has it
        start = channel.receive()
        if not isinstance(start, StartOptions):
            return 1  # the supervisor has died
        supervision = Supervision(
            process,
            journal,
            start.quarantine,
            start.requested_models,
            start.served_versions,
            FileVersions(start.file_versions),
            request_replacement=lambda: channel.send(WorkerState.DEVICES_LOST),
        )
        app = App(config, supervision)
        reporter = Reporter(channel, app)
        for target, arguments in (
            (_obey, (channel, reporter, signals)),
            (_beat, (journal, app)),
            (reporter.run, ()),
        ):
            threading.Thread(
                target=target, args=arguments, name=target.__name__.strip("_"), daemon=True
            ).start()
        app.start()
        signals.mark_serving()
        if number == "0" and start.served_versions is None:  # the first of the first start
            print_start_text(app.start_text(), config.log_format)
    except (ConfigError, LoadError) as error:
        logs.report_fatal(error)
        return 1
    except Exception as error:
        logs.report_unexpected(error)
        return 1
    channel.send(WorkerState.READY)
    log.info("received %s", signals.wait().name)
    drained = app.stop()
    reporter.report()
    return exit_status(drained)


class Reporter:
    """Sends the metrics to the supervisor. Any thread may call it."""

    def __init__(self, channel: Channel, app: App) -> None:
        self._channel, self._app = channel, app
        # An older report after a newer one would look like counters that have fallen.
        self._reporting = threading.Lock()

    def report(self, *, requested: bool = False) -> None:
        """Send all metrics, because the supervisor has requested them or not."""
        with self._reporting:
            snapshot = take_snapshot(self._app.registry)
            self._channel.send(MetricsReport(snapshot, requested=requested))

    def run(self) -> None:
        """Send what must not be lost if this process is killed, again and again."""
        pause = REPORT_SECONDS
        sent = None
        while True:
            time.sleep(pause)
            if self._app.state() == endpoints.SERVING:
                models = LoadedModels(self._app.requested_models(), self._app.served_versions())
                if models != sent:
                    sent = models
                    self._channel.send(models)
            started = time.thread_time()
            self.report()
            pause = max(REPORT_SECONDS, (time.thread_time() - started) / REPORT_COST)


def _load_config(
    options: Sequence[str], processes: int, addresses: str, http_address: str
) -> Config:
    """Load the options again, because their file may have changed since the supervisor started.

    The number of processes and the addresses stay the supervisor's.
    """
    logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # the supervisor has warned
    config = sources.load(options, os.environ)
    config = replace(
        config,
        processes=processes,
        address=Addresses(addresses),
        http_address=OptionalWebAddress.parse(http_address),
    )
    sources.check_processes(config)
    return config


def _obey(channel: Channel, reporter: Reporter, signals: StopSignals) -> None:
    """Follow the supervisor's commands until the channel ends.

    If it ends without a command to stop, the supervisor has died: accepted requests still get
    responses. After such a command it does not wait any longer, and the process ends.
    """
    channel.send(WorkerState.CONNECTED)
    stopping = False
    while command := channel.receive():
        if command is Command.REPORT_METRICS:
            reporter.report(requested=True)
        elif command is Command.STOP:
            stopping = True
            signals.stop()
    if stopping:
        withdraw_marks()
        logs.flush()
        os._exit(1)
    signals.stop()


def _beat(journal: RunJournal, app: App) -> None:
    while True:
        journal.beat(app.stalled_seconds())
        time.sleep(HEARTBEAT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
