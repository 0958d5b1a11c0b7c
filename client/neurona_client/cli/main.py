"""neurona: the command line of the client.

Modules of commands import only what is quick at their top, and the rest when they run: a health
check every few seconds pays for nothing that it does not use.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from neurona_client.cli import bench, describe, health, models, predict, watch
from neurona_client.cli.arguments import FAILED, CommandError
from neurona_client.cli.terminal import plain
from neurona_client.errors import NeuronaError

COMMANDS = (health, models, describe, predict, watch, bench)

INTERRUPTED = 130  # 128 and the signal's number, as for commands that a signal ends
SIGPIPE = 141

EPILOG = """\
exit status:
  0  done
  1  failed, or not serving; the reason is on the standard error
  2  the command line is wrong
  130  interrupted with Ctrl-C; 141: whoever read the output went away

environment (a flag wins):
  NEURONA_ADDRESS       --address
  NEURONA_TOKEN         a bearer token; NEURONA_TOKEN_FILE is --token-file
  NEURONA_METRICS_ADDRESS  --metrics-address of watch
  NEURONA_TLS=true      --tls
  NEURONA_CA            --ca
  NEURONA_CLIENT_CERTIFICATE, NEURONA_CLIENT_KEY, NEURONA_SERVER_NAME

neurona COMMAND --help has examples.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status. Exits as argparse does for --help and for a wrong command line."""
    # What gRPC's C core has to say about a connection is in the error already.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"neurona: {error}", file=sys.stderr)
        return error.status
    except NeuronaError as error:
        print(f"neurona: {plain(str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. What is still buffered must not be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGPIPE
    except OSError as error:
        print(f"neurona: {plain(str(error))}", file=sys.stderr)
        return FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neurona",
        description="Ask a Neurona server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        one = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser
