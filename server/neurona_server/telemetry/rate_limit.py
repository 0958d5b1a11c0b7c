"""Limits how often events of one kind are logged: the first at once, similar ones as a count.

Callers can cause any number of such events. The summaries of all limits are written by one thread.
"""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

QUIET_SECONDS = 60.0
"""Seconds after a logged event in which similar ones are only counted."""

Schedule = Callable[[float, Callable[[], None]], None]
"""Calls a callback after a number of seconds."""


class TimerThread:
    """Calls callbacks at their times, all in one thread, which the first one starts."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._numbers = itertools.count()  # callbacks cannot be compared
        # Reentrant, because a destructor that logs may run anywhere, here too.
        self._changed = threading.Condition(threading.RLock())
        self._started = False

    def schedule(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call `callback` after `seconds`. Any thread may call this."""
        entry = time.monotonic() + seconds, next(self._numbers), callback
        with self._changed:
            heapq.heappush(self._due, entry)
            if not self._started:
                self._start()
            elif self._due[0] is entry:
                self._changed.notify()

    def _start(self) -> None:
        self._started = True
        try:
            threading.Thread(target=self._run, name="timers", daemon=True).start()
        except RuntimeError:  # the limit of threads: the next call tries again
            self._started = False

    def _run(self) -> None:
        while True:
            callback = self._next()
            try:
                callback()
            except Exception:  # the fault of one callback must not end the others
                log.exception("uncaught exception in a scheduled callback")

    def _next(self) -> Callable[[], None]:
        """Wait until a callback is due."""
        with self._changed:
            while not self._due or self._due[0][0] > time.monotonic():
                seconds = self._due[0][0] - time.monotonic() if self._due else None
                self._changed.wait(None if seconds is None else max(0.0, seconds))
            return heapq.heappop(self._due)[2]


_timers = TimerThread()


class RateLimit:
    """Admits the first event of each kind in QUIET_SECONDS. Any thread may call `admit`."""

    def __init__(
        self,
        max_kinds: int,
        report: Callable[[str, int], None],
        schedule: Schedule = _timers.schedule,
    ) -> None:
        """Begin without any event.

        Args:
            max_kinds: Kinds in QUIET_SECONDS; all others count as one more kind.
            report: Called with a kind and the number of its further events, QUIET_SECONDS after
                the first one, if there were any.
            schedule: Calls a callback later.
        """
        self._max_kinds = max_kinds
        self._report = report
        self._schedule = schedule
        self._suppressed: dict[str, int] = {}  # by kind, since its first event
        self._lock = threading.RLock()  # see TimerThread

    def admit(self, kind: str) -> bool:
        """Return whether this event is the first of its kind; else count it."""
        with self._lock:
            if kind not in self._suppressed and len(self._suppressed) >= self._max_kinds:
                kind = "various"
            if kind in self._suppressed:
                self._suppressed[kind] += 1
                return False
            self._suppressed[kind] = 0
        self._schedule(QUIET_SECONDS, lambda: self._end(kind))
        return True

    def _end(self, kind: str) -> None:
        with self._lock:
            count = self._suppressed.pop(kind)
        if count:
            self._report(kind, count)
