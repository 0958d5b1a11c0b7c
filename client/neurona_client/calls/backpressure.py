"""How much may be under way at a time: callers beyond it wait, so that memory stays bounded."""

import threading
from collections import deque
from collections.abc import Callable

Granted = Callable[[], None]


class Gate:
    """Any thread may call."""

    def __init__(self, max_bytes: int, max_requests: int) -> None:
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self._bytes = self._requests = 0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Granted]] = deque()

    @property
    def inside(self) -> tuple[int, int]:
        """Requests and their bytes."""
        return self._requests, self._bytes

    def enter(self, size: int) -> bool:
        """Whether there is room, which is taken then. Those who wait go first."""
        with self._lock:
            return not self._waiting and self._fits(size)

    def wait(self, size: int, granted: Granted) -> None:
        """Has it called once, when there is room, which is taken then; perhaps at once."""
        with self._lock:
            if self._waiting or not self._fits(size):
                self._waiting.append((size, granted))
                return
        granted()

    def withdraw(self, size: int, granted: Granted) -> None:
        """Of one who waited: it does not want the room any more, if it has it or not."""
        with self._lock:
            if (size, granted) in self._waiting:
                self._waiting.remove((size, granted))
                return
        self.leave(size)

    def leave(self, size: int) -> None:
        granted: list[Granted] = []
        with self._lock:
            self._bytes -= size
            self._requests -= 1
            while self._waiting and self._fits(self._waiting[0][0]):
                granted.append(self._waiting.popleft()[1])
        for one in granted:
            one()

    def _fits(self, size: int) -> bool:
        # A request larger than all that may be under way goes when nothing else is.
        if self._requests and self._bytes + size > self._max_bytes:
            return False
        if self._requests >= self._max_requests:
            return False
        self._requests += 1
        self._bytes += size
        return True
