"""Batches: requests that run together, their joined inputs and the outputs of each.

It also splits a request that is larger than a batch. It is one file since joining and splitting
must agree.
"""

import logging
import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import numpy as np

from neurona_server.batching.device_scheduler import DeviceTurn
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Array, Inputs, Outputs, Request, unbatched_inputs
from neurona_server.errors import CancelledError, ModelFailedError, NeuronaError
from neurona_server.telemetry.trace import Trace

log = logging.getLogger(__name__)


class Run(Protocol):
    """One run of a model, to be used once."""

    def __call__(self, inputs: Inputs) -> Outputs:
        """Block until the run ends and return its outputs, or raise what the model raises."""

    def terminate(self) -> None:
        """Make the run raise as soon as possible, also before it starts. Thread-safe."""


ReserveInputs = Callable[[Mapping[str, tuple[int, ...]]], Inputs | None]
"""What a run with memory of its own for inputs has as `reserve_inputs`: it returns arrays of the
given shapes to join the inputs in, for the call, or None if any will do. They have any values, and
are valid until the run ends."""


@dataclass
class DeviceFailures:
    """What devices have done to the runs of a batch."""

    repeated: Request | None = None
    """The request that has run out of memory alone and runs once more."""

    losses: int = 0
    """Devices that were lost while they ran its requests."""

    lost_at: float = math.inf
    """The time at which its device was found lost while it ran."""


