"""Cellular batching: sequences run in chunks of a few steps, and join and leave between them.

A short sequence waits neither for the longest one of its batch nor for that of the batch before.
The idea is that of BatchMaker (Gao, Yu, Wu and Li, "Low latency RNN inference with cellular
batching", EuroSys 2018), for graphs that take the state of each row and return the next one.

It is one file since all that is known of a row, between two runs, is in arrays that joining,
running and leaving share.
"""

import itertools
import math
import time
from bisect import insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_server.batching.backlog import MergedBacklog, Place
from neurona_server.batching.batch import (
    BatchError,
    BatchOutputs,
    RowSlice,
    Run,
    check_output_rows,
)
from neurona_server.batching.policy import WEIGHTS, Priority
from neurona_server.batching.request import Array, Inputs, Outputs, Request
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm
from neurona_server.sequences.merging import RowLimits
from neurona_server.sequences.ragged import LengthGroup

Cost = Callable[[int, Hashable], float]
"""Seconds of a run by its rows and group: `CostModel.predict`."""

CHUNK_STEPS = (1, 2, 4, 8, 16, 32, 64)
"""The steps of a run, of which that number is chosen which gets most done in a second."""

PREFERRED_RATE = 0.95
"""Part of the highest rate from which fewer steps are preferred: others join sooner."""

ROOM_FACTOR = 4
"""Rows in the slots, relative to the most rows of a run: short sequences pass long ones there."""

PATIENCE = 1.0
"""How long a sequence lets those pass that arrive after it, relative to its own time in full runs.
Any bound keeps long sequences from starving; with more, short ones wait less under overload."""

URGENT_RUNS = 2.0
"""A sequence runs from this long before its deadline, relative to its own time in runs."""

WINDOW_STEPS = 2 * CHUNK_STEPS[-1]
"""Steps of a sequence that are copied into the window of its slot at once."""

MAX_WINDOW_BYTES = 64 << 20
"""Of all windows of an input. With larger steps they are shorter."""

COST_RUNS = 32
"""Runs after which the costs of chunks are read anew."""

INITIAL_OVERHEAD = 100e-6
"""Seconds between two runs, before the first were measured."""

LEARNING_RATE = 0.05
"""Weight of the newest overhead in the averages."""

MAX_OVERHEAD = 0.01
"""Seconds; more is a pause of the thread, not work."""

MIN_VARIANCE = 0.25
"""Of the number of requests that join or end between two runs, to learn what each takes."""

MIN_FIXED_SHARE = 0.1
"""Of the time between two runs, which does not come from requests: less would be noise."""

Ints = NDArray[np.int64]


class OverheadEstimate:
    """Learns what is done between two runs, and which part of it does not come from requests.

    That requests join and get their responses takes the same, however many steps a run has: the
    rest counts for their choice. Both parts are those of a line through the times by the number of
    requests (least squares, with weights that decline exponentially).
    """

    def __init__(self) -> None:
        self.seconds = INITIAL_OVERHEAD
        self.fixed_seconds = INITIAL_OVERHEAD
        self._requests = self._squares = self._products = 0.0  # averages, the last one by seconds

    def record(self, seconds: float, requests: int) -> None:
        """Learn from the time between two runs.

        Args:
            seconds: The time.
            requests: That joined in it, and that had responses.
        """
        seconds = min(max(seconds, 0.0), MAX_OVERHEAD)
        self.seconds += LEARNING_RATE * (seconds - self.seconds)
        self._requests += LEARNING_RATE * (requests - self._requests)
        self._squares += LEARNING_RATE * (requests * requests - self._squares)
        self._products += LEARNING_RATE * (requests * seconds - self._products)
        variance = self._squares - self._requests**2
        covariance = self._products - self._requests * self.seconds
        fixed = self.seconds
        if variance > MIN_VARIANCE and covariance > 0:
            fixed -= covariance / variance * self._requests
        self.fixed_seconds = max(fixed, MIN_FIXED_SHARE * self.seconds)


