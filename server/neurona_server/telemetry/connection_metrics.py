"""The series of connections and of rejected calls.

They are those of calls that do not reach a model.
"""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

from neurona_server.errors import (
    BuffersFullError,
    PermissionDeniedError,
    QueueFullError,
    TooLargeError,
    UnauthenticatedError,
)

REJECTION_REASONS = {
    UnauthenticatedError: "unauthenticated",
    PermissionDeniedError: "permission",
    TooLargeError: "too_large",
    QueueFullError: "too_many",
    BuffersFullError: "buffers_full",
}
"""Errors that reject a call before it reaches a model, and their value of the label `reason`."""

CLOSE_REASONS = ("buffers_full", "per_address", "never_called")
"""Values of the label `reason` of closed connections."""


class ConnectionState(Protocol):
    """What the metrics say about the connections of a transport."""

    @property
    def connections(self) -> int: ...

    @property
    def buffered_bytes(self) -> int: ...


class ConnectionMetrics:
    """The series, in the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rejected_calls = Counter(
            "neurona_rejected_calls",
            "Calls rejected before they reached a model, by reason.",
            ("reason",),
            registry=registry,
        )
        for reason in REJECTION_REASONS.values():
            self.rejected_calls.labels(reason)
        self.closed_connections = Counter(
            "neurona_closed_connections",
            "Connections closed because they took too much, or there were too many, by reason.",
            ("reason",),
            registry=registry,
        )
        for reason in CLOSE_REASONS:
            self.closed_connections.labels(reason)
        self._connections = Gauge("neurona_connections", "Open connections.", registry=registry)
        self._buffered_bytes = Gauge(
            "neurona_buffered_bytes",
            "Bytes of large or slow messages that are being received, wait or are being sent.",
            registry=registry,
        )

    def watch(self, connections: ConnectionState) -> None:
        """Report the connections of the transport whenever the metrics are read."""
        self._connections.set_function(lambda: connections.connections)
        self._buffered_bytes.set_function(lambda: connections.buffered_bytes)
