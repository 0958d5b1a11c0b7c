"""Limits the batches of a model whose device has run out of memory, for a while.

How large a batch fits depends on what else is on the device at the time: the arenas of other
models, other processes. So the limit falls at once, and rises by one batch size at a time.
"""

import math
import threading
from collections.abc import Sequence

LIMIT_SECONDS = 60.0
"""Time after which the next larger batch size is tried again. It doubles each time that this
fails ..."""

MAX_LIMIT_SECONDS = 3600.0
"""... up to this."""


class MemoryLimit:
    """The largest batch that the devices of one model are known to have room for. Thread-safe."""

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        """Begin without a limit.

        Args:
            batch_sizes: The batch sizes of the model in rows, ascending.
        """
        self._batch_sizes = tuple(batch_sizes)
        self._seconds = LIMIT_SECONDS
        self._rises_at = math.inf
        self._risen_at = -math.inf
        self._lock = threading.Lock()
        self.rows = self._batch_sizes[-1]
        """Rows of the largest batch to run."""

    def lower(self, rows: int, now: float) -> bool:
        """Note that a run of `rows` has found too little memory at `now`, in monotonic seconds.

        Returns:
            Whether that makes the limit lower.
        """
        with self._lock:
            smaller = [size for size in self._batch_sizes if size < rows]
            limit = smaller[-1] if smaller else self._batch_sizes[0]
            if limit >= self.rows:
                return False
            # A size that fails soon after it is tried again will hardly fit a minute later.
            is_trial = now - self._risen_at < self._seconds
            self._seconds = min(2 * self._seconds, MAX_LIMIT_SECONDS) if is_trial else LIMIT_SECONDS
            self.rows = limit
            self._rises_at = now + self._seconds
            return True

    def update(self, now: float) -> int:
        """Raise the limit by one batch size if its time is over, and return it."""
        if now >= self._rises_at:
            with self._lock:
                if now >= self._rises_at:
                    self.rows = next(size for size in self._batch_sizes if size > self.rows)
                    self._risen_at = now
                    is_last = self.rows == self._batch_sizes[-1]
                    self._rises_at = math.inf if is_last else now + self._seconds
        return self.rows
