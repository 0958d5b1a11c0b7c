"""The log of a model's failures: a caller can bring about as many as he likes.

The first of a kind is logged with all that is known of it; those like it in the minute after are
counted, and the count is one line.
"""

import logging
import re
import threading
from collections.abc import Callable, Mapping

from neurona_server.errors import printable

log = logging.getLogger(__name__)

QUIET = 60.0
"""Seconds after a failure in which those like it are counted."""

MOST_KINDS = 32
"""In that time, of one model: all others count as one more."""

MOST_TEXT = 1000

_NUMBER = re.compile(r"\d+")

Later = Callable[[float, Callable[[], None]], None]


def _later(seconds: float, callback: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, callback)
    timer.daemon = True
    timer.start()


class RateLimitedFailureLog:
    """Of the model `name`; any thread may tell."""

    def __init__(self, name: str, later: Later = _later) -> None:
        self._name = name
        self._later = later
        self._more: dict[str, int] = {}  # by kind, since the first was logged
        self._lock = threading.Lock()

    def record(
        self, what: str, error: Exception, fields: Mapping[str, str | int] | None = None
    ) -> None:
        """`what` failed with `error`; `fields` say which request that was. Errors that differ in
        numbers only are of one kind: callers choose those."""
        kind = _NUMBER.sub("#", f"{what}: {type(error).__name__}: {error}"[:MOST_TEXT])
        with self._lock:
            if kind not in self._more and len(self._more) >= MOST_KINDS:
                kind = "requests failed in many ways"
            first = kind not in self._more
            self._more[kind] = 0 if first else self._more[kind] + 1
        if first:
            log.error("%s: %s", self._name, what, exc_info=error, extra=fields)
            self._later(QUIET, lambda: self._count(kind))

    def _count(self, kind: str) -> None:
        with self._lock:
            more = self._more.pop(kind)
        if more:
            log.error(
                "%s: %d more like it within %g s: %s", self._name, more, QUIET, printable(kind)
            )
