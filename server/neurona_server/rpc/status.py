"""From error to gRPC status: the one table."""

import logging
import math
from dataclasses import dataclass

import grpc

from neurona_server.errors import (
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    ModelFailedError,
    NotAllowedError,
    NotFoundError,
    NotLoadedError,
    PermissionDeniedError,
    QueueFullError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
    WrongTaskError,
)
from neurona_server.rpc.call import RequestIdentity, log_fields_of

log = logging.getLogger(__name__)

CODES = {
    NotAllowedError: grpc.StatusCode.FAILED_PRECONDITION,
    NotLoadedError: grpc.StatusCode.FAILED_PRECONDITION,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    WrongTaskError: grpc.StatusCode.FAILED_PRECONDITION,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    CancelledError: grpc.StatusCode.CANCELLED,
    ModelFailedError: grpc.StatusCode.INTERNAL,
}
RETRY_AFTER = "retry-after-ms"
PUSHBACK = ("grpc-retry-pushback-ms", "100")
"""For clients that try again by themselves (gRFC A6): a server that stops is better left alone
for a moment. gRPC cancels what comes while it shuts down, and that is not tried again."""

MAX_MESSAGE = 2000
"""Bytes of a message. It travels in a header of 8 KiB at the most, in which each byte beyond
ASCII takes three, and it may quote what the caller sent."""


@dataclass(frozen=True)
class Status:
    code: grpc.StatusCode
    message: str
    retry_after_ms: int = 0
    leaving: bool = False

    @property
    def number(self) -> int:
        """The google.rpc.Code."""
        number: int = self.code.value[0]
        return number

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        if self.leaving:
            return (PUSHBACK,)
        return ((RETRY_AFTER, str(self.retry_after_ms)),) if self.retry_after_ms else ()


def code_of(error: Exception) -> int:
    """Its google.rpc.Code."""
    number: int = CODES.get(type(error), grpc.StatusCode.INTERNAL).value[0]
    return number


def status_of(error: Exception, known: RequestIdentity | None = None) -> Status:
    """Of `known`'s call. An error that is not in the table is a fault of ours: logged, and
    INTERNAL with a text that says nothing about it."""
    code = CODES.get(type(error))
    if code is None:
        log.error("an internal error", exc_info=error, extra=log_fields_of(known))
        return Status(grpc.StatusCode.INTERNAL, "internal error; the server's log says why")
    if log.isEnabledFor(logging.DEBUG):
        log.debug("ended with %s: %s", code.name, error, extra=log_fields_of(known))
    # A caller may come back to a full queue; what is too large stays so.
    wait = 0
    if isinstance(error, QueueFullError):
        wait = max(1, math.ceil(error.retry_after * 1000))
    message = str(error).encode(errors="replace")
    if len(message) > MAX_MESSAGE:
        message = message[: MAX_MESSAGE - 3] + b"..."
    leaving = isinstance(error, UnavailableError)
    return Status(code, message.decode(errors="ignore"), wait, leaving)
