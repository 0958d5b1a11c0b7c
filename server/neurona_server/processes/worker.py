"""One of several processes that serve on one port: a server like any other, but that a supervisor
starts it, asks it for its metrics and tells it to stop.

    python -m neurona_server.processes.worker CHANNEL NUMBER PROCESSES ADDRESSES [OPTIONS]
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

from neurona_server.app import App, leave
from neurona_server.config import sources
from neurona_server.config.options import Config
from neurona_server.config.sources import check_processes
from neurona_server.errors import ConfigError, LoadError
from neurona_server.processes import snapshot
from neurona_server.processes.channel import Channel
from neurona_server.processes.signals import StopSignals
from neurona_server.telemetry import logs

log = logging.getLogger("neurona_server.processes.worker")


def main() -> int:
    descriptor, number, processes, addresses = sys.argv[1:5]
    channel = Channel(socket.socket(fileno=int(descriptor)))
    signals = StopSignals()
    try:
        config = _config(sys.argv[5:], int(processes), addresses)
        logs.set_up(config.log_format, config.log_level, int(number))
        app = App(config, int(number))
        arguments = channel, app, signals
        threading.Thread(target=_obey, args=arguments, name="channel", daemon=True).start()
        app.start()
        signals.serving()
    except (ConfigError, LoadError) as error:
        logs.give_up(error)
        return 1
    channel.send("ready")
    log.info("%s", signals.wait().name)
    drained = app.stop()
    channel.send("last", _page(app))
    return leave(drained)


def _config(options: Sequence[str], processes: int, addresses: str) -> Config:
    """How many there are and where they listen is the supervisor's; all else is read anew, as a
    file of options may have changed since."""
    logging.getLogger(sources.__name__).setLevel(logging.ERROR)  # it has warned already
    config = replace(sources.load(options, os.environ), processes=processes, address=addresses)
    check_processes(config)
    return config


def _obey(channel: Channel, app: App, signals: StopSignals) -> None:
    """Until the supervisor is gone. If that comes before it has said a word, it has died: what
    was accepted is still answered; after that, it does not want to wait."""
    channel.send("hello")
    told = False
    while message := channel.receive():
        if message[0] == "page":
            channel.send("page", _page(app))
        elif message[0] == "stop":
            told = True
            signals.stop()
    if told:
        os._exit(1)
    signals.stop()


def _page(app: App) -> bytes:
    return snapshot.encode(snapshot.read(app.registry))


if __name__ == "__main__":
    sys.exit(main())
