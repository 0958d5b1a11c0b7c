"""What batching needs of whoever traces requests: opaque, and absent where nobody does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from neurona_server.batching.request import Request


class Trace(Protocol):
    """Of one request that is traced."""

    @property
    def trace_id(self) -> str:
        """32 hex digits, as W3C Trace Context has them."""


class RunTimes(NamedTuple):
    """Of one run, by the batcher's clock."""

    started: float
    joined: float
    ran: float
    split: float


class BatchTracer(Protocol):
    """Of one model. Raises nothing; requests that are not traced it passes over."""

    def cut(self, batch: Sequence["Request"]) -> None:
        """They have left the queue together."""

    def ran(self, batch: Sequence["Request"], rows: int, padded: int, times: RunTimes) -> None:
        """A run of `rows`, padded to `padded`, went well; nobody is answered yet."""

    def failed(self, batch: Sequence["Request"], started: float, error: Exception) -> None:
        """A run that began at `started` did not; some of them may be run again."""


class Tracer(Protocol):
    def model(self, name: str, version: int, provider: str) -> BatchTracer: ...