_NORMAL_WEIGHT = WEIGHTS[Priority.NORMAL]
_STEPS = np.array(CHUNK_STEPS)


@dataclass(eq=False, slots=True)
class _Slots:
    """The slots of one request."""

    request: Request
    rows: Ints
    """The slot of each row."""

    steps: int
    due: float
    """The time by which its turn comes in any case: the one of the earliest leads a run."""

    urgent_from: float
    """The time from which it runs in any case, so that it keeps its deadline."""

    window_start: int = 0
    """The step that is the first one in its windows."""

    outputs: dict[int, Array] = field(default_factory=dict)
    """Its outputs that have an axis of steps, as far as they are no longer in the windows."""

    def __lt__(self, other: "_Slots") -> bool:
        return self.due < other.due


@dataclass(slots=True)
class _Plan:
    """The next run of some of the requests."""

    entries: Sequence[_Slots]
    rows: Ints
    """The slots of all rows."""

    starts: Ints
    """The first row of each request in the run."""

    left: Ints
    """The steps that each row has left."""

    steps: int
    """Of the run."""

    counts: NDArray[np.int32]
    """The steps that the run does for each row."""


class SequenceSlots:
    """The `RequestSlots` of a recurrent model: rows with their states, and where each one is.

    A request whose rows differ in their lengths, or in other sizes than those in the slots, does
    not join; neither does one that has no steps of its own. All arrays grow to what is needed.
    """

    def __init__(
        self,
        form: SequenceForm,
        cost: Cost,
        max_rows: int,
        *,
        batch_sizes: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
        on_run: Callable[[int, int], object] = lambda *_: None,
        on_join: Callable[[Hashable], object] = lambda _: None,
    ) -> None:
        """Make slots that are free.

        Args:
            form: How the model reads sequences; it has a state.
            cost: Predicts the seconds of runs.
            max_rows: The most rows of a request, and of a run.
            batch_sizes: The most rows of a run are one of these, if fewer get more done.
            clock: Returns the time in seconds.
            on_run: Called after each run with its steps, those of padding included, and with those
                of its requests; both are sums over rows.
            on_join: Called with the group of each request that joins.
        """
        self._form = form
        self._cost = cost
        self._max_rows = max_rows
        self._clock = clock
        self._on_run = on_run
        self._on_join = on_join
        self._entries: list[_Slots] = []  # in the order in which they run
        self._by_request: dict[Request, _Slots] = {}
        self._taken = 0  # rows
        self._free: list[int] = []
        self._capacity = 0
        self._run_rows = max_rows  # the most of a run, as decided last
        self._step_seconds = 0.0  # of a row, in such runs
        self._base: Hashable = None
        self._plan: _Plan | None = None
        self._planned: Sequence[Request] = ()
        self._chunk_costs: dict[int, NDArray[np.float64]] = {}  # by the rows of a run
        self._row_limits = RowLimits(batch_sizes)
        self._runs = 0
        self._overhead = OverheadEstimate()
        self._turn_requests = 0  # that have joined or ended since the last turn began
        self._turn_started = self._run_started = self._run_seconds = 0.0
        self._ended: Sequence[Request] = ()
        # By slot: the steps that are left, where the next one is in the windows, and how many steps
        # are there.
        self._left: Ints = np.zeros(0, np.int64)
        self._cursor: Ints = np.zeros(0, np.int64)
        self._loaded: Ints = np.zeros(0, np.int64)
        self._states: NDArray[np.float32] = np.zeros((0, form.state_size), np.float32)
        self._window_steps = WINDOW_STEPS
        # Arrays [slot, step, ...] of the inputs and outputs that have steps; of outputs the steps
        # behind the end of a window may be written, and are not read.
        self._windows: dict[str, Array] = {}
        self._constants: dict[str, Array] = {}  # [slot, ...], inputs without steps
        self._output_windows: dict[int, Array] = {}

    @property
    def requests(self) -> Sequence[Request]:
        return list(self._by_request)

    @property
    def rows(self) -> int:
        return self._taken

    @property
    def room(self) -> int:
        return ROOM_FACTOR * self._max_rows - self._taken

    @property
    def overhead(self) -> float:
        """The measured seconds between two runs."""
        return self._overhead.seconds

    def add(self, requests: Sequence[Request]) -> bool:
        for request in requests:
            group = request.group
            if not isinstance(group, LengthGroup) or LENGTHS in request.inputs:
                return False
            if not self._by_request:
                if group.base != self._base:
                    self._base, self._chunk_costs = group.base, {}
            elif group.base != self._base:
                return False
        axes = self._form.time_axes
        name, axis = next(iter(axes.items()))
        rows = sum([request.rows for request in requests])
        if not self._capacity or self._has_other_sizes(requests[0]):
            self._allocate(requests[0], max(rows, self._max_rows))
        while len(self._free) < rows:
            self._grow(2 * self._capacity)
        for request in requests:
            self._add(request, request.inputs[name].shape[axis])
        return True

    def look_ahead(self, rows: int, group: Hashable, priority: Priority) -> tuple[float, int]:
        run_rows = self._run_rows
        if self._taken + rows <= run_rows:
            return 0.0, self._taken + rows
        entries = self._entries.copy()
        if group is not None:
            due = self._due(self._clock(), group, priority)
            # Those that have deadlines must not be made to miss them.
            entries = [one for one in entries if one.due <= due or one.request.deadline < math.inf]
        slots = [entry.rows for entry in entries]
        if sum(map(len, slots)) + rows <= run_rows:
            return 0.0, run_rows
        steps = int(self._left[np.concatenate(slots)].sum()) if slots else 0
        return steps * self._step_seconds, run_rows

    def pop_ended(self) -> Sequence[Request]:
        ended, self._ended = self._ended, ()
        return ended

    def next_requests(self, max_rows: int) -> list[Request]:
        finished = [entry for entry in self._entries if entry.request.finished]
        if finished:
            self._release(finished)
        self._note_turn()
        requests: list[Request] = []
        if self._taken:
            max_rows = self._row_limits.next(self._base, max_rows, self._seconds_of_row)
            if self._runs >= COST_RUNS or not self._step_seconds:
                self._runs = 0
                self._chunk_costs = {}
                self._step_seconds = self._seconds_of_row(max_rows, self._base)
        self._run_rows = max_rows
        rows = 0
        for entry in self._similar_first(max_rows):
            rows += len(entry.rows)
            if rows > max_rows and requests:
                break
            requests.append(entry.request)
        return requests

    def _similar_first(self, max_rows: int) -> Sequence[_Slots]:
        """Return the requests in the slots, in the order in which the next run takes them.

        If there are more than a run takes, the one that is due first leads it. Then come those
        whose deadlines are near, and those that have about as many steps left as the leader:
        others would make the run longer, or be padded in it.
        """
        entries = self._entries
        if self._taken <= max_rows or len(entries) < 2:
            return entries
        left = self._left[np.array([entry.rows[0] for entry in entries])]
        distances = np.abs(left - left[0])
        now = self._clock()
        distances[[entry.urgent_from <= now for entry in entries]] = 0
        return [entries[index] for index in np.argsort(distances, kind="stable").tolist()]

    def remove(self, requests: Sequence[Request]) -> None:
        self._release([self._by_request[one] for one in requests if one in self._by_request])

    def replace(self, request: Request, replacements: Sequence[Request]) -> None:
        entry = self._by_request.pop(request, None)
        if entry is None:  # it has ended
            return
        index = self._entries.index(entry)
        stop = 0
        parts = []
        for one in replacements:
            start, stop = stop, stop + one.rows
            outputs = {index: array[start:stop] for index, array in entry.outputs.items()}
            part = _Slots(
                one,
                entry.rows[start:stop],
                entry.steps,
                entry.due,
                entry.urgent_from,
                entry.window_start,
                outputs,
            )
            self._by_request[one] = part
            parts.append(part)
        self._entries[index : index + 1] = parts
        self._drop_plan()

    def group(self, requests: Sequence[Request]) -> Hashable:
        return LengthGroup(self._base, self._make_plan(requests).steps)

    def join(self, requests: Sequence[Request], padded_rows: int, _: Run | None) -> Inputs:
        self._run_started = self._clock()
        plan = self._make_plan(requests)
        counts, rows, steps = plan.counts, plan.rows, plan.steps
        cursor = self._cursor[rows]
        if (self._loaded[rows] - cursor < counts).any():
            self._load_windows(plan)
            cursor = self._cursor[rows]
        last = self._loaded[rows] - 1
        padding = padded_rows - len(rows)
        if padding > 0:
            rows, cursor, last, counts = (
                np.concatenate([array, np.repeat(array[-1:], padding)])
                for array in (rows, cursor, last, counts)
            )
        # Behind its end a row has copies of its last step, which the model surely accepts.
        places = np.minimum(cursor[:, None] + np.arange(steps), last[:, None])
        places += (rows * self._window_steps)[:, None]
        joined: dict[str, Array] = {}
        for name, window in self._windows.items():
            flat = window.reshape(-1, *window.shape[2:])
            array = flat.take(places, axis=0)
            axis = self._form.time_axes[name]
            joined[name] = array if axis == 1 else np.moveaxis(array, 1, axis)
        for name, constants in self._constants.items():
            joined[name] = constants[rows]
        joined[LENGTHS] = counts
        joined[STATE] = self._states[rows]
        return joined

    def split(
        self, outputs: Outputs, requests: Sequence[Request], padded_rows: int
    ) -> list[Outputs]:
        run_ended = self._clock()
        plan = self._make_plan(requests)
        rows, counts, steps = plan.rows, plan.counts, plan.steps
        run_rows = max(padded_rows, len(rows))
        self._check_outputs(outputs, run_rows, steps)
        *answers, states = outputs
        if self._form.output_time_axes:
            self._write_windows(answers, plan)
        left = plan.left - counts
        ended = [plan.entries[i] for i in np.flatnonzero(left[plan.starts] == 0).tolist()]
        # Before anything changes: without memory for it, the same steps run again.
        parts = self._collect(outputs, plan, ended) if ended else []
        self._states[rows] = states[: len(rows)]
        self._cursor[rows] += counts
        self._left[rows] = left
        self._runs += 1
        self._drop_plan()
        self._on_run(run_rows * steps, int(counts.sum()))
        self._ended = [entry.request for entry in ended]
        self._turn_requests += len(ended)
        self._release(ended)
        # Without requests the next turn begins after a wait for some.
        self._run_seconds = run_ended - self._run_started if self._by_request else 0.0
        return parts

    def _drop_plan(self) -> None:
        self._plan, self._planned = None, ()

    def _make_plan(self, requests: Sequence[Request]) -> _Plan:
        """Return what a run of the requests does, the same one until it has ended."""
        if self._plan is not None and self._planned == requests:
            return self._plan
        entries = [self._by_request[request] for request in requests]
        lengths = [len(entry.rows) for entry in entries]
        rows = np.concatenate([entry.rows for entry in entries])
        starts = np.cumsum([0, *lengths[:-1]])
        left = self._left[rows]
        steps = self._choose_steps(left)
        counts = np.minimum(left, steps).astype(np.int32)
        self._plan = _Plan(entries, rows, starts, left, steps, counts)
        self._planned = requests
        return self._plan

    def _choose_steps(self, left: Ints) -> int:
        """Return how many steps to run of rows that have so many left.

        It is the number with which most steps of these rows are done in a second, or a smaller one
        with nearly that rate.
        """
        rows = len(left)
        costs = self._chunk_costs.get(rows)
        if costs is None:
            fixed = self._overhead.fixed_seconds
            costs = _seconds_of_chunks(rows, self._base, self._cost, fixed)
            self._chunk_costs[rows] = costs
        steps, _ = _most_in_a_second(left, costs)
        return min(steps, int(left.max()))

    def _seconds_of_row(self, rows: int, base: Hashable) -> float:
        """Return the seconds of a step of a row, in runs of so many that have many steps left."""
        seconds = _seconds_of_chunks(rows, base, self._cost, self._overhead.seconds)
        return float((seconds / _STEPS).min()) / rows

    def _note_turn(self) -> None:
        """Learn the time between two runs, if one has just ended."""
        now = self._clock()
        if self._run_seconds:
            seconds = now - self._turn_started - self._run_seconds
            self._overhead.record(seconds, self._turn_requests)
            self._run_seconds = 0.0
        self._turn_requests = 0
        self._turn_started = now

    def _has_other_sizes(self, request: Request) -> bool:
        """Return whether what is allocated does not suit a request, if the slots are empty."""
        if self._by_request:
            return False
        arrays = {**self._windows, **self._constants}
        for name, array in request.inputs.items():
            if name == STATE:
                continue
            axis = self._form.time_axes.get(name)
            rest = array.shape[1:] if axis is None else _without_steps(array.shape, axis)
            first = 1 if axis is None else 2
            if name not in arrays or arrays[name].shape[first:] != rest:
                return True
        return False

    def _allocate(self, request: Request, capacity: int) -> None:
        self._windows, self._constants, self._output_windows = {}, {}, {}
        self._capacity = 0
        self._free = []
        step_bytes = 1
        sizes: dict[str, tuple[tuple[int, ...], Any]] = {}
        for name, array in request.inputs.items():
            if (axis := self._form.time_axes.get(name)) is not None:
                rest = _without_steps(array.shape, axis)
                step_bytes = max(step_bytes, math.prod(rest) * array.dtype.itemsize)
                sizes[name] = rest, array.dtype
            elif name != STATE:
                self._constants[name] = np.zeros((0, *array.shape[1:]), array.dtype)
        fitting = MAX_WINDOW_BYTES // (step_bytes * ROOM_FACTOR * self._max_rows)
        self._window_steps = max(CHUNK_STEPS[-1], min(WINDOW_STEPS, fitting))
        for name, (rest, dtype) in sizes.items():
            self._windows[name] = np.zeros((0, self._window_steps, *rest), dtype)
        self._grow(capacity)

    def _grow(self, capacity: int) -> None:
        before = self._capacity

        def grow(array: Any) -> Any:
            grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
            grown[:before] = array[:before]
            return grown

        self._left, self._cursor, self._loaded, self._states = map(
            grow, (self._left, self._cursor, self._loaded, self._states)
        )
        for arrays in (self._windows, self._constants, self._output_windows):
            arrays.update({key: grow(array) for key, array in arrays.items()})  # type: ignore[misc]
        self._free = [*range(capacity - 1, before - 1, -1), *self._free]
        self._capacity = capacity  # last: without memory for an array, all is as before

    def _add(self, request: Request, steps: int) -> None:
        rows = np.array(self._free[: -request.rows - 1 : -1])
        due = self._due(request.queued_at, request.group, request.priority)
        run = self._cost(self._run_rows, request.group)
        urgent_from = request.deadline - URGENT_RUNS * run
        entry = _Slots(request, rows, steps, min(due, urgent_from), urgent_from)
        state = request.inputs.get(STATE)
        self._states[rows] = 0.0 if state is None else state
        for name, constants in self._constants.items():
            constants[rows] = request.inputs[name]
        self._left[rows] = steps
        self._load_window(entry, 0)
        del self._free[-request.rows :]
        insort(self._entries, entry)
        self._by_request[request] = entry
        self._taken += len(rows)
        self._turn_requests += 1
        self._on_join(request.group)
        self._drop_plan()

    def _due(self, queued_at: float, group: Hashable, priority: Priority) -> float:
        patience = PATIENCE * _NORMAL_WEIGHT / WEIGHTS[priority]
        return queued_at + patience * self._cost(self._max_rows, group)

    def _load_windows(self, plan: _Plan) -> None:
        """Go on with the windows of rows that have too few steps of the run left there."""
        for entry, start in zip(plan.entries, plan.starts, strict=True):
            row = entry.rows[0]
            cursor = int(self._cursor[row])
            if self._loaded[row] - cursor < plan.counts[start]:
                self._save_outputs(entry, cursor)
                self._load_window(entry, entry.window_start + cursor)

    def _load_window(self, entry: _Slots, start: int) -> None:
        """Copy the steps of a request from `start` on into its windows."""
        count = min(entry.steps - start, self._window_steps)
        rows = entry.rows
        for name, window in self._windows.items():
            axis = self._form.time_axes[name]
            array = entry.request.inputs[name]
            source = array if axis == 1 else np.moveaxis(array, axis, 1)
            if len(rows) == 1:
                window[rows[0], :count] = source[0, start : start + count]
            else:
                window[rows, :count] = source[:, start : start + count]
        entry.window_start = start
        self._cursor[rows] = 0
        self._loaded[rows] = count

    def _check_outputs(self, outputs: Outputs, rows: int, steps: int) -> None:
        check_output_rows(outputs, rows)
        state = outputs[-1]
        if state.shape != (rows, self._form.state_size):
            raise BatchError(
                f"the next state has shape {list(state.shape)} "
                f"(expected {[rows, self._form.state_size]})"
            )
        for index, axis in self._form.output_time_axes.items():
            shape = outputs[index].shape
            if axis >= len(shape) or shape[axis] != steps:
                raise BatchError(
                    f"output {index} has shape {list(shape)} (expected {steps} steps along axis "
                    f"{axis})"
                )

    def _write_windows(self, answers: Outputs, plan: _Plan) -> None:
        """Copy the outputs of a run that have steps into windows."""
        rows, steps = plan.rows, plan.steps
        width = self._window_steps + CHUNK_STEPS[-1]
        places = self._cursor[rows][:, None] + np.arange(steps) + (rows * width)[:, None]
        for index, axis in self._form.output_time_axes.items():
            output = answers[index][: len(rows)]
            if axis != 1:
                output = np.moveaxis(output, axis, 1)
            window = self._output_windows.get(index)
            if window is None or window.shape[2:] != output.shape[2:]:
                shape = (self._capacity, width, *output.shape[2:])
                window = self._output_windows[index] = np.zeros(shape, output.dtype)
            window.reshape(-1, *window.shape[2:])[places] = output

    def _save_outputs(self, entry: _Slots, count: int) -> None:
        """Copy the outputs of the first steps in the windows of a request into its own arrays."""
        for index, window in self._output_windows.items():
            output = entry.outputs.get(index)
            if output is None:
                shape = (len(entry.rows), entry.steps, *window.shape[2:])
                output = entry.outputs[index] = np.empty(shape, window.dtype)
            start = entry.window_start
            output[:, start : start + count] = window[entry.rows, :count]

    def _collect(self, outputs: Outputs, plan: _Plan, ended: Sequence[_Slots]) -> list[Outputs]:
        """Return the outputs of the requests whose last step has run."""
        time_axes = self._form.output_time_axes
        with_state = [STATE in entry.request.inputs for entry in ended]
        starts = {id(entry): start for entry, start in zip(plan.entries, plan.starts, strict=True)}
        places = [
            np.arange(starts[id(entry)], starts[id(entry)] + len(entry.rows)) for entry in ended
        ]
        run_rows = sum(len(entry.rows) for entry in plan.entries)
        parts: list[Outputs] = []
        if not time_axes and all(with_state) == any(with_state):
            rows = np.concatenate(places)
            own = outputs if with_state[0] else outputs[:-1]
            shared = BatchOutputs([output[rows] for output in own], run_rows)
            start = 0
            for entry in ended:
                parts.append(RowSlice(shared, start, len(entry.rows)))
                start += len(entry.rows)
            return parts
        for entry, rows, has_state in zip(ended, places, with_state, strict=True):
            arrays = []
            for index, output in enumerate(outputs if has_state else outputs[:-1]):
                axis = time_axes.get(index)
                arrays.append(output[rows] if axis is None else self._own_steps(entry, index, axis))
            parts.append(RowSlice(BatchOutputs(arrays, run_rows), 0, len(rows)))
        return parts

    def _own_steps(self, entry: _Slots, index: int, axis: int) -> Array:
        """Return all steps of an output of a request that has ended."""
        count = entry.steps - entry.window_start
        steps = self._output_windows[index][entry.rows, :count]
        if (whole := entry.outputs.get(index)) is not None:
            whole[:, entry.window_start :] = steps
            steps = whole
        return steps if axis == 1 else np.ascontiguousarray(np.moveaxis(steps, 1, axis))

    def _release(self, entries: Sequence[_Slots]) -> None:
        if not entries:
            return
        for entry in entries:
            if self._by_request.pop(entry.request, None) is None:
                continue
            self._free.extend(entry.rows.tolist())
            self._taken -= len(entry.rows)
        present = self._by_request
        self._entries = [entry for entry in self._entries if entry.request in present]
        self._drop_plan()