@dataclass(eq=False, slots=True)  # hashable, by identity
class Batch:
    """Requests that left the queue together: of one group, or of groups that share a run."""

    requests: list[Request] = field(default_factory=list)
    """The requests to run."""

    expired: list[Request] = field(default_factory=list)
    """Requests whose deadlines had passed: they fail without a run."""

    level_rows: dict[Priority, int] = field(default_factory=dict)
    """The rows of each level that it has."""

    is_rerun: bool = False
    """Whether its requests have left the queue before, with a batch that was interrupted."""

    turn: DeviceTurn | None = None
    """Its slot of the device; None while it runs inline."""

    predicted_seconds: float = 0.0
    """Of the run of all of its requests."""

    run: "RunningBatch | None" = None
    """The current run."""

    run_started: float = math.inf
    """The time at which the current run started; inf without one."""

    interrupted: bool = False
    """Whether the current run was terminated and no further one may start."""

    abandoned: bool = False
    """Whether nobody waits for its run any more, which does not return from a lost device."""

    device_failures: "DeviceFailures | None" = None
    """None before the first one."""

    slots: "RequestSlots | None" = None
    """Where its requests are, if they need several runs."""

    instance_slots: "RequestSlots | None" = None
    """The slots of the instance that runs it, if it has some."""

    # Not set before it runs: they would make every batch slower.
    estimate: Any = field(init=False)
    """What admission expects of its run, a `RunningEstimate`."""

    thread: threading.Thread = field(init=False)
    """The thread of the instance that runs it; not set on the CPU and inline."""

    @property
    def rows(self) -> int:
        return sum([request.rows for request in self.requests])

    @property
    def queue_seconds(self) -> list[float]:
        """The seconds that each caller's request has waited in the queue."""
        return [r.dequeued_at - r.queued_at for r in self.requests for _ in range(r.count)]

    def note_device_failures(self) -> "DeviceFailures":
        """Return the failures of its devices, for one more to be added."""
        if self.device_failures is None:
            self.device_failures = DeviceFailures()
        return self.device_failures

    def start_run(self, run: "RunningBatch", now: float) -> None:
        """Make `run` the current one; it is terminated if the batch was interrupted meanwhile."""
        self.run_started = now
        self.run = run  # set first, or `interrupt` could miss it
        if self.interrupted:
            run.terminate()

    def finish_run(self) -> None:
        """Note that the current run has ended."""
        self.run_started, self.run = math.inf, None

    def interrupt(self) -> None:
        """Terminate the current run from another thread, and have no further one started.

        Requests that are unfinished then run again, in another batch.
        """
        self.interrupted = True
        if (run := self.run) is not None:
            run.terminate()

    def halve(self, requests: Sequence[Request]) -> list[Sequence[Request]]:
        """Return two halves of some of the batch's requests.

        There are none if `requests` is one request of one caller.
        """
        if len(requests) > 1:
            middle = len(requests) // 2
            return [requests[:middle], requests[middle:]]
        halves = requests[0].halve()
        if halves and (order := requests[0].response_order) is not None:
            order.replace(requests[0], halves)
        if halves and self.slots is not None:
            self.slots.replace(requests[0], halves)
        self.requests.extend(halves)  # so that what finishes the batch finishes them too
        return [[half] for half in halves]

    def halve_rows(self, request: Request) -> list[Sequence[Request]]:
        """Return two parts of a request of one caller, each with half of its rows.

        There are none if it has one row only, or was finished before.
        """
        if request.rows < 2 or request.finished:
            return []
        parts = split_request(request, -(-request.rows // 2))
        for part in parts:
            part.queued_at, part.dequeued_at = request.queued_at, request.dequeued_at
        if self.slots is not None:
            self.slots.replace(request, parts)
        self.requests.extend(parts)
        return [[part] for part in parts]


class RunningBatch:
    """The `RequestHolder` of requests that run: it terminates the run once all are finished.

    Any thread may terminate it.
    """

    def __init__(self, requests: Sequence[Request], run: Run) -> None:
        self.requests = requests
        self._run = run
        self.terminated = False
        for request in requests:
            request.holder = self
        self._terminate_if_unneeded()  # some may have been finished just before

    def discard(self, _: Request) -> None:
        self._terminate_if_unneeded()

    def terminate(self) -> None:
        """Make the run end with an exception as soon as possible."""
        self.terminated = True
        self._run.terminate()

    def _terminate_if_unneeded(self) -> None:
        if not self.terminated and all(request.finished for request in self.requests):
            self.terminate()


class BatchOutputs:
    """The outputs of one run.

    Response writers keep in `cache` the data that all responses share.
    """

    __slots__ = ("cache", "outputs", "run_rows")

    def __init__(self, outputs: Outputs, run_rows: int = 0) -> None:
        self.outputs = outputs
        self.run_rows = run_rows
        """Rows of all requests of the run, without padding; 0: unknown."""
        self.cache: dict[Hashable, Any] = {}


class RowSlice(Sequence[Array]):
    """One request's rows of a run's outputs, sliced when they are read."""

    __slots__ = ("batch", "rows", "start", "stop")

    def __init__(self, batch: BatchOutputs, start: int, rows: int) -> None:
        self.batch = batch
        self.start = start
        self.rows = rows
        self.stop = start + rows

    def __len__(self) -> int:
        return len(self.batch.outputs)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [output[self.start : self.stop] for output in self.batch.outputs[index]]
        output: Array = self.batch.outputs[index][self.start : self.stop]
        return output


class BatchError(Exception):
    """A model returned a different number of rows than it was given."""


def join_inputs(
    requests: Sequence[Request], padded_rows: int = 0, run: Run | None = None
) -> Inputs:
    """Concatenate the inputs of requests of one group along axis 0.

    They are padded to `padded_rows` with copies of the last row, which the model surely accepts.
    If the `run` of them has memory for them, they are written there.
    """
    first = requests[0].inputs
    padding = padded_rows - sum([request.rows for request in requests])
    if run is not None:
        reserve: ReserveInputs | None = getattr(run, "reserve_inputs", None)
        targets = reserve and _reserve_inputs(requests, max(padding, 0), reserve)
        if targets:
            _join_in_place(requests, targets)
            return targets
    if len(requests) == 1 and padding <= 0:
        # A view of a message starts where the message has it; a runtime may need it aligned.
        return {name: a if a.flags.aligned else a.copy() for name, a in first.items()}
    joined: dict[str, Array] = {}
    unbatched = unbatched_inputs(requests[0].group)
    for name in first:
        if name in unbatched:
            joined[name] = first[name]
            continue
        arrays = [request.inputs[name] for request in requests]
        if padding > 0:
            arrays.append(np.repeat(arrays[-1][-1:], padding, axis=0))
        joined[name] = np.concatenate(arrays)
    return joined


def _reserve_inputs(
    requests: Sequence[Request], padding: int, reserve: ReserveInputs
) -> Inputs | None:
    group = requests[0].group
    is_joined = len(requests) > 1 or padding > 0
    unbatched = unbatched_inputs(group)
    rows = padding + sum([request.rows for request in requests])
    return reserve(
        {
            name: (rows, *array.shape[1:]) if is_joined and name not in unbatched else array.shape
            for name, array in requests[0].inputs.items()
        }
    )


def _join_in_place(requests: Sequence[Request], targets: Inputs) -> None:
    """Write the inputs of requests into arrays, and copies of the last row into what is left."""
    unbatched = unbatched_inputs(requests[0].group)
    for name, target in targets.items():
        array = requests[0].inputs[name]
        if name in unbatched or target.shape == array.shape:
            np.copyto(target, array, casting="equiv")
            continue
        start = 0
        for request in requests:
            stop = start + request.rows
            np.copyto(target[start:stop], request.inputs[name], casting="equiv")
            start = stop
        target[start:] = target[start - 1 : start]


def split_outputs(
    outputs: Outputs, requests: Sequence[Request], padded_rows: int = 0
) -> list[Outputs]:
    """Return each request's rows of every output, in the order of the requests.

    Raises:
        BatchError: The size of an output along axis 0 is not that of the batch, padded to
            `padded_rows`: a request could get the outputs of another one.
    """
    rows = sum([request.rows for request in requests])
    check_output_rows(outputs, max(padded_rows, rows))
    batch = BatchOutputs(outputs, rows)
    slices: list[Outputs] = []
    start = 0
    for request in requests:
        slices.append(RowSlice(batch, start, request.rows))
        start += request.rows
    return slices


def check_output_rows(outputs: Outputs, rows: int) -> None:
    """Raise BatchError if the size of an output along axis 0 is not that of the run."""
    for index, output in enumerate(outputs):
        if output.ndim == 0 or output.shape[0] != rows:
            raise BatchError(
                f"output {index} has shape {list(output.shape)} (expected {rows} rows)"
            )


class RowJoiner(Protocol):
    """How the rows of several requests share a run."""

    def group(self, requests: Sequence[Request]) -> Hashable:
        """Return the group whose cost a run of the requests has."""

    def join(self, requests: Sequence[Request], padded_rows: int, run: Run | None) -> Inputs:
        """Return the inputs of a run; see `join_inputs`.

        Raises:
            InvalidValueError: Values of a request are out of bounds.
        """

    def split(
        self, outputs: Outputs, requests: Sequence[Request], padded_rows: int
    ) -> list[Outputs]:
        """Return the outputs of each request, in the order of the requests.

        What a batcher delivers is a `RowSlice` of each: coalesced requests read their rows of it.

        Raises:
            BatchError: An output has another shape than that of the run.
        """


class RequestSlots(RowJoiner, Protocol):
    """Requests that need several runs each: others join them before a run, and leave after it.

    They belong to one thread. `split` returns the outputs of the requests in `pop_ended`.
    """

    @property
    def requests(self) -> Sequence[Request]:
        """All in the slots; some may be finished."""

    @property
    def rows(self) -> int:
        """The rows of these requests. From any thread."""

    @property
    def room(self) -> int:
        """The rows that may join, 0 or less if there is no room."""

    def look_ahead(self, rows: int, group: Hashable, priority: Priority) -> tuple[float, int]:
        """Return the predicted seconds until so many rows more run, and the rows of their runs.

        With None for the group, those of a request that runs after all others. From any thread.
        """

    def pop_ended(self) -> Sequence[Request]:
        """Return, once, the requests that have ended with the run that was split last."""

    def add(self, requests: Sequence[Request]) -> bool:
        """Have requests join; return False if they must run in another way."""

    def next_requests(self, max_rows: int) -> list[Request]:
        """Return the requests of the next run; finished requests leave their slots."""

    def remove(self, requests: Sequence[Request]) -> None:
        """Have requests leave their slots, to begin again elsewhere."""

    def replace(self, request: Request, replacements: Sequence[Request]) -> None:
        """Put requests, each with some of the rows, in the place of one that is in the slots."""


class EqualShapeJoiner:
    """Joins requests of one group, whose inputs differ in their rows only."""

    def group(self, requests: Sequence[Request]) -> Hashable:
        return requests[0].group

    # The functions themselves: each batch of any model would pay for calls in between.
    join = staticmethod(join_inputs)
    split = staticmethod(split_outputs)


def split_request(request: Request, max_rows: int) -> list[Request]:
    """Split a request into requests of at most `max_rows`.

    The given request finishes when the last part has. The first part that fails makes the request
    fail and removes the other parts from the queue; so does a cancellation of the request.
    """
    if request.rows <= max_rows:
        return [request]
    return _SplitRequest(request, max_rows).parts


class _SplitRequest:
    """The `RequestHolder` of a request that runs in parts."""

    def __init__(self, request: Request, max_rows: int) -> None:
        self._request = request
        self._outputs: dict[Request, Outputs] = {}
        self._lock = threading.Lock()  # parts may finish in several instances at once
        self.parts: list[Request] = [
            self._part(start, min(start + max_rows, request.rows))
            for start in range(0, request.rows, max_rows)
        ]
        request.holder = self

    def discard(self, _: Request) -> None:
        self._cancel_parts()

    def finish_part(
        self, part: Request, outputs: Outputs | None, error: NeuronaError | None
    ) -> None:
        """Finish the request if the part has failed or was the last one."""
        if outputs is None:
            if self._request.fail(error or ModelFailedError()):
                self._cancel_parts()
            return
        with self._lock:
            self._outputs[part] = outputs
            if len(self._outputs) < len(self.parts):
                return
        ordered = [self._outputs[part] for part in self.parts]
        try:
            joined: list[Array] = [np.concatenate(arrays) for arrays in zip(*ordered, strict=True)]
        except ValueError:  # outputs whose other axes depend on the data
            log.exception(
                "the outputs of the parts of a request cannot be joined",
                extra=self._request.log_fields,
            )
            self._request.fail(ModelFailedError())
        else:
            self._request.succeed(joined)

    def _part(self, start: int, stop: int) -> Request:
        request = self._request
        unbatched = unbatched_inputs(request.group)
        inputs: Inputs = {
            name: array if name in unbatched else array[start:stop]
            for name, array in request.inputs.items()
        }
        rows = stop - start
        return _Part(self, request, inputs, start, rows, request.nbytes * rows // request.rows)

    def _cancel_parts(self) -> None:
        for part in self.parts:
            part.cancel(CancelledError("another part of the request failed or was cancelled"))


class _Part(Request):
    """Some rows of a request that was split."""

    __slots__ = ("_request", "_split", "first_row")

    def __init__(
        self,
        split: _SplitRequest,
        request: Request,
        inputs: Inputs,
        first_row: int,
        rows: int,
        nbytes: int,
    ) -> None:
        super().__init__(inputs, rows, request.group, request.deadline, request.priority, nbytes)
        self.first_row = first_row
        self.queue_timeout = request.queue_timeout
        self.arrival_lag = request.arrival_lag
        self._request = request
        self._split: _SplitRequest | None = split

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        split, self._split = self._split, None  # without the cycle both are freed at once
        if split is not None:
            split.finish_part(self, outputs, error)

    @property
    def parts(self) -> Sequence[Request]:
        split = self._split
        return (self,) if split is None else split.parts

    @property
    def trace(self) -> Trace | None:
        return self._request.trace

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return self._request.log_fields
