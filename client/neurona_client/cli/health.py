"""neurona health: the health check of images and of scripts."""

import argparse
import sys
from typing import TYPE_CHECKING

from neurona_client.cli.arguments import (
    FAILED,
    Connection,
    add_connection_arguments,
    connection,
    content,
    seconds,
)

if TYPE_CHECKING:
    import grpc

NAME = "health"
SUMMARY = "ask whether the server, a service or a model serves"
DESCRIPTION = "Says SERVING and exits with 0, or says what is instead and exits with 1."
EXAMPLES = """\
examples:
  neurona health                      is the server ready?
  neurona health lenet5               has this model a version that serves?
  neurona health lenet5/2             is it version 2?
  neurona health gpu                  do the models that should run on the GPU?
  neurona health --address 10.0.0.7:8001,10.0.0.8:8001     all of them must serve
"""

PATH = "/grpc.health.v1.Health/Check"
SERVING = 1
STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service", nargs="?", default="", metavar="SERVICE", help="a name; none: the server itself"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=5.0,
        metavar="S",
        help="how long to wait for each answer (default: 5)",
    )
    add_connection_arguments(parser)


def run(options: argparse.Namespace) -> int:
    to = connection(options)
    serving = [_serves(to, address, options.service, options.timeout) for address in to.addresses]
    return 0 if all(serving) else FAILED


def _serves(to: Connection, address: str, service: str, timeout: float) -> bool:
    """Prints what the server says, or why there is no answer."""
    import grpc
    from google.protobuf.wrappers_pb2 import Int32Value, StringValue

    with _channel(to, address) as channel:
        # On the wire HealthCheckRequest is one text and HealthCheckResponse one enum, each of
        # number 1: just what these two are. A health.proto of our own would clash with
        # grpcio-health-checking's in a process that has both. No token is needed.
        check = channel.unary_unary(PATH, StringValue.SerializeToString, Int32Value.FromString)
        try:
            status = check(StringValue(value=service), timeout=timeout).value
        except grpc.RpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            print(f"neurona: {address}: {reason}", file=sys.stderr)
            return False
    state = STATES[status] if 0 <= status < len(STATES) else f"status {status}"
    print(state if len(to.addresses) == 1 else f"{address}: {state}")
    return status == SERVING


def _channel(to: Connection, address: str) -> "grpc.Channel":
    import grpc

    if not to.tls:
        return grpc.insecure_channel(address)
    options = [("grpc.ssl_target_name_override", to.server_name)] if to.server_name else []
    credentials = grpc.ssl_channel_credentials(*map(content, (to.ca, to.key, to.certificate)))
    return grpc.secure_channel(address, credentials, options)
