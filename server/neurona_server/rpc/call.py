"""The contract between transports and services: calls, streams, methods, and their identity.

A transport makes a `Call` or a `StreamCall` of each incoming call and looks the service's function
up by path; the service ends the call through it, from any thread. A call's request id is determined
only when it is needed, which is when the call fails: successful calls pay nothing for it. It is the
caller's own (`x-request-id`), else the trace id, else a random one.
"""

import math
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from neurona_server.batching.batcher import Deferred
from neurona_server.errors import (
    CancelledError,
    DeadlineExceededError,
    NeuronaError,
    TooLargeError,
)
from neurona_server.rpc.security.access import Grant, Right
from neurona_server.telemetry.trace import CallTrace, Metadata, Trace, parent_of

REQUEST_ID = "x-request-id"
"""The caller's metadata key of a request id, and the trailer of a call that failed."""

MAX_REQUEST_ID = 128
"""Characters of a caller's request id; longer ones are ignored."""

CLOCK_TOLERANCE = 0.05
"""Seconds by which a caller may notice the deadline before the server does: the server's deadline
counts from the arrival of the request."""

SMALL_MESSAGE_BYTES = 16 << 10
"""Maximum bytes of a message that names things and has no tensors."""

ANY_MESSAGE_BYTES = sys.maxsize
"""No limit but the transport's: for messages with tensors, whose service limits their fields."""

_PRINTABLE = re.compile(rf"[\x21-\x7e](?:[\x20-\x7e]{{0,{MAX_REQUEST_ID - 2}}}[\x21-\x7e])?")
_request_id_lock = threading.Lock()


class RequestIdentity(Protocol):
    """Identifies a request in logs and traces."""

    @property
    def request_id(self) -> str: ...

    @property
    def trace_id(self) -> str:
        """The id of the server's trace, else of the caller's, else ""."""


class Call(RequestIdentity, Protocol):
    """One unary call. Exactly one of `reply` and `fail` ends it, from any thread.

    Both do nothing once the caller has cancelled or disconnected.
    """

    @property
    def trace(self) -> CallTrace | None:
        """The trace of the call, None if it is not traced."""

    @property
    def request(self) -> bytes:
        """The serialized request message."""

    @property
    def deadline(self) -> float:
        """The deadline in seconds of the monotonic clock, inf if the caller set none."""

    @property
    def arrived(self) -> float:
        """When the request could have been read, in seconds of the monotonic clock.

        Under load the transport's thread reads it later.
        """

    @property
    def grant(self) -> Grant:
        """The caller's rights; the transport has checked the right to call this method."""

    def reply(self, response: bytes) -> None:
        """End the call with the serialized response message."""

    def fail(self, error: Exception) -> None:
        """End the call with the status of `error` (`rpc.status`)."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Set the `callback` for a caller that leaves before the call has ended.

        It is called in the transport's thread when the caller cancels, disconnects or reaches its
        deadline.
        """

    def defer(self, callback: Deferred) -> None:
        """Call `callback` after the transport's thread has processed all events that are ready.

        It is called in that thread, once, however many calls defer it until then, and again while
        it returns True. Only the transport's thread may defer.
        """


class StreamCall(RequestIdentity, Protocol):
    """One streaming call, as its `Stream` sees it."""

    @property
    def trace(self) -> CallTrace | None:
        """See `Call.trace`."""

    @property
    def deadline(self) -> float:
        """See `Call.deadline`."""

    @property
    def arrived(self) -> float:
        """See `Call.arrived`: of the latest message."""

    @property
    def grant(self) -> Grant:
        """See `Call.grant`."""

    def header(self, key: str) -> str:
        """Return a header of the caller, "" if it is absent; `key` is in lower case."""

    def fail(self, error: Exception) -> None:
        """End the call with the status of `error`, once the message in progress is sent.

        Only the transport's thread may call this.
        """

    def wake(self) -> None:
        """Make the transport take messages from the stream again. Thread-safe."""

    def defer(self, callback: Deferred) -> None:
        """See `Call.defer`."""


