"""The exceptions of the client: one class for each thing that a caller may do about a failure.

    try:
        client.predict("lenet5", pixels, timeout=0.1)
    except neurona_client.OverloadedError as error:
        time.sleep(error.retry_after or 1.0)

All of them derive from `NeuronaError`. The message says what was received and what was expected.
"""

from collections.abc import Iterable


class NeuronaError(Exception):
    """Base class of all failures of a call.

    Attributes:
        code: number of the gRPC status (google.rpc.Code), 1 to 16.
        request_id: what the server's log calls the request; empty if the server did not say.
    """

    code = 2

    def __init__(self, message: str, *, code: int | None = None, request_id: str = "") -> None:
        """Create the error.

        Args:
            message: what went wrong.
            code: number of the gRPC status; None: that of the class.
            request_id: what the server's log calls the request.
        """
        super().__init__(message)
        if code is not None:
            self.code = code
        self.request_id = request_id


class InvalidInputError(NeuronaError, ValueError):
    """The name, dtype, shape or value of an input does not fit the model: fix the request."""

    code = 3


class DeadlineExceededError(NeuronaError, TimeoutError):
    """No response arrived within the timeout, or the server dropped the request as too late.

    The message says which: of a model with a latency objective, the server drops requests that it
    could not answer in time any more, also those without a timeout.
    """

    code = 4


class NotFoundError(NeuronaError, LookupError):
    """The server has no such model, version or label; the message lists those that exist."""

    code = 5


class PermissionDeniedError(NeuronaError):
    """The token does not grant this right, or not for this model."""

    code = 7


class OverloadedError(NeuronaError):
    """The request was not admitted, or a message exceeds the size limit.

    It was not admitted because the queue of the model is full, or because the wait in it would
    exceed the timeout or the model's latency objective.

    Attributes:
        retry_after: seconds that it would have waited, and after which to try again; None where
            waiting does not help.
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
        """Create the error.

        Args:
            message: what went wrong.
            code: number of the gRPC status; None: that of the class.
            request_id: what the server's log calls the request.
            retry_after: seconds after which the queue may have room.
        """
        super().__init__(message, code=code, request_id=request_id)
        self.retry_after = retry_after


class WrongTaskError(NeuronaError):
    """`classify` was called for a model that does not classify, or `regress` for one that does.

    Or `session` for a model without a state; the message says why it has none.
    """

    code = 9


class ServerError(NeuronaError):
    """The server or the model failed; the server's log has the reason."""

    code = 13


class UnavailableError(NeuronaError, ConnectionError):
    """Every attempt of the call met a server that was unreachable or shutting down."""

    code = 14


class UnreachableError(UnavailableError):
    """No server was reachable for `Retries.unreachable_timeout` seconds."""


class UnauthenticatedError(NeuronaError):
    """The server requires a token, and the call had none that the server knows."""

    code = 16


class ClosedError(NeuronaError, RuntimeError):
    """The client is closed, or belongs to another process or event loop: create a new one."""

    code = 1


_CLASS_BY_CODE: dict[int, type[NeuronaError]] = {
    error_class.code: error_class
    for error_class in (
        InvalidInputError,
        DeadlineExceededError,
        NotFoundError,
        PermissionDeniedError,
        WrongTaskError,
        UnavailableError,
        UnauthenticatedError,
    )
}
_RETRY_AFTER_KEYS = ("retry-after-ms", "grpc-retry-pushback-ms")
_CAUSES = {
    "WRONG_VERSION_NUMBER": "the server does not use TLS there",
    "CERTIFICATE_VERIFY_FAILED": "no authority that the client trusts has signed its certificate",
    "Hostname Verification Check failed": "its certificate is for another name",
    "Failed to create security handshaker": "its files of certificates and keys are not PEM, or do "
    "not belong together",
    "Trying to connect an http1.x server": "HTTP/1 is spoken there, as at the address of metrics",
}
"""What some messages of gRPC about a failed connection mean."""

_CLOSED_MESSAGES = ("Socket closed", "Connection reset", "Broken pipe")


def error_from_status(
    code: int, message: str, retry_after: float | None = None, request_id: str = ""
) -> NeuronaError:
    """Create the error for the gRPC status that a call ended with.

    Args:
        code: number of the status.
        message: what the server says.
        retry_after: seconds after which another attempt may succeed.
        request_id: what the server's log calls the request.

    Returns:
        An error of the class for that code; `ServerError` for a code without a class of its own.
    """
    message = message or f"call failed with status {code} and no message"
    if code == OverloadedError.code:
        return OverloadedError(message, retry_after=retry_after, request_id=request_id)
    error_class = _CLASS_BY_CODE.get(code, ServerError)
    return error_class(message, code=code, request_id=request_id)


def error_from_trailers(
    code: int, message: str, trailers: Iterable[tuple[str, str | bytes]]
) -> NeuronaError:
    """Create the error for a status and the trailing metadata of the call.

    Args:
        code: number of the status.
        message: what the server says.
        trailers: keys and values; `retry-after-ms` and `x-request-id` are read.

    Returns:
        See `error_from_status`.
    """
    value_by_key = dict(trailers)
    retry_after = None
    for key in _RETRY_AFTER_KEYS:
        text = value_by_key.get(key)
        if isinstance(text, str) and text.isdecimal():
            retry_after = int(text) / 1000
            break
    request_id = value_by_key.get("x-request-id", "")
    return error_from_status(
        code, message, retry_after, request_id if isinstance(request_id, str) else ""
    )


def explain_connect_error(message: str, *, uses_tls: bool) -> str:
    """Add to gRPC's message about a failed connection what it means, where that is known.

    Args:
        message: of gRPC.
        uses_tls: whether the client connects with TLS.
    """
    cause = next((cause for text, cause in _CAUSES.items() if text in message), "")
    if not uses_tls and any(text in message for text in _CLOSED_MESSAGES):
        cause = "a server that requires TLS closes connections without it"
    return f"{message} ({cause})" if cause else message
