"""What can go wrong with a call, one class for each thing that a caller may do about it.

    try:
        client.predict("lenet5", pixels, timeout=0.1)
    except neurona_client.OverloadedError as error:
        time.sleep(error.retry_after or 1.0)

All of them are NeuronaError; the message says what came and what was expected.
"""

from collections.abc import Iterable


class NeuronaError(Exception):
    """Any failure of a call.

    code: the number of the gRPC status (google.rpc.Code).
    request_id: what the server calls the request in its log; empty if it did not say.
    """

    code = 2

    def __init__(self, message: str, *, code: int | None = None, request_id: str = "") -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.request_id = request_id


class InvalidInputError(NeuronaError, ValueError):
    """An input's name, dtype, shape or value does not fit the model: mend the request."""

    code = 3


class DeadlineError(NeuronaError, TimeoutError):
    """No answer within the timeout."""

    code = 4


class NotFoundError(NeuronaError, LookupError):
    """No such model, version or label; the message has the names that exist."""

    code = 5


class PermissionDeniedError(NeuronaError):
    """The token has no right to that, or not for this model."""

    code = 7


class OverloadedError(NeuronaError):
    """The model's queue is full, or a message was too large.

    retry_after: seconds after which there may be room; None where waiting does not help.
    """

    code = 8

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.retry_after = retry_after


class WrongTaskError(NeuronaError):
    """`classify` of a model that does not classify, or `regress` of one that does."""

    code = 9


class ServerError(NeuronaError):
    """A fault of the server or of the model; the server's log says why."""

    code = 13


class UnavailableError(NeuronaError, ConnectionError):
    """No server could be reached, or it was stopping, as often as the call was tried."""

    code = 14


class UnreachableError(UnavailableError):
    """No server could be reached, for as long as the client's `Retries` are patient."""


class UnauthenticatedError(NeuronaError):
    """The server wants a token, and got none that it knows."""

    code = 16


class ClosedError(NeuronaError, RuntimeError):
    """The client was closed, or belongs to another process or event loop: make a new one."""

    code = 1


_CLASSES: dict[int, type[NeuronaError]] = {
    one.code: one
    for one in (
        InvalidInputError,
        DeadlineError,
        NotFoundError,
        PermissionDeniedError,
        WrongTaskError,
        UnavailableError,
        UnauthenticatedError,
    )
}
_RETRY_AFTER = ("retry-after-ms", "grpc-retry-pushback-ms")


def from_status(
    code: int, message: str, retry_after: float | None = None, request_id: str = ""
) -> NeuronaError:
    """The error for the status that a call ended with."""
    message = message or f"the call ended with status {code} and no message"
    if code == OverloadedError.code:
        return OverloadedError(message, retry_after=retry_after, request_id=request_id)
    known = _CLASSES.get(code, ServerError)
    return known(message, code=code, request_id=request_id)


def from_trailers(
    code: int, message: str, trailers: Iterable[tuple[str, str | bytes]]
) -> NeuronaError:
    """As `from_status`, with what the trailing metadata says."""
    said = dict(trailers)
    retry_after = None
    for key in _RETRY_AFTER:
        text = said.get(key)
        if isinstance(text, str) and text.isdecimal():
            retry_after = int(text) / 1000
            break
    request_id = said.get("x-request-id", "")
    return from_status(
        code, message, retry_after, request_id if isinstance(request_id, str) else ""
    )
