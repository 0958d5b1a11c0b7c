"""Requests whose sequences have different lengths share a run: ragged batches.

The sequences are padded to the longest one with copies of their last steps, the graph gets the
length of each row, and each request gets the steps of its answer that are its own. Requests wait in
groups of similar lengths: see `LengthGroup`.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from neurona_server.batching.batch import (
    BatchError,
    BatchOutputs,
    RowSlice,
    Run,
    check_output_rows,
    join_inputs,
    split_outputs,
)
from neurona_server.batching.request import Array, Inputs, Outputs, Request
from neurona_server.errors import InvalidArgumentError, InvalidValueError
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm

BUCKETS_PER_DOUBLING = 8
"""Length buckets between a length and twice that length: within its bucket a sequence is padded by
at most 9 %, by 5 % on average. More buckets would make cutting a batch slower."""

MAX_STEPS = 1 << 31
"""Lengths are int32."""

_BUCKET_ENDS = sorted(
    {round(2 ** (index / BUCKETS_PER_DOUBLING)) for index in range(31 * BUCKETS_PER_DOUBLING + 1)}
)


class LengthGroup(NamedTuple):
    """The group of requests whose sequences have similar lengths.

    Those of one `base` can share a run whatever their lengths.
    """

    base: Hashable
    """All sizes of the inputs but the rows and the steps."""

    steps: int
    """The most steps of a request of the group."""


def bucket_end(steps: int) -> int:
    """Return the most steps of the length bucket that a number of steps is in."""
    return _BUCKET_ENDS[bisect_left(_BUCKET_ENDS, steps)]


class LengthGrouper:
    """Returns the groups of a recurrent model's requests: what its signature asks."""

    def __init__(self, form: SequenceForm, inputs: Sequence[str], *, is_mixed: bool = True) -> None:
        """Make it.

        Args:
            form: How the model reads sequences, with axes of requests.
            inputs: The names of the required inputs.
            is_mixed: Whether requests of different lengths share runs. If not, each length is a
                group.
        """
        self._axes = tuple([(name, form.time_axes.get(name, 0)) for name in inputs])
        self._is_mixed = is_mixed

    def __call__(self, inputs: Mapping[str, tuple[Any, tuple[int, ...]]]) -> Hashable:
        """Return the group of a request by the dtypes and shapes of its inputs.

        If its sequences differ in their lengths, as of a source and a target, it shares runs with
        equal shapes only.

        Raises:
            InvalidArgumentError: A sequence has no step.
        """
        steps = 0
        base = []
        is_equal = True
        for name, axis in self._axes:
            shape = inputs[name][1]
            if not axis:
                base.append(shape[1:])
                continue
            if axis >= len(shape):  # of a model that takes several numbers of axes
                return tuple([inputs[name][1][1:] for name, _ in self._axes])
            own_steps = shape[axis]
            if not own_steps:
                raise InvalidArgumentError(
                    f"input {name!r} has shape {list(shape)}: no step "
                    f"(expected 1 step or more along axis {axis})"
                )
            is_equal = is_equal and steps in (0, own_steps)
            steps = own_steps
            base.append((*shape[1:axis], *shape[axis + 1 :]))
        if not is_equal or steps > MAX_STEPS:
            return tuple([inputs[name][1][1:] for name, _ in self._axes])
        return LengthGroup(tuple(base), bucket_end(steps) if self._is_mixed else steps)