class Stream(Protocol):
    """One streaming call, as its transport sees it. All methods run in the transport's thread.

    Messages are pulled: the transport takes the next one after it has written the last one. So a
    message can carry all responses that arrived meanwhile, and a slow reader slows its own stream
    down: while `congested`, the transport reads no further requests.
    """

    def receive(self, message: bytes) -> None:
        """Process a message of the caller. An exception ends the call."""

    def half_close(self) -> None:
        """Note that the caller has sent its last message."""

    def take_message(self) -> bytes | None:
        """Return the next message to send; None if there is none now."""

    @property
    def congested(self) -> bool:
        """Whether the transport has to pause reading."""

    @property
    def buffered_bytes(self) -> int:
        """The bytes of responses that are expected or not yet taken."""

    @property
    def finished(self) -> bool:
        """Whether all messages were taken and none will follow, so that the call ends."""

    def drain(self) -> None:
        """Finish once the received requests have responses, because the server is stopping."""

    def cancel(self) -> None:
        """Handle the end of the call, also when the caller has cancelled or disconnected."""


@dataclass(frozen=True)
class Unary:
    """A unary method: `start` is called with each call."""

    start: Callable[[Call], None]
    right: Right | None = Right.CONTROL
    """The right that a caller needs where there are tokens; None: everybody may call it. The
    default is the strictest, for services that do not set it."""
    max_message_bytes: int = SMALL_MESSAGE_BYTES
    """Bytes of a request message; larger ones are rejected before the service sees them. Parsing
    takes many times the memory of a message of small fields."""
    max_lag: Callable[[], float] = lambda: math.inf
    """Returns the seconds that a call may wait unread. One that has waited for longer is refused
    before its message is read: no model would admit it."""


@dataclass(frozen=True)
class Streaming:
    """A method that streams in either direction or both.

    A single message and a half-close are a stream too. `start` makes the stream of each call.
    """

    start: Callable[[StreamCall], Stream]
    right: Right | None = Right.CONTROL
    """See `Unary.right`."""
    max_message_bytes: int = SMALL_MESSAGE_BYTES
    """See `Unary.max_message_bytes`."""


Methods = Mapping[str, Unary | Streaming]
"""By path: "/neurona.v1.Prediction/Predict"."""


def too_large_error(message: bytes, method: Unary | Streaming) -> TooLargeError:
    """Return the error of a request message that is larger than its method takes."""
    return TooLargeError(
        f"the message has {len(message)} bytes (expected at most {method.max_message_bytes} for "
        "this method)"
    )


class BaseCall:
    """The identity of a call, from its metadata and its trace."""

    __slots__ = ("_metadata", "_request_id", "arrived", "trace")

    def __init__(
        self, metadata: Metadata | Callable[[], Metadata | None], trace: CallTrace | None
    ) -> None:
        self._metadata = metadata
        self.trace = trace
        self.arrived = time.monotonic()
        self._request_id = ""  # until it is needed

    @property
    def request_id(self) -> str:
        with _request_id_lock:  # threads that need it at the same time get the same one
            if not self._request_id:
                self._request_id = request_id_of(self._read_metadata(), self.trace)
            return self._request_id

    @property
    def trace_id(self) -> str:
        own = self.trace.trace_id if self.trace is not None else ""
        return own or _trace_id_of(self._read_metadata())

    def _read_metadata(self) -> Metadata:
        return (self._metadata() if callable(self._metadata) else self._metadata) or ()


def request_id_of(metadata: Metadata, trace: Trace | None = None) -> str:
    """Return the caller's request id, else the trace id, else a random id.

    The caller's id has to be printable ASCII of at most MAX_REQUEST_ID characters.
    """
    for key, value in metadata:
        if key == REQUEST_ID:
            if isinstance(value, str) and _PRINTABLE.fullmatch(value):
                return value
            break
    trace_id = trace.trace_id if trace is not None else ""
    # A random id is no secret, and the system's random numbers would cost a system call.
    return trace_id or _trace_id_of(metadata) or f"{random.getrandbits(128):032x}"


def log_fields_of(identity: RequestIdentity | None) -> Mapping[str, str]:
    """Return the fields of a log record that identify the request."""
    if identity is None:
        return {}
    fields = {"request_id": identity.request_id, "trace_id": identity.trace_id}
    return {name: value for name, value in fields.items() if value}


def cancellation_error(deadline: float = math.inf) -> NeuronaError:
    """Return the error of a cancelled request, which says whether its deadline was the reason."""
    if time.monotonic() >= deadline - CLOCK_TOLERANCE:
        return DeadlineExceededError("deadline exceeded before the response was ready")
    return CancelledError("the caller cancelled the request")


def _trace_id_of(metadata: Metadata) -> str:
    parent = parent_of(metadata)
    return parent[0] if parent else ""
