"""What a call does, step by step, without waiting: a driver does each step and says how it went.

A conversation is a generator that yields steps and returns its result. `Client` waits for a step
in the caller's thread, `AsyncClient` in its event loop; all else is here.
"""

import math
import random
import time
from collections.abc import Callable, Generator
from typing import Protocol

from neurona_client.calls.backpressure import Gate
from neurona_client.errors import (
    ClosedError,
    DeadlineError,
    NeuronaError,
    OverloadedError,
    UnavailableError,
    UnreachableError,
)
from neurona_client.options import Retries
from neurona_client.transport.endpoint import SAYS_NOTHING, Endpoint, late
from neurona_client.transport.endpoint_pool import Fleet
from neurona_client.transport.grpc_calls import Done, Metadata, Outcome

_LAST_TRY = 1.0
"""Seconds for a call that is to tell why nobody can be reached."""

_GRACE = 0.05
"""Seconds that a driver gives gRPC to say that the time is up, as it knows more."""

_LONGEST = 1e8
"""Seconds. What is longer is never: gRPC takes it for a time that has passed."""


class Step(Protocol):
    timeout: float | None

    def start(self, done: Done) -> Callable[[], bool | None]:
        """Begins it; what is returned gives it up, and is true if `done` is or will be called."""

    def expired(self) -> Outcome:
        """What it ends with if nothing came within `timeout`."""


Conversation = Generator[Step, bytes, bytes]


class Pause:
    def __init__(self, seconds: float) -> None:
        self.timeout: float | None = seconds

    def start(self, _: Done) -> Callable[[], None]:
        return _nothing

    def expired(self) -> Outcome:
        return b""


class UntilReachable:
    """Ends when a server can be reached, or after `timeout`."""

    def __init__(self, fleet: Fleet, timeout: float | None) -> None:
        self.timeout = timeout
        self._fleet = fleet

    def start(self, done: Done) -> Callable[[], None]:
        def reached() -> None:
            done(b"")

        self._fleet.when_ready(reached)
        return lambda: self._fleet.forget(reached)

    def expired(self) -> Outcome:
        return b""


class UntilRoom:
    """Ends when a request of so many bytes may be under way."""

    def __init__(self, gate: Gate, size: int, timeout: float | None) -> None:
        self.timeout = timeout
        self._gate = gate
        self._size = size

    def start(self, done: Done) -> Callable[[], None]:
        def granted() -> None:
            done(b"")

        self._gate.wait(self._size, granted)
        return lambda: self._gate.withdraw(self._size, granted)

    def expired(self) -> Outcome:
        return late()


class Alone:
    """A call of its own."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        message: bytes,
        timeout: float | None,
        metadata: Metadata,
    ) -> None:
        self.timeout = None if timeout is None else timeout + _GRACE
        self._endpoint = endpoint
        self._asked = (path, message, timeout, metadata)

    def start(self, done: Done) -> Callable[[], None]:
        return self._endpoint.call(*self._asked, done)

    def expired(self) -> Outcome:
        return late()


class Deadline:
    """A point in time. `timeout` None: never. Raises ValueError if it is no number."""

    __slots__ = ("_end", "timeout")

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not timeout <= _LONGEST:
            if math.isnan(timeout):
                raise ValueError("the timeout is NaN; expected seconds, or None")
            timeout = None
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds. Raises DeadlineError when it has passed."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.error()
        return left

    def error(self) -> DeadlineError:
        return DeadlineError(f"no answer within {self.timeout:g} s")


Send = Callable[[Endpoint, float | None], Step]
"""From a server and the seconds that are left to the step that asks it."""

Ask = Callable[[Fleet, Endpoint, Deadline, Send], Conversation]
"""Asks a server, and perhaps another one."""


def tried(
    fleet: Fleet,
    retries: Retries,
    deadline: Deadline,
    send: Send,
    first: NeuronaError | None = None,
    ask: Ask | None = None,
) -> Conversation:
    """Sends until there is an answer, or an error that trying again does not mend.

    first: what it ended with when it was sent before.
    ask: how each server is asked; None: once.

    Raises NeuronaError.
    """
    pauses = _pauses(retries)
    last: Endpoint | None = None
    for attempt in range(1, retries.attempts + 1):
        try:
            if attempt == 1 and first is not None:
                raise first
            last = fleet.pick(last)
            if last is None:
                last = yield from _reachable(fleet, retries, deadline)
            if ask is not None:
                return (yield from ask(fleet, last, deadline, send))
            return (yield send(last, deadline.left()))
        except DeadlineError as error:
            if str(error) in SAYS_NOTHING:
                raise deadline.error() from None
            raise  # the server says more
        except (OverloadedError, UnavailableError) as error:
            if fleet.closed:
                raise ClosedError(fleet.closed) from None
            pause = _pause(error, next(pauses), fleet)
            if attempt == retries.attempts or pause is None or isinstance(error, UnreachableError):
                raise
            left = deadline.left()
            if left is not None and pause >= left:
                raise
        if pause:
            yield Pause(pause)
    raise AssertionError("there is at least one attempt")


def _reachable(
    fleet: Fleet, retries: Retries, deadline: Deadline
) -> Generator[Step, bytes, Endpoint]:
    """The server to ask. Where there is none, the first: asking it tells why."""
    end = Deadline(retries.patience)
    while True:
        left = deadline.left()
        try:
            patience = end.left() or 0.0
        except DeadlineError:
            raise (yield from _reason(fleet, retries, deadline)) from None
        yield UntilReachable(fleet, patience if left is None else min(left, patience))
        if (endpoint := fleet.pick()) is not None:
            return endpoint


def _reason(
    fleet: Fleet, retries: Retries, deadline: Deadline
) -> Generator[Step, bytes, UnreachableError]:
    """Asks a server that seems out of reach: gRPC then says what is wrong."""
    left = deadline.left()
    timeout = _LAST_TRY if left is None else min(left, _LAST_TRY)
    text = f"no server could be reached at {fleet.named} within {retries.patience:g} s"
    try:
        yield Alone(fleet.endpoints[0], "/grpc.health.v1.Health/Check", b"", timeout, ())
    except NeuronaError as error:
        if isinstance(error, UnavailableError):
            text += f": {error}"
    return UnreachableError(text)


def _pause(error: OverloadedError | UnavailableError, pause: float, fleet: Fleet) -> float | None:
    """Seconds before the next attempt; None: trying again does not help."""
    if isinstance(error, OverloadedError):
        if error.retry_after is None:
            return None
        return error.retry_after * random.uniform(1.0, 1.5)  # noqa: S311
    return 0.0 if fleet.has_another() else pause


def _pauses(retries: Retries) -> Generator[float, None, None]:
    pause = retries.first_pause
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311
        pause = min(2 * pause, retries.longest_pause)


def _nothing() -> None:
    pass
