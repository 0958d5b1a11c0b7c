"""One request on its way through a queue and a batch."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from neurona_server.batching.policy import Priority
from neurona_server.errors import NeuronaError
from neurona_server.telemetry.trace import Trace

log = logging.getLogger(__name__)

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Outputs = Sequence[Array]


class ExclusiveGroup:
    """The group of one request alone. `unbatched_inputs` names its inputs that have no rows:
    every run of its rows gets all of them."""

    __slots__ = ("unbatched_inputs",)

    def __init__(self, unbatched_inputs: Collection[str]) -> None:
        self.unbatched_inputs = unbatched_inputs


def unbatched_inputs(group: Hashable) -> Collection[str]:
    """The names of such inputs in requests of this group."""
    return group.unbatched_inputs if isinstance(group, ExclusiveGroup) else ()


class RequestHolder(Protocol):
    """Where a request is: in a queue, in a run."""

    def leave(self, request: "Request") -> None:
        """The request ended while it was here."""


class Request(ABC):
    """Inputs that wait for their outputs; a subclass says in `finish` what becomes of these.

    `rows` is their size along axis 0. Requests of equal `group` (the other axes of each
    input) can share a batch. `deadline` is a point in time on the monotonic clock, inf if
    there is none.
    """

    count = 1
    """How many requests of callers it stands for."""

    __slots__ = (
        "_open",
        "deadline",
        "dequeued_at",
        "group",
        "inputs",
        "nbytes",
        "place",
        "priority",
        "queued_at",
        "rows",
    )

    def __init__(
        self,
        inputs: Inputs,
        rows: int,
        group: Hashable,
        deadline: float = math.inf,
        priority: Priority = Priority.NORMAL,
        nbytes: int = 0,
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        # Strings are objects elsewhere, so what came over the wire may say more than the arrays.
        self.nbytes = max(nbytes, sum([array.nbytes for array in inputs.values()]))
        self.group = group
        self.deadline = deadline
        self.priority = priority
        self.place: RequestHolder | None = None
        self.queued_at = 0.0  # when the queue admitted it
        self.dequeued_at = 0.0  # when an instance took it
        # The thread that pops the only element finishes the request. list.pop is atomic, so of
        # two threads (the batch's and the caller's cancellation) exactly one does, without a lock.
        self._open = [True]

    @abstractmethod
    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Passes on the outputs or, if they are None, the error. Called exactly once, from
        the thread that ends the request."""

    @property
    def ended(self) -> bool:
        return not self._open

    @property
    def trace(self) -> Trace | None:
        """None for one that is not traced."""
        return None

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        """What a line of the log that concerns it says beside its message."""
        return {}

    def succeed(self, outputs: Outputs) -> bool:
        """False if it had ended already: nobody is told again."""
        return self._end_here(outputs, None)

    def fail(self, error: NeuronaError) -> bool:
        """False if it had ended already: nobody is told again."""
        return self._end_here(None, error)

    def cancel(self, error: NeuronaError) -> None:
        """Ends it with `error` wherever it is, and has it taken out from there."""
        if self._end(None, error) and (place := self.place) is not None:
            place.leave(self)
            self.place = None

    def divide(self) -> Sequence["Request"]:
        """Requests that together are this one, which has ended then and nobody is told; none if
        it stands for a single one, or had ended."""
        return ()

    def withdraw(self) -> bool:
        """Ends it and tells nobody; False if it had ended already."""
        try:
            self._open.pop()
        except IndexError:
            return False
        return True

    def _end_here(self, outputs: Outputs | None, error: NeuronaError | None) -> bool:
        if not self._end(outputs, error):
            return False
        self.place = None  # it holds its requests: without cycles, what ended is freed at once
        return True

    def _end(self, outputs: Outputs | None, error: NeuronaError | None) -> bool:
        try:
            self._open.pop()
        except IndexError:
            return False
        try:
            self.finish(outputs, error)
        except Exception:  # whoever ends a request must live to end the next one
            log.exception("a request could not be told how it ended", extra=self.log_fields)
        return True
