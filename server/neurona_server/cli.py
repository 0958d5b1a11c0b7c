"""The command neurona-serve: parses options, starts the server or its supervisor, and waits."""

import os
import sys
from collections.abc import Sequence

from neurona_server.app import App, leave, log
from neurona_server.config import sources
from neurona_server.config.sources import check_processes
from neurona_server.errors import ConfigError, LoadError
from neurona_server.processes.signals import StopSignals
from neurona_server.processes.worker_handle import python
from neurona_server.rpc.security.tokens import hash_token
from neurona_server.telemetry import logs


def main() -> int:
    if sys.argv[1:] == ["--hash-token"]:
        return hash_token()
    try:
        config = sources.load(sys.argv[1:], os.environ)
        if config.processes > 1:
            check_processes(config)
            supervise(sys.argv[1:])
        logs.set_up(config.log_format, config.log_level)
        signals = StopSignals()
        app = App(config)
        app.start()
        signals.serving()
    except (ConfigError, LoadError) as error:
        logs.give_up(error)
        return 1
    log.info("%s", signals.wait().name)
    return leave(app.stop())


def supervise(arguments: Sequence[str]) -> None:
    """Becomes the supervisor: does not return. What was imported until here is left behind, so
    that the process which outlives all others is small, and owns nothing that can fail."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed before the start
            stream.flush()
    os.execv(sys.executable, [*python("processes.supervisor"), *arguments])  # noqa: S606
