"""A rate-limited log of a model's failures, because callers can cause any number of them.

The first failure of a kind is logged with its traceback and its request. Similar ones in the
minute after it are counted, and logged as one line. The file is alone because lines of the log and
failures of models are limited alike, but only these have requests and numbers that callers choose.
"""

import logging
import re
from collections.abc import Mapping

from neurona_server.errors import printable
from neurona_server.telemetry import rate_limit
from neurona_server.telemetry.rate_limit import RateLimit

log = logging.getLogger(__name__)

MAX_KINDS = 32
"""Kinds of failures in a minute, for one model; all others count as one more kind."""

MAX_KIND_LENGTH = 1000

_NUMBER = re.compile(r"\d+")


class RateLimitedFailureLog:
    """Logs the failures of the model `name`. Any thread may record one."""

    def __init__(self, name: str, schedule: rate_limit.Schedule | None = None) -> None:
        self._name = name
        arguments = [] if schedule is None else [schedule]
        self._limit = RateLimit(MAX_KINDS, self._log_suppressed, *arguments)

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
        kind = f"{what}: {type(error).__name__}: {error}"[:MAX_KIND_LENGTH]
        if self._limit.admit(_NUMBER.sub("#", kind)):
            log.error("%s: %s", self._name, what, exc_info=error, extra=fields)

    def _log_suppressed(self, kind: str, count: int) -> None:
        log.error(
            "%s: suppressed %d similar %s in the last %g s: %s",
            *(self._name, count, "error" if count == 1 else "errors"),
            *(rate_limit.QUIET_SECONDS, printable(kind)),
        )