class RaggedJoiner:
    """The `RowJoiner` of a recurrent model: joins sequences of different lengths, and states.

    A request may have STATE among its inputs, shape (rows, state size); it then gets the next state
    as its last output. Others of its batch begin with zeros. It may have LENGTHS, shape (rows,), if
    its own rows differ in their lengths.
    """

    def __init__(
        self, form: SequenceForm, on_run: Callable[[int, int], object] = lambda *_: None
    ) -> None:
        """Make it.

        Args:
            form: How the model reads sequences, with axes of requests.
            on_run: Called after each run with its steps, those of padding included, and with those
                of its requests; both are sums over rows.
        """
        self._form = form
        self._on_run = on_run
        self._sequences, self._axis = next(iter(form.time_axes.items()))
        self.rounds_steps = False
        """Whether a run has the most steps of its length bucket: for devices that prepare each new
        shape."""

    def group(self, requests: Sequence[Request]) -> Hashable:
        group = requests[0].group
        if len(requests) > 1 and isinstance(group, LengthGroup):
            return max([request.group for request in requests], key=_steps_of_group)
        return group

    def join(self, requests: Sequence[Request], padded_rows: int, run: Run | None) -> Inputs:
        steps, run_steps = self._count_steps(requests)
        with_state = [STATE in request.inputs for request in requests]
        has_state = any(with_state)
        has_lengths = any(LENGTHS in request.inputs for request in requests)
        is_ragged = bool(steps) and (min(steps) < run_steps or has_lengths)
        if not is_ragged and has_state == all(with_state):
            return join_inputs(requests, padded_rows, None if has_state else run)
        padding = max(padded_rows - sum([request.rows for request in requests]), 0)
        joined: dict[str, Array] = {}
        for name in requests[0].inputs:
            if name in (STATE, LENGTHS):
                continue
            arrays = [request.inputs[name] for request in requests]
            axis = self._form.time_axes.get(name)
            if is_ragged and axis is not None:
                joined[name] = _join_sequences(arrays, axis, run_steps, padding)
            else:
                joined[name] = _join_rows(arrays, padding)
        if is_ragged:
            self._add_lengths(joined, requests, steps, padding)
        if has_state:
            size = self._form.state_size
            states = [
                request.inputs[STATE] if given else np.zeros((request.rows, size), np.float32)
                for request, given in zip(requests, with_state, strict=True)
            ]
            joined[STATE] = _join_rows(states, padding)
        return joined

    def split(
        self, outputs: Outputs, requests: Sequence[Request], padded_rows: int
    ) -> list[Outputs]:
        steps, run_steps = self._count_steps(requests)
        rows = [request.rows for request in requests]
        time_axes = self._form.output_time_axes if steps else {}
        with_state = [STATE in request.inputs for request in requests]
        if steps:
            run_rows = max(padded_rows, sum(rows))
            own = [count * own_steps for count, own_steps in zip(rows, steps, strict=True)]
            self._on_run(run_rows * run_steps, sum(own))
        is_cut = bool(time_axes) and min(steps) < run_steps
        if not is_cut and all(with_state) == any(with_state):
            return split_outputs(outputs, requests, padded_rows)
        check_output_rows(outputs, max(padded_rows, sum(rows)))
        if is_cut:
            _check_output_steps(outputs, time_axes, run_steps)
        else:
            steps = [run_steps] * len(requests)
        return _split_ragged(
            outputs, rows, steps, with_state, time_axes if is_cut else {}, any(with_state)
        )

    def _count_steps(self, requests: Sequence[Request]) -> tuple[list[int], int]:
        """Return the steps of each request and those of their run; none of other groups."""
        if not isinstance(requests[0].group, LengthGroup):
            return [], 0
        name, axis = self._sequences, self._axis
        steps = [request.inputs[name].shape[axis] for request in requests]
        longest = max(steps)
        return steps, bucket_end(longest) if self.rounds_steps else longest

    def _add_lengths(
        self,
        joined: dict[str, Array],
        requests: Sequence[Request],
        steps: Sequence[int],
        padding: int,
    ) -> None:
        """Add the length of each row.

        Lengths that callers send in an input of the file are checked here: one that is longer than
        its own sequence is no error in the joined arrays.

        Raises:
            InvalidValueError: Such a length is out of bounds.
        """
        own_steps = np.repeat(np.array(steps, np.int32), [request.rows for request in requests])
        if name := self._form.lengths_input:
            sent = joined[name][: len(own_steps)].reshape(len(own_steps), -1)
            if (sent < 1).any() or (sent > own_steps[:, None]).any():
                raise InvalidValueError(f"input {name!r} has lengths out of bounds")
        stop = 0
        for request in requests:
            start, stop = stop, stop + request.rows
            if (lengths := request.inputs.get(LENGTHS)) is not None:
                own_steps[start:stop] = lengths
        joined[LENGTHS] = _join_rows([own_steps], padding)


def _steps_of_group(group: Any) -> int:
    steps: int = group.steps
    return steps


def _join_rows(arrays: Sequence[Array], padding: int) -> Array:
    """Return rows one below the other, and copies of the last one."""
    if padding:
        arrays = [*arrays, np.repeat(arrays[-1][-1:], padding, axis=0)]
    return np.concatenate(arrays)


def _join_sequences(arrays: Sequence[Array], axis: int, steps: int, padding: int) -> Array:
    """Return sequences one below the other, each padded to `steps` with copies of its last step.

    Args:
        arrays: Of equal shapes but for axis 0 and `axis`.
        axis: Along which steps follow each other.
        steps: Size of that axis in the result.
        padding: Copies of the last row to add.
    """
    first = arrays[0]
    rows = sum([len(array) for array in arrays]) + padding
    joined = np.empty((rows, *first.shape[1:axis], steps, *first.shape[axis + 1 :]), first.dtype)
    # A view with the steps along axis 1: copies by it are copies into the result.
    target = joined if axis == 1 else np.moveaxis(joined, axis, 1)
    start = stop = 0
    for array in arrays:
        source = array if axis == 1 else np.moveaxis(array, axis, 1)
        stop = start + len(source)
        own_steps = source.shape[1]
        target[start:stop, :own_steps] = source
        if own_steps < steps:
            target[start:stop, own_steps:] = source[:, -1:]
        start = stop
    if padding:
        target[start:] = target[start - 1 : start]
    return joined


def _check_output_steps(outputs: Outputs, time_axes: Mapping[int, int], steps: int) -> None:
    for index, axis in time_axes.items():
        shape = outputs[index].shape
        if axis >= len(shape) or shape[axis] != steps:
            raise BatchError(
                f"output {index} has shape {list(shape)} (expected {steps} steps along axis {axis})"
            )


def _split_ragged(
    outputs: Outputs,
    rows: Sequence[int],
    steps: Sequence[int],
    with_state: Sequence[bool],
    time_axes: Mapping[int, int],
    has_state: bool,
) -> list[Outputs]:
    """Return each request's rows of the outputs, cut to its steps.

    Requests one after the other that have as many steps share one `BatchOutputs`, so that their
    responses can share work.
    """
    parts: list[Outputs] = []
    segment: BatchOutputs | None = None
    segment_key: tuple[int, bool] | None = None
    segment_start = start = 0
    for index, count in enumerate(rows):
        key = (steps[index], with_state[index])
        if segment is None or key != segment_key:
            segment_key, segment_start = key, start
            stop, following = start, index
            while following < len(rows) and (steps[following], with_state[following]) == key:
                stop += rows[following]
                following += 1
            own = outputs if with_state[index] or not has_state else outputs[:-1]
            cut = [
                _cut(own[i], start, stop, time_axes.get(i), steps[index]) for i in range(len(own))
            ]
            segment = BatchOutputs(cut, sum(rows))
        parts.append(RowSlice(segment, start - segment_start, count))
        start += count
    return parts


def _cut(output: Array, start: int, stop: int, axis: int | None, steps: int) -> Array:
    rows = output[start:stop]
    if axis is None:
        return rows
    cut: Array = rows[(slice(None),) * axis + (slice(steps),)]
    return cut
