"""neurona: the command line of the client.

The modules of subcommands import only what is quick at their top, and the rest when they run: a
health check every few seconds pays for nothing that it does not use.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from neurona_client.cli import bench, describe, doctor, health, models, predict, watch
from neurona_client.cli.arguments import FAILED, CommandError
from neurona_client.cli.terminal import discard_output, prepare_streams, printable
from neurona_client.errors import NeuronaError

COMMANDS = (health, models, describe, predict, watch, bench, doctor)

INTERRUPTED = 130  # 128 + SIGINT, as shells report a command that a signal ended
BROKEN_PIPE = 141  # 128 + SIGPIPE

EPILOG = """\
exit status:
  0    success
  1    failed, or not serving; the reason is on standard error
  2    invalid command line
  130  interrupted with Ctrl-C
  141  standard output was closed by its reader

environment (flags take precedence):
  NEURONA_ADDRESS             --address
  NEURONA_TOKEN               bearer token
  NEURONA_TOKEN_FILE          --token-file
  NEURONA_METRICS_ADDRESS     --metrics-address of watch
  NEURONA_TLS=true            --tls
  NEURONA_CA                  --ca
  NEURONA_CLIENT_CERTIFICATE  --certificate
  NEURONA_CLIENT_KEY          --key
  NEURONA_SERVER_NAME         --server-name

neurona COMMAND --help shows examples.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: without the program's name; None: those of this process.

    Raises:
        SystemExit: after --help, and for an invalid command line.
    """
    # What gRPC's C core logs about a connection is in the error already.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    prepare_streams()
    try:
        try:
            options = _parse(sys.argv[1:] if arguments is None else arguments)
            status: int = options.run(options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader needs no more
        discard_output()
        return BROKEN_PIPE
    except Exception as error:
        return _report(error)
    return status


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser()
    for argument in arguments:
        if argument.startswith("--") and argument.endswith("=--"):
            parser.error(f"invalid argument {argument} (argparse would take it for no value)")
    return parser.parse_args(arguments)


def _report(error: Exception) -> int:
    """Print why the command failed, in one line, and return its exit status."""
    reason = str(error)
    if isinstance(error, OSError) and not isinstance(error, NeuronaError):
        discard_output()  # perhaps it is what failed, as on a full disk, and would again at exit
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or reason}"
    elif not isinstance(error, CommandError | NeuronaError):  # a bug
        if sys.flags.dev_mode:
            traceback.print_exc()
        reason = f"internal error: {type(error).__name__}: {reason} (PYTHONDEVMODE=1 shows where)"
    print(f"neurona: {printable(reason)}", file=sys.stderr)
    return error.status if isinstance(error, CommandError) else FAILED


def make_parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="neurona",
        description="Command line client of Neurona servers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
