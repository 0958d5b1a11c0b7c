"""The options of listening: access, age of connections, size of messages, addresses."""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from neurona_server.address import UNIX
from neurona_server.errors import ConfigError
from neurona_server.resources import memory_limit, raise_descriptor_limit
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.transports.buffer_budget import MESSAGES, BufferBudget
from neurona_server.rpc.transports.connection_guard import (
    NO_CONNECTION_LIMITS,
    ConnectionGuard,
    ConnectionLimits,
)
from neurona_server.rpc.transports.read_progress import ReadProgress
from neurona_server.telemetry.trace import CallTracer

STOPPING = "the server is stopping; call again"
AGED = "the connection has reached its maximum age; call again"
"""The messages of UNAVAILABLE, for calls that a transport does not finish."""

STOPPING_ACCEPT_TIME = 0.05
"""Seconds in which a stopping transport still accepts calls, to reject them."""

MAX_PENDING = 1 << 16
"""Calls that have arrived and that the transport has not accepted yet. gRPC ends further ones with
CANCELLED, which callers do not retry; its default does so with some calls from 1000 on."""

AGE_JITTER = 0.1
"""The fraction by which gRPC varies the age of connections, so that not all end at once."""

NEVER = 2e6
"""Seconds, about three weeks: the largest time that fits into gRPC's milliseconds."""

MAX_DEFAULT_BUDGET = 2 << 30
"""Bytes of messages that are being received and answered, on a machine with much memory."""

MAX_DEFAULT_CONNECTIONS = 1 << 14
"""Connections of an address unless an option says otherwise. Each takes some 30 KiB."""

RESERVED_DESCRIPTORS = 256
"""Descriptors that no connection takes: for models, metrics, logs and gRPC itself."""

MAX_READ_BYTES = 256 << 10
"""Bytes that gRPC reads from a connection at once. It has a buffer of that size for each
connection that sends much; its default is 4 MiB."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds in which a connection has to finish the handshakes of TLS and HTTP/2."""

MAX_COMPRESSED_BYTES = 256 << 10
"""Bytes of a response up to which it is compressed. gRPC compresses while it holds the
interpreter's lock: 256 KiB take some milliseconds."""

_LOW_COMPRESSION = 1  # of gRPC's three levels: the least CPU time


