"""How a transport listens: who may connect, how long connections live, how much they may send."""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass

from neurona_server.address import UNIX
from neurona_server.errors import ConfigError
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.security.tokens import Access
from neurona_server.telemetry.trace import CallTracer

_LOW = 1  # of gRPC's three: what costs least CPU time

NEVER = 2e6
"""Seconds: three weeks, and about what fits into gRPC's milliseconds."""

MAX_PENDING = 1 << 16
"""Calls that have arrived and that the transport has not yet taken. What exceeds it gRPC ends with
CANCELLED, which callers do not try again; by itself it would do so with some from 1000 on."""

JITTER = 0.1
"""gRPC itself lets a connection's age differ by so much, lest all of them end at once."""


@dataclass(frozen=True)
class ListenerOptions:
    max_message_bytes: int = 64 << 20
    """The largest message, of either direction; a larger one is refused, RESOURCE_EXHAUSTED."""
    certificates: Certificates | None = None
    """For TLS; without them connections are in plain text."""
    access: Access | None = None
    """Who may do what; without it everybody may do everything."""
    max_connection_age: float = 300.0
    """Seconds after which a connection is told to go, so that callers spread over the replicas
    there are; 0: never. Its calls are answered first."""
    max_connection_age_grace: float = 300.0
    """Seconds in which they must be answered."""
    keepalive: float = 30.0
    """Seconds of silence after which a connection is pinged: load balancers forget those that
    stay silent, often after 60 s and more. Without an answer it is given up. 0: never."""
    keepalive_timeout: float = 20.0
    min_ping_interval: float = 5.0
    """Callers who ping more often, with calls or without, are sent away."""
    max_streams: int = 4096
    """Calls of one connection at a time; gRPC's clients hold back what exceeds it."""
    max_metadata_bytes: int = 16 << 10
    """A call's metadata; more is refused, RESOURCE_EXHAUSTED."""
    compress_responses: bool = False
    """With gzip, for callers who understand it. Requests may always be compressed."""
    on_reject: Callable[[Exception], None] = lambda _: None
    """Called with the error of each call that the transport rejects itself."""
    reuse_port: bool = False
    """Several processes may listen on the same port and share its connections."""
    tracer: CallTracer | None = None
    """Of the calls that take a right; without it none is traced."""

    @property
    def max_stream_age(self) -> float:
        """Seconds after which a stream is drained: before the grace of its connection, which may
        have been told to go as soon as the stream had begun. inf if connections live for ever."""
        if not self.max_connection_age:
            return float("inf")
        return (1 - JITTER) * self.max_connection_age_grace

    def arguments(self) -> list[tuple[str, int]]:
        """gRPC's names for all that, in its units."""
        arguments = {
            "grpc.max_receive_message_length": self.max_message_bytes,
            # The transport looks itself, and says it better.
            "grpc.max_send_message_length": -1,
            "grpc.max_concurrent_streams": self.max_streams,
            "grpc.server.max_pending_requests": MAX_PENDING,
            "grpc.server.max_pending_requests_hard_limit": MAX_PENDING,
            # Between the first and the second it would be refused now and then, at random.
            "grpc.max_metadata_size": self.max_metadata_bytes,
            "grpc.absolute_max_metadata_size": self.max_metadata_bytes,
            "grpc.keepalive_time_ms": _milliseconds(self.keepalive or NEVER),
            "grpc.keepalive_timeout_ms": _milliseconds(self.keepalive_timeout),
            "grpc.http2.ping_timeout_ms": _milliseconds(self.keepalive_timeout),
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.max_pings_without_data": 0,
            "grpc.http2.min_ping_interval_without_data_ms": _milliseconds(self.min_ping_interval),
            # With it on, a second server on the same port takes half of the calls.
            "grpc.so_reuseport": int(self.reuse_port),
        }
        if self.max_connection_age:
            arguments["grpc.max_connection_age_ms"] = _milliseconds(self.max_connection_age)
            grace = _milliseconds(self.max_connection_age_grace)
            arguments["grpc.max_connection_age_grace_ms"] = grace
        if self.compress_responses:
            # A level, not an algorithm: that would be used for callers who do not understand it.
            arguments["grpc.default_compression_level"] = _LOW
        return list(arguments.items())


def bind(add: Callable[[str], int], addresses: str) -> int:
    """Has gRPC listen on each of the `addresses`, which commas part, through `add`.

    The port of the first. Raises ConfigError when one cannot be had.
    """
    ports = []
    for address in addresses.split(","):
        if address.startswith(UNIX):
            _check_free(address.removeprefix(UNIX))
        try:
            ports.append(add(address))
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error
    return ports[0]


def _check_free(path: str) -> None:
    """gRPC would take the socket away from a server that listens on it."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return  # what is not a socket gRPC leaves alone, and says so
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return  # left behind by one that is gone
    raise ConfigError(f"cannot listen on {UNIX}{path}: another server does")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
