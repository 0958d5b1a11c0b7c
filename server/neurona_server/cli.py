"""The command neurona-serve, also `python -m neurona_server.cli`.

It reads the options, starts the server or its supervisor, and waits for a signal to stop. The file
is alone because only the entry point of the package imports it.
"""

import os
import sys
from collections.abc import Sequence

try:
    from neurona_server.app import App, exit_status, log
    from neurona_server.check_command import check
    from neurona_server.config import sources
    from neurona_server.errors import ConfigError, LoadError
    from neurona_server.models.load_check.load_marks import withdraw_marks
    from neurona_server.processes.signals import StopSignals
    from neurona_server.processes.worker_handle import python_command
    from neurona_server.resources import bound_heap_fragments
    from neurona_server.rpc.security.tokens import hash_token
    from neurona_server.start_text import print_start_text
    from neurona_server.telemetry import logs
except ImportError as error:
    if (error.name or "neurona").startswith("neurona"):
        raise
    if not isinstance(error, ModuleNotFoundError):
        sys.exit(f"neurona-serve: package cannot be imported: {error.name}: {error}")
    sys.exit(  # installed without extras, as a client
        f"neurona-serve: package not installed: {error.name} (expected the packages of "
        "'neurona[server]', or of 'neurona[serving]' and an ONNX Runtime)"
    )


def main() -> int:
    """Run the command.

    Returns:
        Its exit status.
    """
    if sys.argv[1:] == ["--hash-token"]:
        return hash_token()
    try:
        config = sources.load(sys.argv[1:], os.environ)
        if sources.CHECK in sys.argv[1:]:
            sources.check_processes(config)
            return check(config)
        if config.processes > 1 or config.supervise:
            sources.check_processes(config)
            become_supervisor(sys.argv[1:])
        bound_heap_fragments()
        logs.set_up(config.log_format, config.log_level)
        signals = StopSignals()
        signals.before_exit = withdraw_marks
        app = App(config)
        app.start()
        signals.mark_serving()
        print_start_text(app.start_text(), config.log_format)
    except (ConfigError, LoadError) as error:
        logs.report_fatal(error)
        return 1
    except Exception as error:
        logs.report_unexpected(error)
        return 1
    log.info("received %s", signals.wait().name)
    return exit_status(app.stop())


def become_supervisor(arguments: Sequence[str]) -> None:
    """Replace this program by the supervisor, and do not return.

    That drops everything imported so far: the process that outlives all others is small.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed before the start
            stream.flush()
    command = [*python_command("processes.supervisor"), *arguments]
    os.execv(sys.executable, command)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
