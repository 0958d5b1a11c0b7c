"""Steps: the single actions of a call, such as to send a request or to pause.

An operation is a generator that yields steps and returns its result; a driver performs each step
and sends the outcome back in. `Client` waits for a step in the caller's thread, `AsyncClient` in
its event loop; everything else is the same code, without I/O.
"""

import math
import time
from collections.abc import Callable, Generator
from typing import Protocol, TypeVar

from neurona_client.calls.backpressure import CapacityLimiter
from neurona_client.errors import DeadlineExceededError
from neurona_client.transport.endpoint import Endpoint
from neurona_client.transport.endpoint_pool import EndpointPool
from neurona_client.transport.grpc_calls import (
    Metadata,
    Outcome,
    OutcomeCallback,
    generic_deadline_error,
)

T = TypeVar("T")

_TIMEOUT_GRACE_SECONDS = 0.05
"""How much longer a driver waits than gRPC, whose error says more about a missed deadline."""

_MAX_TIMEOUT_SECONDS = 1e8
"""A longer timeout means none: gRPC would take it for a time in the past."""


class Step(Protocol):
    """One action of an operation."""

    timeout: float | None
    """Seconds after which the driver gives the step up; None: never."""

    def start(self, callback: OutcomeCallback) -> Callable[[], bool | None]:
        """Start the action.

        Args:
            callback: receives the outcome.

        Returns:
            What gives the action up. It returns true if the outcome exists, and `callback` was or
            will be called.
        """

    def timeout_outcome(self) -> Outcome:
        """Return the outcome after `timeout` seconds without one."""


Operation = Generator[Step, bytes, T]
"""Yields steps, receives their responses (errors are raised inside), returns a T."""

Call = Operation[bytes]
"""An operation that returns the response of a call."""


class Deadline:
    """The point in time at which an operation must have ended."""

    __slots__ = ("_end", "timeout")

    def __init__(self, timeout: float | None) -> None:
        """Start the time.

        Args:
            timeout: seconds from now; None: no deadline.

        Raises:
            ValueError: the timeout is NaN.
        """
        if timeout is not None and not timeout <= _MAX_TIMEOUT_SECONDS:
            if math.isnan(timeout):
                raise ValueError("timeout is NaN (expected seconds, or None)")
            timeout = None
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Return the seconds until the deadline; None if there is none.

        Raises:
            DeadlineExceededError: it has passed.
        """
        if self._end is None:
            return None
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise self.exceeded_error()
        return remaining

    def exceeded_error(self) -> DeadlineExceededError:
        """Return the error of an operation that missed the deadline."""
        return DeadlineExceededError(f"deadline exceeded: no response within {self.timeout:g} s")


class Pause:
    """Does nothing for a number of seconds."""

    def __init__(self, seconds: float) -> None:
        self.timeout: float | None = seconds

    def start(self, _: OutcomeCallback) -> Callable[[], None]:
        """See `Step.start`."""
        return _do_nothing

    def timeout_outcome(self) -> Outcome:
        """See `Step.timeout_outcome`."""
        return b""


class WaitForEndpoint:
    """Waits until a server is reachable, or until `timeout`."""

    def __init__(self, pool: EndpointPool, timeout: float | None) -> None:
        self.timeout = timeout
        self._pool = pool

    def start(self, callback: OutcomeCallback) -> Callable[[], None]:
        """See `Step.start`."""

        def on_reachable() -> None:
            callback(b"")

        self._pool.call_when_reachable(on_reachable)
        return lambda: self._pool.cancel_callback(on_reachable)

    def timeout_outcome(self) -> Outcome:
        """See `Step.timeout_outcome`."""
        return b""


class WaitForCapacity:
    """Waits until a request of a size in bytes may be sent."""

    def __init__(self, capacity: CapacityLimiter, size: int, timeout: float | None) -> None:
        self.timeout = timeout
        self._capacity = capacity
        self._size = size

    def start(self, callback: OutcomeCallback) -> Callable[[], None]:
        """See `Step.start`."""

        def on_acquired() -> None:
            callback(b"")

        self._capacity.acquire_later(self._size, on_acquired)
        return lambda: self._capacity.cancel_acquire(self._size, on_acquired)

    def timeout_outcome(self) -> Outcome:
        """See `Step.timeout_outcome`."""
        return generic_deadline_error()


class UnaryCall:
    """Sends a request as a gRPC call of its own."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        message: bytes,
        timeout: float | None,
        metadata: Metadata,
    ) -> None:
        self.timeout = None if timeout is None else timeout + _TIMEOUT_GRACE_SECONDS
        self._endpoint = endpoint
        self._arguments = (path, message, timeout, metadata)

    def start(self, callback: OutcomeCallback) -> Callable[[], None]:
        """See `Step.start`."""
        return self._endpoint.call(*self._arguments, callback)

    def timeout_outcome(self) -> Outcome:
        """See `Step.timeout_outcome`."""
        self._endpoint.record_timeout(self.timeout or 0.0)
        return generic_deadline_error()


def _do_nothing() -> None:
    pass
