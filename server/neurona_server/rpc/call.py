"""What a door and a service agree on, so that either can be exchanged.

A door (`core_listener`, `aio_listener`) owns connections and bytes; a service (`prediction`,
`models`, `health`) owns what they mean. Neither waits for the other: a service is called in the
door's thread and must return at once; it answers later, from any thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from neurona_server.models.model import Deferred
from neurona_server.rpc.caller import CallTrace, Known
from neurona_server.rpc.rights import Grant, Right


class Call(Known, Protocol):
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
        """What the caller may do; that it may call this method, the door has seen to."""

    def reply(self, response: bytes) -> None: ...

    def fail(self, error: Exception) -> None:
        """Ends with the status of `error` (`rpc.status`)."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Has `callback` called, in the door's thread, when the caller cancels, disconnects
        or reaches its deadline before the call has ended."""

    def defer(self, callback: Deferred) -> None:
        """Has `callback` called in the door's thread once it has read all that is there to
        read, however many calls defer it until then, and again while it returns True. For use
        in the door's thread."""


class StreamCall(Known, Protocol):
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
        """Ends with the status of `error`, once what was taken is sent. In the door's thread."""

    def wake(self) -> None:
        """There is something to take from the stream now. Any thread may say so."""

    def defer(self, callback: Deferred) -> None:
        """As that of a `Call`."""


class Stream(Protocol):
    """One streaming call, as its door sees it. The door calls all of it in its own thread.

    Messages are pulled: the door takes the next one when the last one has been written.
    So a message holds whatever has gathered meanwhile, and a slow reader slows its own
    stream down: while `congested`, the door reads no more of it.
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
    Whoever forgets to say it has the door as good as closed."""


@dataclass(frozen=True)
class Streaming:
    """For streams of either side or both: one message and a half-close is a stream too."""

    start: Callable[[StreamCall], Stream]
    right: Right | None = Right.CONTROL
    """As that of a `Unary`."""


Methods = Mapping[str, Unary | Streaming]
"""By path: "/neurona.v1.Prediction/Predict"."""
