"""What was taken out of a queue, to be run together."""

import logging
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs, Request, unbatched_inputs
from neurona_server.errors import CancelledError, ModelFailedError, NeuronaError
from neurona_server.telemetry.trace import Trace

log = logging.getLogger(__name__)


class BatchError(Exception):
    """A model returned other rows than it was given."""


class BatchOutputs:
    """The outputs of one run. Whoever writes answers keeps in `memo` what all of them need."""

    __slots__ = ("memo", "outputs")

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.memo: dict[Hashable, Any] = {}


class RowSlice(Sequence[Array]):
    """One request's rows of a run's outputs, cut out when they are asked for."""

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


def join(requests: Sequence[Request], rows: int = 0) -> Inputs:
    """The inputs of requests of one group, one below the other along axis 0.

    Padded to `rows` with copies of the last row: one that the model can take for certain.
    """
    first = requests[0].inputs
    padding = rows - sum([request.rows for request in requests])
    if len(requests) == 1 and padding <= 0:
        # A view on a message starts where the message has it; a runtime may want better.
        return {name: one if one.flags.aligned else one.copy() for name, one in first.items()}
    joined: dict[str, Array] = {}
    whole = unbatched_inputs(requests[0].group)
    for name in first:
        if name in whole:
            joined[name] = first[name]
            continue
        parts = [request.inputs[name] for request in requests]
        if padding > 0:
            parts.append(np.repeat(parts[-1][-1:], padding, axis=0))
        joined[name] = np.concatenate(parts)
    return joined


def split(outputs: Outputs, requests: Sequence[Request], rows: int = 0) -> list[Outputs]:
    """Each request's own rows of every output, in the order of the requests.

    `rows` is what the batch was padded to. Raises BatchError when an output's size along
    axis 0 is not that of the batch: handing its rows out would give somebody another one's
    answer.
    """
    own = sum([request.rows for request in requests])
    expected = max(rows, own)
    for index, output in enumerate(outputs):
        if output.ndim == 0 or output.shape[0] != expected:
            raise BatchError(
                f"output {index} has shape {list(output.shape)} for a batch of {expected} rows"
            )
    ran = BatchOutputs(outputs)
    parts: list[Outputs] = []
    start = 0
    for request in requests:
        parts.append(RowSlice(ran, start, request.rows))
        start += request.rows
    return parts


def split_request(request: Request, max_rows: int) -> list[Request]:
    """Requests of at most `max_rows` each, that end the given one when the last has ended.

    The first part that fails fails the whole, and takes the other parts out of the queue;
    so does a whole that is cancelled.
    """
    if request.rows <= max_rows:
        return [request]
    return _Parts(request, max_rows).parts


class _Parts:
    def __init__(self, whole: Request, max_rows: int) -> None:
        self._whole = whole
        self._outputs: dict[Request, Outputs] = {}
        self._lock = threading.Lock()  # parts may end in several instances at once
        self.parts = [
            self._part(start, min(start + max_rows, whole.rows))
            for start in range(0, whole.rows, max_rows)
        ]
        whole.place = self

    def leave(self, _: Request) -> None:
        self._cancel_parts()

    def _part(self, start: int, stop: int) -> Request:
        whole = self._whole
        uncut = unbatched_inputs(whole.group)
        inputs: Inputs = {
            name: array if name in uncut else array[start:stop]
            for name, array in whole.inputs.items()
        }
        rows = stop - start
        nbytes = whole.nbytes * rows // whole.rows
        return _Part(self, whole, inputs, rows, nbytes)

    def finish_part(
        self, part: Request, outputs: Outputs | None, error: NeuronaError | None
    ) -> None:
        if outputs is None:
            if self._whole.fail(error or ModelFailedError()):
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
                "the parts of a request gave outputs that do not fit together",
                extra=self._whole.log_fields,
            )
            self._whole.fail(ModelFailedError())
        else:
            self._whole.succeed(joined)

    def _cancel_parts(self) -> None:
        for part in self.parts:
            part.cancel(CancelledError("another part of the request ended it"))


class _Part(Request):
    """Some rows of a request that was split."""

    __slots__ = ("_split", "_whole")

    def __init__(
        self, split: _Parts, whole: Request, inputs: Inputs, rows: int, nbytes: int
    ) -> None:
        super().__init__(inputs, rows, whole.group, whole.deadline, whole.priority, nbytes)
        self._whole = whole
        self._split: _Parts | None = split

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        split, self._split = self._split, None  # each knows the other: what has ended is freed
        if split is not None:
            split.finish_part(self, outputs, error)

    @property
    def trace(self) -> Trace | None:
        return self._whole.trace

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return self._whole.log_fields


class Run(Protocol):
    """One run of a model, to be used once."""

    def __call__(self, inputs: Inputs) -> Outputs:
        """Blocks until the outputs are there. Raises whatever the model raises."""

    def terminate(self) -> None:
        """Makes a run that is under way, or yet to come, raise as soon as it can."""


class RunningBatch:
    """The `RequestHolder` of the requests of a batch; while some of them want it, it runs on."""

    def __init__(self, batch: Sequence[Request], run: Run) -> None:
        self.batch = batch
        self._run = run
        self.terminated = False
        for request in batch:
            request.place = self
        self._check()  # some may have ended before they knew this place

    def leave(self, _: Request) -> None:
        self._check()

    def _check(self) -> None:
        if not self.terminated and all(request.ended for request in self.batch):
            self.terminated = True
            self._run.terminate()


@dataclass(eq=False)  # told apart by identity
class Batch:
    """A batch to run, and what must not run any more."""

    batch: list[Request] = field(default_factory=list)
    expired: list[Request] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum([request.rows for request in self.batch])

    @property
    def waits(self) -> list[float]:
        """Seconds from admission to the cut, of each caller's request."""
        return [one.dequeued_at - one.queued_at for one in self.batch for _ in range(one.count)]

    def halves(self, some: Sequence[Request]) -> list[Sequence[Request]]:
        """Of some of the batch, two halves; none of a single request of a single caller."""
        if len(some) > 1:
            middle = len(some) // 2
            return [some[:middle], some[middle:]]
        parts = some[0].divide()
        self.batch.extend(parts)  # so that whoever ends the batch ends them too
        return [[part] for part in parts]
