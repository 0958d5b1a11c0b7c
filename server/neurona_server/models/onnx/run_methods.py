"""How a session on a GPU runs its batches: which of the ways that work is the fastest, by size.

The ordinary way is `InferenceSession.run`. Runs with bound buffers (bindings.py) and as CUDA graphs
(cuda_graphs.py) are used for the numbers of rows for which, before serving, they gave the same
answers as the ordinary way, and were faster. An error of another way than the ordinary one ends its
use, and the batch runs in the ordinary way.
"""

import logging
import statistics
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import onnxruntime

from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import DeviceMemoryError
from neurona_server.models.onnx.bindings import BoundRunner, BufferSlot, count_rows
from neurona_server.models.onnx.cuda_graphs import GraphRunner
from neurona_server.models.onnx.run_failures import FailureKind, classify_failure

log = logging.getLogger(__name__)

ROUNDS = 5
"""Runs that a time is the median of; those of all methods alternate."""

RUNS_TOGETHER = 4
"""Runs in each slot of which the common time is measured."""

MEASURING_BUDGET = 2.0
"""Seconds to measure one session. Larger numbers of rows then run like the largest measured one,
without graphs."""

FASTER_RATIO = 0.95
"""A method replaces the ordinary one if it takes at most this part of its time, alone or with all
slots busy ..."""

SLOWER_RATIO = 1.05
"""... and at most this part in the other case."""

FLOAT_TOLERANCE = 1e-3
"""Relative to the largest value of an output: the order of sums may differ between two runs."""

HALF_TOLERANCE = 2e-2
"""The same, for types of 16 bits."""

_FATAL = 4  # log_severity_level


class RunMethod(StrEnum):
    """A way to run a batch."""

    PLAIN = "plain"
    BOUND = "bound"
    GRAPH = "graph"


@dataclass(frozen=True)
class MethodTime:
    """Seconds of a run with some number of rows."""

    alone: float
    together: float
    """The time in which one of the runs ends while one goes on in each slot."""

    @property
    def cost(self) -> float:
        return self.alone * self.together


@dataclass
class RunSlot:
    """The buffers of one run that may be in flight, by method."""

    buffers: dict[RunMethod, BufferSlot] = field(default_factory=dict)


PlainRun = Callable[[Inputs, onnxruntime.RunOptions], Outputs]
MakeInputs = Callable[[int, int], Mapping[str, Array]]
"""Makes inputs for a number of rows; the second number chooses the values."""


