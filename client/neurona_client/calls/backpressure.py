"""Backpressure: a limit on requests in flight bounds memory; calls beyond it wait."""

import threading
from collections import deque
from collections.abc import Callable

OnAcquired = Callable[[], None]


class CapacityLimiter:
    """Counts requests in flight and their bytes. Safe for threads; first come, first served."""

    def __init__(self, max_bytes: int, max_requests: int) -> None:
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self._bytes = self._requests = 0
        self._lock = threading.Lock()
        self._waiters: deque[tuple[int, OnAcquired]] = deque()

    @property
    def in_flight(self) -> tuple[int, int]:
        """Requests and their bytes."""
        return self._requests, self._bytes

    def try_acquire(self, size: int) -> bool:
        """Reserve capacity for a request of a size in bytes, unless it or others have to wait."""
        with self._lock:
            return not self._waiters and self._reserve_if_fits(size)

    def acquire_later(self, size: int, on_acquired: OnAcquired) -> None:
        """Reserve capacity as soon as there is some, then call back once; perhaps right away."""
        with self._lock:
            if self._waiters or not self._reserve_if_fits(size):
                self._waiters.append((size, on_acquired))
                return
        on_acquired()

    def cancel_acquire(self, size: int, on_acquired: OnAcquired) -> None:
        """Undo `acquire_later`, whether the capacity has been reserved or not."""
        with self._lock:
            if (size, on_acquired) in self._waiters:
                self._waiters.remove((size, on_acquired))
                return
        self.release(size)

    def release(self, size: int) -> None:
        """Return the capacity of a request."""
        granted: list[OnAcquired] = []
        with self._lock:
            self._bytes -= size
            self._requests -= 1
            while self._waiters and self._reserve_if_fits(self._waiters[0][0]):
                granted.append(self._waiters.popleft()[1])
        for on_acquired in granted:
            on_acquired()

    def _reserve_if_fits(self, size: int) -> bool:
        # A request larger than the limit is sent when nothing else is in flight.
        if self._requests and self._bytes + size > self._max_bytes:
            return False
        if self._requests >= self._max_requests:
            return False
        self._requests += 1
        self._bytes += size
        return True
