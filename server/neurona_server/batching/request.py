"""One request on its way through a queue and a batch."""

import contextlib
import logging
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from neurona_server.batching.policy import Priority, QueueTimeout
from neurona_server.errors import NeuronaError
from neurona_server.telemetry.trace import Trace

log = logging.getLogger(__name__)

Array = NDArray[Any]
Inputs = Mapping[str, Array]
Outputs = Sequence[Array]


class ExclusiveGroup:
    """The group of a request that shares a run with no other.

    `unbatched_inputs` names its inputs without rows: each run gets these as a whole.
    """

    __slots__ = ("unbatched_inputs",)

    def __init__(self, unbatched_inputs: Collection[str]) -> None:
        self.unbatched_inputs = unbatched_inputs


def unbatched_inputs(group: Hashable) -> Collection[str]:
    """Return the names of the inputs without rows in requests of this group."""
    return group.unbatched_inputs if isinstance(group, ExclusiveGroup) else ()


class Request(ABC):
    """Inputs that wait for their outputs, which a subclass passes on in `finish`.

    `rows` is the size of the inputs along axis 0. Requests of equal `group` (the other axes of each
    input) can share a batch. `deadline` is a time of the monotonic clock, inf if there is none.
    """

    count = 1
    """The number of callers' requests that it combines."""

    first_row = 0
    """The number of its first row in its caller's request, of which it may be a part."""

    __slots__ = (
        "_unfinished",
        "arrival_lag",
        "deadline",
        "dequeued_at",
        "group",
        "holder",
        "inputs",
        "nbytes",
        "priority",
        "queue_timeout",
        "queued_at",
        "response_order",
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
        # An array of strings has only pointers: the size of the message is closer to the truth.
        self.nbytes = max(nbytes, sum([array.nbytes for array in inputs.values()]))
        self.group = group
        self.deadline = deadline
        self.priority = priority
        self.holder: RequestHolder | None = None
        self.queue_timeout: QueueTimeout | None = None
        self.response_order: ResponseOrder | None = None  # of the requests it must not overtake
        self.arrival_lag = 0.0  # seconds for which its bytes had waited unread
        self.queued_at = 0.0  # when the queue admitted it
        self.dequeued_at = 0.0  # when it left the queue to run
        # The thread that pops the only element finishes the request. list.pop is atomic, so of
        # two threads (the batch's and the caller's cancellation) exactly one does, without a lock.
        self._unfinished = [True]

    @abstractmethod
    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Pass on the outputs or, if they are None, the error.

        Called exactly once, in the thread that finishes the request, by `succeed`, `fail` and
        `cancel`.
        """

    @property
    def ranked_classes(self) -> int:
        """How many of the best classes of each row are wanted of the answer; 0: all values."""
        return 0

    @property
    def parts(self) -> Sequence["Request"]:
        """The requests that fail if this one does: itself, or all parts of a split request."""
        return (self,)

    @property
    def finished(self) -> bool:
        return not self._unfinished

    @property
    def trace(self) -> Trace | None:
        """The trace of the request, None if it is not traced."""
        return None

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        """The fields of log records about this request."""
        return {}

    def succeed(self, outputs: Outputs) -> bool:
        """Finish with `outputs`; return False if the request was finished before."""
        return self._finish_and_release(outputs, None)

    def fail(self, error: NeuronaError) -> bool:
        """Finish with `error`; return False if the request was finished before."""
        return self._finish_and_release(None, error)

    def cancel(self, error: NeuronaError) -> None:
        """Finish with `error`, and have the queue or batch that holds the request drop it."""
        finished = self._finish_once(None, error, in_order=False)
        if finished and (holder := self.holder) is not None:
            holder.discard(self)
            self.holder = None

    def withdraw(self) -> bool:
        """Finish without calling `finish`; return False if the request was finished before."""
        try:
            self._unfinished.pop()
        except IndexError:
            return False
        return True

    def deliver(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Call `finish` of a request that is finished; raise nothing."""
        try:
            self.finish(outputs, error)
        except Exception:  # the thread has other requests to finish
            log.exception("a request's result could not be delivered", extra=self.log_fields)

    def halve(self) -> Sequence["Request"]:
        """Withdraw the request and return two that replace it.

        There are none if the request has a single caller or was finished before.
        """
        return ()

    def _finish_and_release(self, outputs: Outputs | None, error: NeuronaError | None) -> bool:
        if not self._finish_once(outputs, error):
            return False
        self.holder = None  # it refers to its requests: without the cycle both are freed at once
        return True

    def _finish_once(
        self, outputs: Outputs | None, error: NeuronaError | None, *, in_order: bool = True
    ) -> bool:
        try:
            self._unfinished.pop()
        except IndexError:
            return False
        if (order := self.response_order) is None:
            self.deliver(outputs, error)
        elif in_order:
            order.finish(self, outputs, error)
        else:
            self.deliver(outputs, error)
            order.remove(self)
        return True


class RequestHolder(Protocol):
    """The queue or the running batch that a request is in."""

    def discard(self, request: Request) -> None:
        """Drop a request that was finished by another thread."""


class ResponseOrder:
    """Delivers results in the order in which requests were admitted. Thread-safe.

    For models that ask for it: otherwise the order depends on priorities, shapes and the number of
    instances.
    """

    def __init__(self) -> None:
        self._admission = threading.Lock()
        self._lock = threading.Lock()
        # By request, in the order of their admission; None: it is not finished.
        self._results: OrderedDict[Request, tuple[Outputs | None, NeuronaError | None] | None]
        self._results = OrderedDict()
        self._delivering = False

    @contextlib.contextmanager
    def admit(self, request: Request) -> Iterator[None]:
        """Append a request, which the body of the `with` statement puts into the queue.

        A request that the queue rejects is removed again.
        """
        with self._admission:  # or another thread could put its request in between
            with self._lock:
                self._results[request] = None
            request.response_order = self
            try:
                # Only now: once it is in the queue, it may finish with a result to keep.
                if request.finished:
                    self._remove_last(request)
                yield
            except BaseException:
                request.response_order = None
                self._remove_last(request)
                raise

    def _remove_last(self, request: Request) -> None:
        """Remove the request that is being admitted: no other one waits for its result."""
        with self._lock:
            self._results.pop(request, None)

    def replace(self, request: Request, replacements: Sequence[Request]) -> None:
        """Put unfinished requests in the place of one that was withdrawn for them."""
        for one in replacements:
            one.response_order = self
        with self._lock:
            results = self._results
            self._results = OrderedDict()
            for other, result in results.items():
                if other is request:
                    self._results.update(dict.fromkeys(replacements))
                else:
                    self._results[other] = result
        for one in replacements:
            if one.finished:  # cancelled before it was in its place
                self.remove(one)

    def finish(self, request: Request, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Deliver the result of a request once all requests before it are finished."""
        with self._lock:
            self._results[request] = (outputs, error)
        self._deliver()

    def remove(self, request: Request) -> None:
        """Wait no longer for the result of a request."""
        with self._lock:
            self._results.pop(request, None)
        self._deliver()

    def _deliver(self) -> None:
        """Deliver all results whose turn it is, unless another thread does."""
        with self._lock:
            if self._delivering:
                return
            self._delivering = True
        while True:
            with self._lock:
                request = next(iter(self._results), None)
                result = None if request is None else self._results[request]
                if request is None or result is None:
                    self._delivering = False
                    return
                del self._results[request]
            request.deliver(*result)