class RunMethods:
    """The methods of one session.

    Attributes:
        times: By rows and method, what was measured.
        unusable: Why a method is not used, by method.
    """

    def __init__(
        self,
        name: str,
        plain: PlainRun,
        runners: Mapping[RunMethod, BoundRunner],
        slots: Sequence[RunSlot],
        prepare_thread: Callable[[], None] = lambda: None,
    ) -> None:
        """Use the ordinary way until another one is chosen.

        Args:
            name: Of the model and its device, for the log.
            plain: Runs the session in the ordinary way.
            runners: The other ways.
            slots: One for each run that may be in flight; they get their buffers.
            prepare_thread: What a thread calls before its first run.
        """
        self._name = name
        self._plain = plain
        self._prepare_thread = prepare_thread
        self._runners: dict[RunMethod, BoundRunner] = {}
        self.times: dict[int, dict[RunMethod, MethodTime]] = {}
        self.unusable: dict[RunMethod, str] = {}
        self._sizes: list[int] = []
        self._orders: list[tuple[RunMethod, ...]] = []  # of what is tried, for each of _sizes
        self.slots = slots
        for method, runner in runners.items():
            self.add(method, runner)

    @property
    def runners(self) -> Mapping[RunMethod, BoundRunner]:
        """The ways that are in use, beside the ordinary one."""
        return self._runners

    def add(self, method: RunMethod, runner: BoundRunner) -> None:
        """Add a way to run, before `choose`."""
        self._runners[method] = runner
        for slot in self.slots:
            slot.buffers[method] = runner.new_slot()

    def order(self, rows: int) -> tuple[RunMethod, ...]:
        """Return the methods to try for a number of rows before the ordinary one."""
        if not self._orders:
            return ()
        return self._orders[min(bisect_left(self._sizes, rows), len(self._orders) - 1)]

    def reserve(self, slot: RunSlot, shapes: Mapping[str, tuple[int, ...]]) -> Inputs | None:
        """Return arrays to write the inputs of the slot's next run into; None if any will do."""
        for method in self.order(count_rows(shapes.values())):
            runner, buffers = self._runners.get(method), slot.buffers.get(method)
            if runner is not None and buffers is not None:
                return runner.reserve(buffers, shapes)
        return None

    def run(self, slot: RunSlot, inputs: Inputs, options: onnxruntime.RunOptions) -> Outputs:
        """Run a batch in the fastest way that is possible.

        Raises:
            Exception: What the ordinary way raises, or any if the run was terminated or the device
                is lost.
        """
        failed: tuple[RunMethod, Exception] | None = None
        methods = self.order(count_rows([array.shape for array in inputs.values()]))
        for method in methods:
            runner, buffers = self._runners.get(method), slot.buffers.get(method)
            if runner is None or buffers is None:  # given up, perhaps by another thread just now
                continue
            try:
                outputs = runner.run(buffers, inputs, options)
            except Exception as error:  # ONNX Runtime has a class of its own for each status
                if options.terminate or classify_failure(error) is FailureKind.DEVICE_LOST:
                    raise
                failed = method, error
                break
            if outputs is not None:
                return outputs
        plain_outputs = self._plain(inputs, options)
        if failed is not None and classify_failure(failed[1]) is not FailureKind.OUT_OF_MEMORY:
            self._give_up(*failed)
        for method in methods:
            if (runner := self._runners.get(method)) is not None:
                runner.learn(inputs, plain_outputs)
        return plain_outputs

    def choose(
        self,
        sizes: Sequence[int],
        make_inputs: MakeInputs,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        """Compare the methods for numbers of rows, in ascending order, and use the best of each.

        Args:
            sizes: The numbers of rows.
            make_inputs: Makes inputs for them, that the model accepts.
            check_cancelled: Raises if the model is not to be loaded any more.

        Raises:
            Exception: The ordinary way fails, but for too little memory for the larger numbers of
                rows; or the device is lost.
        """
        graphs_for_more_rows = len(sizes) == 1
        end = time.monotonic() + MEASURING_BUDGET
        for rows in sizes:  # before any buffers are made, so that they are made once
            check_cancelled()
            inputs = make_inputs(rows, 1)
            try:
                outputs = self._plain(inputs, _new_options())
            except Exception as error:  # ONNX Runtime has a class of its own for each status
                if rows == sizes[0] or not _is_out_of_memory(error):
                    raise
                sizes = [size for size in sizes if size < rows]
                break
            for runner in self._runners.values():
                runner.learn(inputs, outputs)
            if time.monotonic() > end:  # the first run of a shape may include its preparation
                break
        end = time.monotonic() + MEASURING_BUDGET
        for rows in sizes:
            check_cancelled()
            if not self._runners or time.monotonic() > end:
                break
            self._measure(rows, make_inputs)
        for runner in self._runners.values():
            if isinstance(runner, GraphRunner):
                runner.eager = False
        self._decide(graphs_for_more_rows=graphs_for_more_rows)

    def describe(self) -> str:
        """Return how batches run, as "graph up to 8 rows, bound"."""
        methods = [self._first(order) for order in self._orders]
        parts: list[str] = []
        for index, method in enumerate(methods):
            if index + 1 == len(methods):
                parts.append(method)
            elif methods[index + 1] != method:
                parts.append(f"{method} up to {self._sizes[index]} rows")
        return ", ".join(parts) or RunMethod.PLAIN

    def describe_times(self) -> str:
        """Return what was measured, in milliseconds, for the log."""
        texts = []
        for rows, times in self.times.items():
            each = ", ".join(
                f"{method} {1000 * one.alone:.3g}/{1000 * one.together:.3g}"
                for method, one in times.items()
            )
            texts.append(f"{rows}: {each}")
        return "; ".join(texts)

    def _first(self, order: tuple[RunMethod, ...]) -> RunMethod:
        return next((method for method in order if method in self._runners), RunMethod.PLAIN)

    def _measure(self, rows: int, make_inputs: MakeInputs) -> None:
        inputs = [make_inputs(rows, seed) for seed in (1, 2)]
        rows = count_rows([array.shape for array in inputs[0].values()])  # which may be fixed
        expected = [self._plain(one, _new_options()) for one in inputs]
        methods = [RunMethod.PLAIN]
        for method in [*self._runners]:
            problem = self._compare(method, inputs, expected)
            if problem is None:
                continue
            if problem:
                self._give_up(method, problem)
            else:
                methods.append(method)
        alone: dict[RunMethod, list[float]] = {method: [] for method in methods}
        inputs_of = {method: self._write(method, self.slots[0], inputs[0]) for method in methods}
        for _ in range(ROUNDS):
            for method in methods:
                started = time.perf_counter()
                self._run_with(method, self.slots[0], inputs_of[method])
                alone[method].append(time.perf_counter() - started)
        self.times[rows] = {}
        for method in methods:
            seconds = statistics.median(alone[method])
            # Graphs of a session run one after the other, and each thread has graphs of its own.
            together = (
                seconds
                if method is RunMethod.GRAPH or len(self.slots) == 1
                else self._time_together(method, inputs[0])
            )
            self.times[rows][method] = MethodTime(seconds, together)

    def _compare(
        self, method: RunMethod, inputs: Sequence[Inputs], expected: Sequence[Outputs]
    ) -> str | None:
        """Return "" if a method gives the expected answers, else why not; None if it does not run.

        The first inputs come again after the others: a run may leave something behind.
        """
        runner = self._runners[method]
        if isinstance(runner, GraphRunner):
            runner.eager = True
        for slot in self.slots[:1] if method is RunMethod.GRAPH else self.slots:
            for number in (0, 1, 0):
                try:
                    outputs = runner.run(slot.buffers[method], inputs[number], _new_options())
                except Exception as error:  # ONNX Runtime has a class of its own for each status
                    if classify_failure(error) is FailureKind.DEVICE_LOST:
                        raise
                    return str(error).partition("\n")[0] or type(error).__name__
                if outputs is None:
                    return None
                if not same_answers(outputs, expected[number]):
                    return "its answers differ from those of ordinary runs"
        return ""

    def _time_together(self, method: RunMethod, inputs: Inputs) -> float:
        """Return the seconds in which one run ends while each slot has one in flight."""
        barrier = threading.Barrier(len(self.slots) + 1)
        errors: list[Exception] = []

        def run(slot: RunSlot) -> None:
            try:
                self._prepare_thread()
                own_inputs = self._write(method, slot, inputs)
                self._run_with(method, slot, own_inputs)
                barrier.wait()
                for _ in range(RUNS_TOGETHER):
                    self._run_with(method, slot, own_inputs)
            except Exception as error:  # raised below, in the thread that measures
                errors.append(error)
                barrier.abort()

        threads = [
            threading.Thread(target=run, args=(slot,), name="measure", daemon=True)
            for slot in self.slots
        ]
        for thread in threads:
            thread.start()
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            log.debug("%s: a measured run failed", self._name)
        started = time.perf_counter()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return (time.perf_counter() - started) / (RUNS_TOGETHER * len(threads))

    def _write(self, method: RunMethod, slot: RunSlot, inputs: Inputs) -> Inputs:
        """Write inputs into the memory of a method, as a batch is joined there; return them."""
        if method is RunMethod.PLAIN:
            return inputs
        shapes = {name: array.shape for name, array in inputs.items()}
        targets = self._runners[method].reserve(slot.buffers[method], shapes)
        if targets is None:
            return inputs
        for name, target in targets.items():
            target[...] = inputs[name]
        return targets

    def _run_with(self, method: RunMethod, slot: RunSlot, inputs: Inputs) -> None:
        if method is RunMethod.PLAIN:
            self._plain(inputs, _new_options())
        else:
            self._runners[method].run(slot.buffers[method], inputs, _new_options())

    def _decide(self, *, graphs_for_more_rows: bool) -> None:
        self._sizes = [*self.times]
        self._orders = [_order_methods(times) for times in self.times.values()]
        if self._orders and not graphs_for_more_rows:
            # More rows than were measured: a graph would be captured for each number of them.
            last = tuple(m for m in self._orders[-1] if m is not RunMethod.GRAPH)
            if last != self._orders[-1]:
                self._sizes.append(self._sizes[-1] + 1)
                self._orders.append(last)
        for method, runner in [*self._runners.items()]:
            rows = [
                size
                for size, order in zip(self._sizes, self._orders, strict=True)
                if method in order
            ]
            if not rows:
                self._drop(method)
            elif rows[-1] < self._sizes[-1]:  # without buffers for batches that it does not run
                runner.forget(rows[-1])
                self.add(method, runner)

    def _give_up(self, method: RunMethod, reason: Exception | str) -> None:
        """Stop using a method that does not work."""
        if method not in self._runners:
            return
        self.unusable[method] = str(reason).partition("\n")[0]
        self._drop(method)
        log.warning(
            "%s: runs are not %s any more: %s",
            *(self._name, "CUDA graphs" if method is RunMethod.GRAPH else "bound"),
            self.unusable[method],
        )

    def _drop(self, method: RunMethod) -> None:
        # A run that goes on meanwhile has its own references.
        self._runners.pop(method, None)
        for slot in self.slots:
            slot.buffers.pop(method, None)


def same_answers(outputs: Outputs, expected: Outputs) -> bool:
    """Return whether outputs are equal but for rounding; those that are no floats are the same."""
    return len(outputs) == len(expected) and all(map(_same_output, outputs, expected))


def _same_output(output: Array, expected: Array) -> bool:
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return False
    if output.dtype.kind != "f":
        return np.array_equal(output, expected)
    tolerance = HALF_TOLERANCE if output.dtype.itemsize == 2 else FLOAT_TOLERANCE
    finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
    largest = float(finite.max(initial=0.0))
    return bool(
        np.allclose(
            output.astype(np.float64),
            expected.astype(np.float64),
            rtol=0.0,
            atol=tolerance * largest,
            equal_nan=True,
        )
    )


def _order_methods(times: Mapping[RunMethod, MethodTime]) -> tuple[RunMethod, ...]:
    """Return the methods that are faster than the ordinary one, the fastest first."""
    plain = times[RunMethod.PLAIN]
    faster = [
        method
        for method, one in times.items()
        if method is not RunMethod.PLAIN
        and min(one.alone / plain.alone, one.together / plain.together) <= FASTER_RATIO
        and max(one.alone / plain.alone, one.together / plain.together) <= SLOWER_RATIO
    ]
    return tuple(sorted(faster, key=lambda method: times[method].cost))


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, DeviceMemoryError) or classify_failure(error) is FailureKind.OUT_OF_MEMORY
    )


def _new_options() -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    return options
