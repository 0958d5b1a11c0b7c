"""Runs in a door's own thread: whether a model's are short enough for that, and for how long."""

import threading
import time
from collections.abc import Callable

from neurona_server.batching.curve import Curve
from neurona_server.batching.cut import Cut
from neurona_server.batching.hand_off import hand_off_seconds
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Queue

HAND_OFFS = 10
"""The way of a request to an instance's thread and of its answer back to the door, in plain
hand-offs: two threads are woken, and each waits for the interpreter's lock."""

LONGEST_INLINE = 0.005
"""Seconds: the door reads nothing while it runs batches."""


class Inline:
    """Of one model."""

    def __init__(
        self, policy: BatchPolicy, queue: Queue, curve: Curve, clock: Callable[[], float]
    ) -> None:
        self.on = False
        """Whether the door runs what it reads; `tune` decides."""
        self._policy = policy
        self._queue = queue
        self._curve = curve
        self._clock = clock
        self._recent_seconds = 0.0
        self._threads: set[int] = set()  # idents of those in `serve`

    def ran(self, seconds: float) -> None:
        """A batch took so long, wherever it ran."""
        self._recent_seconds += 0.2 * (seconds - self._recent_seconds)

    def tune(self) -> None:
        # The door does not come back for a batch that is to fill first.
        self.on = not self._policy.max_delay and (
            self._is_short() if self._policy.inline is None else self._policy.inline
        )

    def serve(self, process: Callable[[Cut], None]) -> bool:
        """Runs what waits in the caller's thread, for no longer than a door may read nothing.

        Whether something is left, for which it is to call again when it has read what there is.
        Batches that take long are left to instances.
        """
        thread = threading.get_ident()
        self._threads.add(thread)  # before it takes anything, so that `wait_until_idle` sees it
        try:
            end = self._clock() + LONGEST_INLINE
            while self._next_seconds() < LONGEST_INLINE:
                if (cut := self._queue.poll()) is None:
                    return False
                process(cut)
                if self._clock() >= end:
                    return bool(self._queue.rows)
        finally:
            self._threads.discard(thread)
        self._queue.wake()
        return False

    def wait_until_idle(self, end: float) -> bool:
        """False when a thread is still in `serve` at `end`, by the monotonic clock."""
        while self._threads:
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True

    def _is_short(self) -> bool:
        """One row costs less than the way to a thread and back, and no batch holds the door up."""
        way = HAND_OFFS * hand_off_seconds()
        return 0.0 < self._curve.predict(1) < way and self._recent_seconds < LONGEST_INLINE

    def _next_seconds(self) -> float:
        """What the next batch takes, at the most."""
        return min(self._queue.backlog_seconds(), self._curve.predict(self._queue.limit))
