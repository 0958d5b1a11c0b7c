"""Converts an error to the gRPC status that ends its call."""

import logging
import math
from typing import NamedTuple

import grpc

from neurona_server.errors import NeuronaError, QueueFullError, UnavailableError
from neurona_server.rpc.call import RequestIdentity, log_fields_of

log = logging.getLogger(__name__)

RETRY_AFTER = "retry-after-ms"
"""The trailer that says in how many milliseconds a full queue may have room."""

PUSHBACK = ("grpc-retry-pushback-ms", "100")
"""A trailer for clients that retry by themselves (gRFC A6): they wait before they call a server
that stops. gRPC cancels what arrives while it shuts down, and a cancelled call is not retried."""

MAX_MESSAGE_BYTES = 2000
"""Longer status messages are shortened. They travel in a header of at most 8 KiB, in which each
byte beyond ASCII takes three, and may quote what the caller sent."""

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class Status(NamedTuple):
    """How a call ends: a code, a message for the caller, and trailers.

    Beyond the capacity most calls are refused: making their statuses has to be cheap.
    """

    number: int
    """The number of the code, as in google.rpc.Code."""
    message: str
    retry_after_ms: int = 0
    push_back: bool = False

    @property
    def code(self) -> grpc.StatusCode:
        return _CODES[self.number]

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        if self.push_back:
            return (PUSHBACK,)
        return ((RETRY_AFTER, str(self.retry_after_ms)),) if self.retry_after_ms else ()


def status_of(error: Exception, identity: RequestIdentity | None = None) -> Status:
    """Return the status of a call that ends with `error`; `identity` is the call's, for the log.

    An exception that is no NeuronaError is a bug of the server: it is logged, and the caller
    gets INTERNAL without its text.
    """
    if not isinstance(error, NeuronaError):
        log.error("uncaught exception in a call", exc_info=error, extra=log_fields_of(identity))
        return Status(NeuronaError.code, "internal error; see the server's log")
    if log.isEnabledFor(logging.DEBUG):
        name = _CODES[error.code].name
        log.debug("ended with %s: %s", name, error, extra=log_fields_of(identity))
    # Retrying helps with a full queue, not with a message that is too large.
    retry_after_ms = 0
    if isinstance(error, QueueFullError):
        retry_after_ms = max(1, math.ceil(error.retry_after * 1000))
    message = str(error)
    if not message.isascii() or len(message) > MAX_MESSAGE_BYTES:
        message = _shorten(message)
    return Status(error.code, message, retry_after_ms, isinstance(error, UnavailableError))


def _shorten(message: str) -> str:
    """Return a message that can be encoded, with at most MAX_MESSAGE_BYTES."""
    encoded = message.encode(errors="replace")
    if len(encoded) > MAX_MESSAGE_BYTES:
        encoded = encoded[: MAX_MESSAGE_BYTES - 3] + b"..."
    return encoded.decode(errors="ignore")
