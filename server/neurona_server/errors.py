"""What can go wrong, in the server's own words.

The errors of a request carry the number of their gRPC status (`code`), of which `rpc.status`
makes the status. Their messages go to the caller, so they name what came and what was expected
and nothing that only the server's owner should see.
"""

import difflib
from collections.abc import Iterable


class NeuronaError(Exception):
    """Every error that a caller may be told about."""

    code = 13  # the number of the gRPC status that it becomes: INTERNAL
    outcome = "failed"  # how metrics count a request that ended with it


class NotFoundError(NeuronaError):
    """There is no such model, version or label."""

    code = 5  # NOT_FOUND
    outcome = "invalid"


class InvalidArgumentError(NeuronaError):
    """The request cannot be understood, or does not fit the model's signature."""

    code = 3  # INVALID_ARGUMENT
    outcome = "invalid"


class NotLoadedError(NeuronaError):
    """A model that somebody asked to be loaded cannot be."""

    code = 9  # FAILED_PRECONDITION


class NotAllowedError(NeuronaError):
    """The server's options do not allow what was asked."""

    code = 9  # FAILED_PRECONDITION
    outcome = "invalid"


class WrongTaskError(NeuronaError):
    """Classify on a regression model, or Regress on a classification model."""

    code = 9  # FAILED_PRECONDITION
    outcome = "invalid"


class UnsupportedError(NeuronaError):
    """The protocol knows it, this server does not do it."""

    code = 12  # UNIMPLEMENTED
    outcome = "invalid"


class UnauthenticatedError(NeuronaError):
    """The caller has no token, or one that is not known."""

    code = 16  # UNAUTHENTICATED
    outcome = "invalid"


class AlreadyExistsError(NeuronaError):
    """The name is taken."""

    code = 6  # ALREADY_EXISTS
    outcome = "invalid"


class PermissionDeniedError(NeuronaError):
    """The caller's token does not allow it."""

    code = 7  # PERMISSION_DENIED
    outcome = "invalid"


class TooLargeError(NeuronaError):
    """An answer is larger than a message may be."""

    code = 8  # RESOURCE_EXHAUSTED
    outcome = "invalid"


class QueueFullError(NeuronaError):
    """The model's queue has no room. `retry_after` (seconds) is when it may have."""

    code = 8  # RESOURCE_EXHAUSTED
    outcome = "rejected"

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(NeuronaError):
    """The model, or the whole server, takes no more requests."""

    code = 14  # UNAVAILABLE
    outcome = "rejected"


class DeadlineExceededError(NeuronaError):
    """The deadline passed before the request ran."""

    code = 4  # DEADLINE_EXCEEDED
    outcome = "expired"


class CancelledError(NeuronaError):
    """The caller does not want the answer any more."""

    code = 1  # CANCELLED
    outcome = "cancelled"


class ModelFailedError(NeuronaError):
    """The model failed on a batch that it should have run. The log has the detail."""

    def __init__(self) -> None:
        super().__init__("the model failed on this request; the server's log says why")


def response_too_large(size: int, expected: int) -> TooLargeError:
    return TooLargeError(
        f"the answer has {size} bytes; expected at most {expected} (max_message_bytes): "
        "ask for fewer rows at a time"
    )


def quoted(name: str) -> str:
    """What a caller called something, fit to stand in a message: escaped, and not too long."""
    text = repr(name[:101])
    return text if len(name) <= 100 else text[:100] + "…'"


def printable(text: str) -> str:
    """One line, with nothing in it that would end the line or change what stands around it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class LoadError(Exception):
    """A model cannot be served. The message is one line that says which and why."""


class ConfigError(Exception):
    """An option is wrong. The message is one line that says which and what was expected."""


def close_match(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, [*known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
