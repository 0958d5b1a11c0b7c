"""A rate-limited log of a model's failures, because callers can cause any number of them.

The first failure of a kind is logged with its traceback and its request. Similar ones in the
minute after it are counted, and logged as one line.
"""

import logging
import re
import threading
from collections.abc import Callable, Mapping

from neurona_server.errors import printable

log = logging.getLogger(__name__)

QUIET_SECONDS = 60.0
"""Seconds after a logged failure in which similar ones are only counted."""

MAX_KINDS = 32
"""Kinds of failures in that time, for one model; all others count as one more kind."""

MAX_KIND_LENGTH = 1000

_NUMBER = re.compile(r"\d+")

Schedule = Callable[[float, Callable[[], None]], None]
"""Calls a callback after a number of seconds."""


def _schedule(seconds: float, callback: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, callback)
    timer.daemon = True
    timer.start()


class RateLimitedFailureLog:
    """Logs the failures of the model `name`. Any thread may record one."""

    def __init__(self, name: str, schedule: Schedule = _schedule) -> None:
        self._name = name
        self._schedule = schedule
        self._suppressed: dict[str, int] = {}  # by kind, since the first was logged
        self._lock = threading.Lock()

    def record(
        self, what: str, error: Exception, fields: Mapping[str, str | int] | None = None
    ) -> None:
        """Log or count that `what` failed with `error`.

        Errors that differ only in numbers are of one kind: callers choose the numbers.

        Args:
            what: The operation that failed.
            error: Its exception.
            fields: Log fields that identify the request.
        """
        kind = _NUMBER.sub("#", f"{what}: {type(error).__name__}: {error}"[:MAX_KIND_LENGTH])
        with self._lock:
            if kind not in self._suppressed and len(self._suppressed) >= MAX_KINDS:
                kind = "various failures"
            first = kind not in self._suppressed
            self._suppressed[kind] = 0 if first else self._suppressed[kind] + 1
        if first:
            log.error("%s: %s", self._name, what, exc_info=error, extra=fields)
            self._schedule(QUIET_SECONDS, lambda: self._log_suppressed(kind))

    def _log_suppressed(self, kind: str) -> None:
        with self._lock:
            count = self._suppressed.pop(kind)
        if count:
            log.error(
                "%s: suppressed %d similar %s in the last %g s: %s",
                *(self._name, count, "error" if count == 1 else "errors"),
                *(QUIET_SECONDS, printable(kind)),
            )
