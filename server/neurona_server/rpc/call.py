"""What one call is known by: its id, and its trace if it has one.

An id is worked out when somebody asks for it, which is when a call fails: what is answered pays
nothing. It is the caller's own (`x-request-id`), else that of the trace, else it is made.
"""

import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from neurona_server.batching.batcher import Deferred
from neurona_server.errors import CancelledError, DeadlineExceededError, NeuronaError
from neurona_server.rpc.security.access import Grant, Right
from neurona_server.telemetry.trace import Trace

REQUEST_ID = "x-request-id"
"""The metadata, from the caller and, trailing, to one whose call failed."""

MOST = 128
"""Characters of an id."""

MOST_PARENT = 512
"""Characters of a traceparent: OpenTelemetry takes no more either."""

CLOCKS_APART = 0.05
"""Seconds by which a caller may have seen a deadline pass before we do: ours began to count
when the request had reached us."""

Metadata = Iterable[tuple[str, str | bytes]]

_PRINTABLE = re.compile(rf"[\x21-\x7e](?:[\x20-\x7e]{{0,{MOST - 2}}}[\x21-\x7e])?")
_TRACEPARENT = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-"  # version 0 has nothing behind its flags
    r"(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?"
)
_making = threading.Lock()


class CallTrace(Trace, Protocol):
    """Of one call, or of one request in a stream. Any thread may use it; it raises nothing."""

    def request(self, number: int) -> "CallTrace":
        """Of a request in the stream that this one is of; `number` tells it from others."""

    def answered(self, request: "Submission", error: Exception | None) -> None:
        """What its request to a model came to, before the caller has it."""

    def end(self, error: Exception | None = None) -> None:
        """The caller is told, or is gone. The first one counts."""


class CallTracer(Protocol):
    """Raises nothing."""

    def samples(self, metadata: Metadata) -> bool:
        """Whether a call with them is to be traced."""

    def call(self, path: str, metadata: Metadata) -> CallTrace:
        """Of one that is, and begins now."""


class RequestIdentity(Protocol):
    """What has an id."""

    @property
    def request_id(self) -> str: ...

    @property
    def trace_id(self) -> str:
        """Ours, else the caller's; "" if there is none."""


class Call(RequestIdentity, Protocol):
    """One unary call. Exactly one of `reply` and `fail` ends it; any thread may.

    After the caller has gone away both do nothing.
    """

    @property
    def trace(self) -> CallTrace | None:
        """None if it is not traced."""

    @property
    def request(self) -> bytes: ...

    @property
    def deadline(self) -> float:
        """A point in time on the monotonic clock; inf if the caller set none."""

    @property
    def grant(self) -> Grant:
        """What the caller may do; that it may call this method, the transport has seen to."""

    def reply(self, response: bytes) -> None: ...

    def fail(self, error: Exception) -> None:
        """Ends with the status of `error` (`rpc.status`)."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has `callback` called, in the transport's thread, when the caller cancels, disconnects
        or reaches its deadline before the call has ended."""

    def defer(self, callback: Deferred) -> None:
        """Has `callback` called in the transport's thread once it has read all that is there to
        read, however many calls defer it until then, and again while it returns True. For use
        in the transport's thread."""


class StreamCall(RequestIdentity, Protocol):
    """One streaming call, as its `Stream` sees it."""

    @property
    def trace(self) -> CallTrace | None:
        """As that of a `Call`."""

    @property
    def deadline(self) -> float: ...

    @property
    def grant(self) -> Grant:
        """As that of a `Call`."""

    def metadata(self, key: str) -> str:
        """What the caller said in a header, "" if nothing; `key` is in lower case."""

    def fail(self, error: Exception) -> None:
        """Ends with the status of `error`, once what was taken is sent. In the transport's
        thread."""

    def wake(self) -> None:
        """There is something to take from the stream now. Any thread may say so."""

    def defer(self, callback: Deferred) -> None:
        """As that of a `Call`."""


