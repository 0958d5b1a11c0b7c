"""Limits the lines that callers can cause, and keeps what callers sent out of gRPC's lines.

Such a line is written once in a minute, and similar ones as a count. That holds for all lines of
libraries, captured ones included, and for warnings and errors of the packages that read what
callers send.
"""

import logging
import re
from collections.abc import Callable

from neurona_server.telemetry import rate_limit
from neurona_server.telemetry.rate_limit import RateLimit

OWN_PACKAGE = "neurona_server"

LIMITED_PACKAGES = ("neurona_server.rpc.", "neurona_server.web.")
"""Our own packages whose lines callers can cause."""

MAX_KINDS = 200
"""Kinds of lines in a minute; all others count as one more kind."""

MAX_KIND_LENGTH = 200

GRPC_DECODER = "grpc._cython.cygrpc"
"""gRPC's logger of the metadata values that are not UTF-8: a line for each."""

_GRPC = "grpc"
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|\d+")


class LineLimit(logging.Filter):
    """A filter of the handler, before a line is formatted."""

    def __init__(self) -> None:
        super().__init__()
        self.suppressed = 0
        """Number of lines that were only counted."""
        self._limit = RateLimit(MAX_KINDS, self._log_suppressed)

    def filter(self, record: logging.LogRecord) -> bool:
        is_own = record.name == OWN_PACKAGE or record.name.startswith(OWN_PACKAGE + ".")
        if is_own and (
            record.levelno < logging.WARNING or not record.name.startswith(LIMITED_PACKAGES)
        ):
            return True
        if record.name == _GRPC or record.name.startswith(_GRPC + "."):
            _remove_bytes(record)
        if self._limit.admit(_kind(record, exact=is_own)):
            return True
        self.suppressed += 1
        return False

    def replace_exception_method(self, logger: logging.Logger) -> None:
        """Make `logger.exception` cheap for repeated lines about bytes that a caller sent.

        gRPC calls it in the thread of the transport, hundreds of times for one call if the caller
        wants so. Making a record takes ten times as long as counting.
        """
        log_exception: Callable[..., None] = logger.exception

        def exception(message: object, *arguments: object, **options: object) -> None:
            if not (arguments and isinstance(arguments[0], bytes)):
                log_exception(message, *arguments, **options)
            elif self._limit.admit(str(message)):
                logger.error(message, f"({len(arguments[0])} bytes)", *arguments[1:])
            else:
                self.suppressed += 1

        setattr(logger, "exception", exception)  # noqa: B010  not assignable for a type checker

    def _log_suppressed(self, kind: str, count: int) -> None:
        logging.getLogger(f"{OWN_PACKAGE}.telemetry.log").warning(
            "suppressed %d similar log %s in the last %g s: %s",
            *(count, "line" if count == 1 else "lines", rate_limit.QUIET_SECONDS, kind),
        )


def _kind(record: logging.LogRecord, *, exact: bool) -> str:
    """Return what similar lines have in common; numbers and addresses differ unless `exact`."""
    try:
        message = record.getMessage()
    except Exception:  # the arguments do not fit
        message = str(record.msg)
    message = message.partition("\n")[0][:MAX_KIND_LENGTH]
    kind = f"{record.name}: {message if exact else _VARIABLE.sub('#', message)}"
    error = record.exc_info[0] if record.exc_info else None
    return kind if error is None else f"{kind}: {error.__name__}"


def _remove_bytes(record: logging.LogRecord) -> None:
    """Replace bytes by their number: they are what a caller sent, such as a token.

    The traceback of the failure to decode them says nothing more.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    if any(isinstance(argument, bytes) for argument in arguments):
        record.args = tuple(
            f"({len(argument)} bytes)" if isinstance(argument, bytes) else argument
            for argument in arguments
        )
        record.exc_info = record.exc_text = None