def choose_chunk(left: Ints, base: Hashable, cost: Cost, overhead: float) -> tuple[int, float]:
    """Return the steps of a run of rows that have so many left, and the steps done in a second.

    Args:
        left: The steps that each row has left.
        base: Of their groups.
        cost: Predicts the seconds of runs.
        overhead: Seconds between two runs.
    """
    return _most_in_a_second(left, _seconds_of_chunks(len(left), base, cost, overhead))


def _seconds_of_chunks(
    rows: int, base: Hashable, cost: Cost, overhead: float
) -> NDArray[np.float64]:
    """Return the seconds of runs of `CHUNK_STEPS`."""
    return overhead + np.array([cost(rows, LengthGroup(base, k)) for k in CHUNK_STEPS])


def _most_in_a_second(left: Ints, seconds: NDArray[np.float64]) -> tuple[int, float]:
    useful = np.minimum(left[:, None], _STEPS).sum(axis=0)
    rates = useful / seconds
    best = int((rates >= PREFERRED_RATE * rates.max()).argmax())
    return CHUNK_STEPS[best], float(rates[best])


class MergeOfAllLengths:
    """The `Merge` of a queue whose requests join runs between steps: lengths do not matter."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def place(self, group: Hashable) -> Place | None:
        """Return a place behind those of the groups that wait already: see `Merge`."""
        return Place(group.base, next(self._count)) if isinstance(group, LengthGroup) else None

    def choose(
        self, leader: Hashable, waiting: MergedBacklog, max_batch_rows: int
    ) -> Sequence[Hashable]:
        """Return groups that fill a batch, the leader's first: see `Merge`."""
        if len(waiting.rows) == 1 or not isinstance(leader, LengthGroup):
            return (leader,)
        groups: list[Hashable] = [leader]
        rows = waiting.rows[leader]
        for _, group in waiting.family(leader)[0]:
            if rows >= max_batch_rows:
                break
            if group != leader:
                groups.append(group)
                rows += waiting.rows[group]
        return groups


def _without_steps(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[1:axis], *shape[axis + 1 :])