class Stream(Protocol):
    """One streaming call, as its transport sees it. The transport calls all of it in its own
    thread.

    Messages are pulled: the transport takes the next one when the last one has been written.
    So a message holds whatever has gathered meanwhile, and a slow reader slows its own
    stream down: while `congested`, the transport reads no more of it.
    """

    def receive(self, message: bytes) -> None:
        """Takes one message in. What it raises ends the call."""

    def half_close(self) -> None:
        """The caller has sent its last message."""

    def take(self) -> bytes | None:
        """The next message to send; None if there is none now."""

    @property
    def congested(self) -> bool: ...

    @property
    def finished(self) -> bool:
        """All has been taken and nothing will follow: the call ends."""

    def drain(self) -> None:
        """The server is stopping: finish as soon as what was received is answered."""

    def cancel(self) -> None:
        """The caller has gone away."""


@dataclass(frozen=True)
class Unary:
    start: Callable[[Call], None]
    right: Right | None = Right.CONTROL
    """What a caller must have the right to, where there are tokens; None: open to everybody.
    Whoever forgets to say it has the transport as good as closed."""


@dataclass(frozen=True)
class Streaming:
    """For streams of either side or both: one message and a half-close is a stream too."""

    start: Callable[[StreamCall], Stream]
    right: Right | None = Right.CONTROL
    """As that of a `Unary`."""


Methods = Mapping[str, Unary | Streaming]
"""By path: "/neurona.v1.Prediction/Predict"."""

if TYPE_CHECKING:
    from neurona_server.rpc.submission import Submission


class BaseCall:
    """A call that knows its metadata, or can ask for them."""

    __slots__ = ("_made", "_metadata", "trace")

    def __init__(
        self, metadata: Metadata | Callable[[], Metadata | None], trace: CallTrace | None
    ) -> None:
        self._metadata = metadata
        self.trace = trace
        self._made: str  # once somebody has asked

    @property
    def request_id(self) -> str:
        with _making:  # two threads that ask at a time get the same
            try:
                return self._made
            except AttributeError:
                self._made = request_id_of(self._all(), self.trace)
                return self._made

    @property
    def trace_id(self) -> str:
        return self.trace.trace_id if self.trace is not None else _trace_id_of(self._all())

    def _all(self) -> Metadata:
        return (self._metadata() if callable(self._metadata) else self._metadata) or ()


def request_id_of(metadata: Metadata, trace: Trace | None = None) -> str:
    """One that a caller gave counts if it is printable ASCII and of MOST characters at most."""
    given = next((value for key, value in metadata if key == REQUEST_ID), "")
    if isinstance(given, str) and _PRINTABLE.fullmatch(given):
        return given
    found = trace.trace_id if trace is not None else _trace_id_of(metadata)
    return found or secrets.token_hex(16)


def log_fields_of(known: RequestIdentity | None) -> Mapping[str, str]:
    """For the log."""
    if known is None:
        return {}
    fields = {"request_id": known.request_id, "trace_id": known.trace_id}
    return {name: value for name, value in fields.items() if value}


def gone(deadline: float = math.inf) -> NeuronaError:
    """What ends the request of a caller that is gone, or whose deadline made it go."""
    if time.monotonic() >= deadline - CLOCKS_APART:
        return DeadlineExceededError("the deadline passed before the answer was there")
    return CancelledError("the caller cancelled the request")


def parent_of(metadata: Metadata) -> tuple[str, bool] | None:
    """The id of the trace that a caller brings, and whether it is sampled (W3C Trace Context);
    None if there is none, or more than one."""
    given = [value for key, value in metadata if key == "traceparent"]
    if len(given) != 1 or len(value := given[0]) > MOST_PARENT or not isinstance(value, str):
        return None
    found = _TRACEPARENT.fullmatch(value)
    return (found[1], bool(int(found[2], 16) & 1)) if found else None


def _trace_id_of(metadata: Metadata) -> str:
    parent = parent_of(metadata)
    return parent[0] if parent else ""
