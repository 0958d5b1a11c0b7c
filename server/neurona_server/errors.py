"""The errors of the server.

The error of a request has the number of its gRPC status (`code`); `rpc.status` makes the status.
Its message goes to the caller: it names the invalid value and what is expected, and nothing that
only the server's owner should see.
"""

import difflib
from collections.abc import Iterable


class NeuronaError(Exception):
    """An error whose message may go to the caller."""

    code = 13  # number of the gRPC status: INTERNAL
    outcome = "failed"  # label of a request that ends with it, in metrics


class NotFoundError(NeuronaError):
    """Unknown model, version or label."""

    code = 5  # NOT_FOUND
    outcome = "invalid"


class InvalidArgumentError(NeuronaError):
    """The request is malformed, or does not match the model's signature."""

    code = 3  # INVALID_ARGUMENT
    outcome = "invalid"


class InvalidValueError(InvalidArgumentError):
    """An input has a value that the model does not take."""


class NotLoadedError(NeuronaError):
    """A model that a call requested to load cannot be loaded."""

    code = 9  # FAILED_PRECONDITION


class NotAllowedError(NeuronaError):
    """The server's options do not allow the call."""

    code = 9  # FAILED_PRECONDITION
    outcome = "invalid"


class WrongTaskError(NeuronaError):
    """Classify on a regression model, or Regress on a classification model."""

    code = 9  # FAILED_PRECONDITION
    outcome = "invalid"


class StatelessModelError(NeuronaError):
    """A session of a model that has no state, or whose state cannot be opened."""

    code = 9  # FAILED_PRECONDITION
    outcome = "invalid"


class StepAbortedError(NeuronaError):
    """A step of a sequence that waited for an earlier one, which failed."""

    code = 10  # ABORTED
    outcome = "rejected"


class UnsupportedError(NeuronaError):
    """A feature of the protocol that this server does not support."""

    code = 12  # UNIMPLEMENTED
    outcome = "invalid"


class UnauthenticatedError(NeuronaError):
    """The caller has no token, or an unknown one."""

    code = 16  # UNAUTHENTICATED
    outcome = "invalid"


class AlreadyExistsError(NeuronaError):
    """The name is in use."""

    code = 6  # ALREADY_EXISTS
    outcome = "invalid"


class PermissionDeniedError(NeuronaError):
    """The caller's token does not permit the call."""

    code = 7  # PERMISSION_DENIED
    outcome = "invalid"


class TooLargeError(NeuronaError):
    """The request or the response has more bytes than a message may have."""

    code = 8  # RESOURCE_EXHAUSTED
    outcome = "invalid"


class QueueFullError(NeuronaError):
    """The model's queue is full, or the predicted wait exceeds the deadline or latency objective.

    `retry_after` is the number of seconds after which a retry may be admitted.
    """

    code = 8  # RESOURCE_EXHAUSTED
    outcome = "rejected"

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BuffersFullError(QueueFullError):
    """Too many bytes are being received and answered."""


class UnavailableError(NeuronaError):
    """The model or the whole server is stopping and accepts no more requests."""

    code = 14  # UNAVAILABLE
    outcome = "rejected"


class DeadlineExceededError(NeuronaError):
    """The deadline passed, or an admitted request could not be answered in time any more."""

    code = 4  # DEADLINE_EXCEEDED
    outcome = "expired"


class CancelledError(NeuronaError):
    """The caller cancelled the request."""

    code = 1  # CANCELLED
    outcome = "cancelled"


class ModelFailedError(NeuronaError):
    """The model failed on a valid request. The log has the details."""

    def __init__(self) -> None:
        super().__init__("the model failed on this request; the server's log says why")


class RunTooLongError(NeuronaError):
    """The run took longer than max_run_seconds allows, and was terminated."""

    def __init__(self, limit: float) -> None:
        super().__init__(
            f"the run of the model was terminated after {limit:g} s (the option max_run_seconds)"
        )


class DeviceMemoryError(NeuronaError):
    """A single request needs more memory than the device of its run has left.

    `device` is the device's label, as "cuda:0".
    """

    code = 8  # RESOURCE_EXHAUSTED

    def __init__(self, device: str) -> None:
        super().__init__(
            f"out of memory: {device} has no room for a run of this request alone (expected a "
            "smaller request, or one at a time when the device is less busy)"
        )
        self.device = device


class DeviceLostError(UnavailableError):
    """The device of the run does not work any more, and no other device of the model took it over.

    `device` is the device's label, as "cuda:0"; `reason` is what its driver or ONNX Runtime says.
    """

    outcome = "failed"

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"device lost: {device} failed while it ran the request ({reason})")
        self.device = device
        self.reason = reason


def response_too_large(size: int, limit: int) -> TooLargeError:
    """Make the error for a response of `size` bytes."""
    return TooLargeError(
        f"the response has {size} bytes (expected at most {limit}, the option "
        "max_message_bytes): send fewer rows per request"
    )


def forget_frames(error: BaseException) -> None:
    """Remove the tracebacks of an error that its caller has got, and of those that led to it.

    They hold the frames that it has passed, with the request and the model in their variables; if
    one of them holds the error in turn, all of it stays in memory until Python collects cycles.
    """
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__


def quoted(name: str) -> str:
    """Quote a name from a caller for a message: escaped, and cut to 100 characters."""
    text = repr(name[:101])
    return text if len(name) <= 100 else text[:100] + "…'"


def printable(text: str) -> str:
    """Escape all characters that would end a line or change the text around it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class LoadError(Exception):
    """A model cannot be served. The message is one line that names it and the reason."""


class ConfigError(Exception):
    """An option is invalid. The message is one line that names it and what is expected."""


def close_match(key: str, candidates: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean '...'?" if a candidate resembles the key, else ""."""
    close = difflib.get_close_matches(key, [*candidates], n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