@dataclass(frozen=True)
class ListenerOptions:
    """The options of a transport. Times are in seconds."""

    max_message_bytes: int = 64 << 20
    """The size of a message in either direction; larger ones end with RESOURCE_EXHAUSTED."""
    certificates: Certificates | None = None
    """For TLS; without them connections are in plain text."""
    access: Access | None = None
    """The rights of tokens; without them everybody may do everything."""
    max_connection_age: float = 300.0
    """The time after which a connection is closed gracefully (GOAWAY), so that callers spread over
    the replicas; 0: never. Its calls are answered first."""
    max_connection_age_grace: float = 300.0
    """The time in which these calls must be answered."""
    keepalive: float = 30.0
    """The idle time after which a connection is pinged: load balancers drop silent connections,
    often after 60 s. A connection that does not answer is closed. 0: never."""
    keepalive_timeout: float = 20.0
    min_ping_interval: float = 5.0
    """Connections of callers that ping more often, with or without calls, are closed."""
    max_streams: int = 4096
    """Concurrent calls of one connection; gRPC's clients hold back further ones."""
    max_buffered_bytes: int = 0
    """The bytes of messages that are being received and answered; 0: as `buffer_limit`."""
    connection_limits: ConnectionLimits = NO_CONNECTION_LIMITS
    """How many connections may be open."""
    on_close: Callable[[str], None] = lambda _: None
    """Called with the reason for each connection that the transport closes because of a limit."""
    max_metadata_bytes: int = 16 << 10
    """The size of a call's metadata; larger ones end with RESOURCE_EXHAUSTED."""
    compress_responses: bool = False
    """Use gzip for callers that accept it. Requests may always be compressed."""
    on_reject: Callable[[Exception], None] = lambda _: None
    """Called with the error of each call that the transport rejects itself."""
    reuse_port: bool = False
    """Let several processes listen on the same port and share its connections."""
    tracer: CallTracer | None = None
    """Traces the calls of methods that need a right; without it no call is traced."""
    progress: ReadProgress = field(default_factory=ReadProgress)
    """Where the transport writes how far it has read."""

    @property
    def max_stream_age(self) -> float:
        """Seconds after which a stream is drained; inf if connections live for ever.

        That is before the grace of its connection ends, which may have begun as soon as the
        stream.
        """
        if not self.max_connection_age:
            return float("inf")
        return (1 - AGE_JITTER) * self.max_connection_age_grace

    def make_budget(self) -> BufferBudget:
        """Make the budget of messages that are being received and answered."""
        limit = self.max_buffered_bytes or buffer_limit(0, self.max_message_bytes)
        return BufferBudget(limit, self.max_message_bytes)

    def make_guard(self, budget: BufferBudget) -> ConnectionGuard:
        """Make the guard of the transport's connections."""
        return ConnectionGuard(
            *(budget, self.max_message_bytes, self.connection_limits),
            *(self.on_reject, self.on_close),
        )

    def arguments(self) -> list[tuple[str, int]]:
        """Return the options as gRPC's channel arguments, in its units."""
        arguments = {
            "grpc.max_receive_message_length": self.max_message_bytes,
            # The transports check the size themselves, with a better message.
            "grpc.max_send_message_length": -1,
            "grpc.max_concurrent_streams": self.max_streams,
            "grpc.server.max_pending_requests": MAX_PENDING,
            "grpc.server.max_pending_requests_hard_limit": MAX_PENDING,
            # Between the two limits of metadata gRPC rejects calls at random.
            "grpc.max_metadata_size": self.max_metadata_bytes,
            "grpc.absolute_max_metadata_size": self.max_metadata_bytes,
            "grpc.keepalive_time_ms": _milliseconds(self.keepalive or NEVER),
            "grpc.keepalive_timeout_ms": _milliseconds(self.keepalive_timeout),
            "grpc.http2.ping_timeout_ms": _milliseconds(self.keepalive_timeout),
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.max_pings_without_data": 0,
            "grpc.http2.min_ping_interval_without_data_ms": _milliseconds(self.min_ping_interval),
            "grpc.server_handshake_timeout_ms": _milliseconds(HANDSHAKE_TIMEOUT),
            "grpc.http2.settings_timeout": _milliseconds(HANDSHAKE_TIMEOUT),
            "grpc.experimental.tcp_max_read_chunk_size": MAX_READ_BYTES,
            # gRPC's default is on: a second server on the same port would take half of the calls.
            "grpc.so_reuseport": int(self.reuse_port),
        }
        if self.max_connection_age:
            arguments["grpc.max_connection_age_ms"] = _milliseconds(self.max_connection_age)
            grace = _milliseconds(self.max_connection_age_grace)
            arguments["grpc.max_connection_age_grace_ms"] = grace
        if self.connection_limits.total:
            arguments["grpc.max_allowed_incoming_connections"] = self.connection_limits.total
        if self.compress_responses:
            # A level, not an algorithm: gRPC would use that for callers that do not accept it too.
            arguments["grpc.default_compression_level"] = _LOW_COMPRESSION
        return list(arguments.items())


def buffer_limit(total: int, max_message_bytes: int, processes: int = 1) -> int:
    """Return the bytes that each of several processes may buffer, of `total` bytes.

    If `total` is 0, they are a quarter of the memory, up to MAX_DEFAULT_BUDGET in each process.

    Raises:
        ConfigError: A few messages of the maximum size do not fit.
    """
    least = MESSAGES * max_message_bytes
    if not total:
        memory = memory_limit() or MAX_DEFAULT_BUDGET
        return max(least, min(memory // 4 // processes, MAX_DEFAULT_BUDGET))
    if total // processes < least:
        raise ConfigError(
            f"invalid max_buffered_bytes: {total} (expected at least {least * processes}, "
            f"{MESSAGES} times max_message_bytes for each process)"
        )
    return total // processes


def connection_limits(total: int, per_address: int, addresses: int) -> ConnectionLimits:
    """Return the limits for a server with a number of listening `addresses`.

    Each address gets as many connections as file descriptors allow if `total` is 0 or more.
    """
    wanted = total or MAX_DEFAULT_CONNECTIONS
    descriptors = raise_descriptor_limit(wanted * addresses + RESERVED_DESCRIPTORS)
    allowed = (descriptors - min(RESERVED_DESCRIPTORS, descriptors // 2)) // addresses
    return ConnectionLimits(max(1, min(wanted, allowed)), per_address)


def bind(add_port: Callable[[str], int], addresses: str) -> list[int]:
    """Make gRPC listen on each of the comma-separated `addresses`, by `add_port`.

    Returns:
        The port of each address.

    Raises:
        ConfigError: An address is not available.
    """
    ports = []
    for address in addresses.split(","):
        if address.startswith(UNIX):
            _check_unused(address.removeprefix(UNIX))
        try:
            ports.append(add_port(address))
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {address}: {error} (expected another address)"
            ) from error
    return ports


def _check_unused(path: str) -> None:
    """Raise ConfigError if a server listens on this socket: gRPC would take it away from it."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return  # gRPC itself fails if the file is not a socket
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return  # left behind by a process that has ended
    raise ConfigError(f"cannot listen on {UNIX}{path}: another server uses the socket")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
