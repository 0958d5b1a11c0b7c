"""neurona health: the health check of container images and scripts.

It does not use `Client`, whose imports take longer than the check.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from neurona_client.cli.arguments import (
    FAILED,
    WRONG_USAGE,
    CommandError,
    Connection,
    add_connection_arguments,
    connection_from,
    positive_seconds,
    read_file,
)
from neurona_client.errors import explain_connect_error
from neurona_client.targets import bypasses_proxy

if TYPE_CHECKING:
    import grpc

NAME = "health"
SUMMARY = "check whether the server, a service or a model serves"
DESCRIPTION = "Prints SERVING and exits with 0, or prints the status or error and exits with 1."
EXAMPLES = """\
examples:
  neurona health                      is the server ready?
  neurona health lenet5               has this model a version that serves?
  neurona health lenet5/2             does version 2 of it serve?
  neurona health gpu                  do all models run on the GPU that should?
  neurona health --address 10.0.0.7:8001,10.0.0.8:8001     do all of these servers serve?
"""

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SERVING = 1
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "service",
        nargs="?",
        default="",
        metavar="SERVICE",
        help="model, MODEL/VERSION or gRPC service (default: the server)",
    )
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=5.0,
        metavar="S",
        help="seconds to wait for each response (default: 5)",
    )
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if not options.service.isprintable():
        name = options.service
        raise CommandError(f"invalid service {name!r} (expected printable text)", WRONG_USAGE)
    to = connection_from(options)
    serving = [_check(to, address, options.service, options.timeout) for address in to.addresses]
    return 0 if all(serving) else FAILED


def _check(to: Connection, address: str, service: str, timeout: float) -> bool:
    """Print the status of a server, or why there is none; return whether it is SERVING."""
    import grpc
    from google.protobuf.wrappers_pb2 import Int32Value, StringValue

    with _open_channel(to, address) as channel:
        # On the wire, HealthCheckRequest is one string and HealthCheckResponse one enum, each with
        # field number 1, exactly like these two. A health.proto of our own would clash with that of
        # grpcio-health-checking in a process that has both. The check needs no token.
        check = channel.unary_unary(
            HEALTH_CHECK, StringValue.SerializeToString, Int32Value.FromString
        )
        try:
            status = check(StringValue(value=service), timeout=timeout).value
        except grpc.RpcError as error:
            details = explain_connect_error(error.details() or "", uses_tls=to.tls)
            reason = f"{error.code().name}: {details}"
            print(f"neurona: {address}: {reason}", file=sys.stderr)
            return False
    text = STATUSES[status] if 0 <= status < len(STATUSES) else f"status {status}"
    print(text if len(to.addresses) == 1 else f"{address}: {text}")
    return status == SERVING


def _open_channel(to: Connection, address: str) -> "grpc.Channel":
    import grpc

    options: list[tuple[str, str | int]] = []
    if bypasses_proxy(address):
        options.append(("grpc.enable_http_proxy", 0))
    if not to.tls:
        return grpc.insecure_channel(address, options)
    if to.server_name:
        options.append(("grpc.ssl_target_name_override", to.server_name))
    credentials = grpc.ssl_channel_credentials(*map(read_file, (to.ca, to.key, to.certificate)))
    return grpc.secure_channel(address, credentials, options)
