import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support import onnx_models
from support.host_memory import HostMemory, bindable

from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import DeviceMemoryError
from neurona_server.models.onnx import run_methods
from neurona_server.models.onnx.bindings import BoundRunner, BufferSlot
from neurona_server.models.onnx.cuda_graphs import GraphRunner
from neurona_server.models.onnx.run_methods import (
    MethodTime,
    RunMethod,
    RunMethods,
    RunSlot,
    same_answers,
)

PLAIN_SECONDS = 0.005
"""Long enough that a busy machine does not decide what is faster."""

PLAIN, BOUND, GRAPH = RunMethod.PLAIN, RunMethod.BOUND, RunMethod.GRAPH


def rows(count: int, seed: int = 1) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)}


class Timed(BoundRunner):
    """Takes some time; may fail, or answer wrongly from some run on."""

    seconds = 0.0
    error: Exception | None = None
    wrong_from = 1 << 30
    runs = 0

    def run(
        self, slot: BufferSlot, inputs: Inputs, options: onnxruntime.RunOptions
    ) -> list[Array] | None:
        outputs = super().run(slot, inputs, options)
        if outputs is None:
            return None
        self.runs += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        if self.runs >= self.wrong_from:
            outputs[0] += 0.1
        return outputs


class TimedGraphs(Timed, GraphRunner):
    pass


class Bench:
    """A session whose ordinary runs take PLAIN_SECONDS, and other ways to run it."""

    def __init__(self, folder: Path, **seconds: float) -> None:
        path = onnx_models.save_classifier(folder / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # its threads would wait for those of a busy machine
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        tensors = bindable(self.session)
        self.runners: dict[RunMethod, Timed] = {}
        for method, make in ((BOUND, Timed), (GRAPH, TimedGraphs)):
            if method in seconds:
                self.runners[method] = make(self.session, HostMemory(), *tensors)
                self.runners[method].seconds = seconds[method]
        self.plain_runs = 0
        self.slots = [RunSlot(), RunSlot()]
        self.methods = RunMethods("m on cuda:0", self.plain, self.runners, self.slots)

    def plain(self, inputs: Inputs, options: onnxruntime.RunOptions) -> list[Any]:
        self.plain_runs += 1
        time.sleep(PLAIN_SECONDS)
        outputs: list[Any] = self.session.run(None, inputs, options)
        return outputs

    def run(self, inputs: Mapping[str, Array]) -> Array:
        output: Array = self.methods.run(self.slots[0], inputs, onnxruntime.RunOptions())[0]
        return output

    def check(self, count: int, seed: int = 5) -> None:
        inputs = rows(count, seed)
        np.testing.assert_array_equal(self.run(inputs), self.session.run(None, inputs)[0])


def test_the_fastest_method_that_works_is_used(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=PLAIN_SECONDS / 4, graph=0.0)
    bench.methods.choose([1, 2, 4], rows)
    assert bench.methods.order(1) == (GRAPH, BOUND)
    assert bench.methods.order(3) == (GRAPH, BOUND)
    assert bench.methods.order(5) == (BOUND,)  # not measured
    assert bench.methods.describe() == "graph up to 4 rows, bound"
    assert set(bench.methods.times[2]) == {PLAIN, BOUND, GRAPH}
    before = bench.plain_runs
    for count in (1, 2, 4):
        bench.check(count)
    assert bench.plain_runs == before


def test_buffers_of_graphs_are_for_the_batches_that_run_as_graphs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=PLAIN_SECONDS / 4, graph=0.0)
    graphs = bench.runners[GRAPH]
    run = graphs.run

    def slow_for_many(slot: BufferSlot, inputs: Inputs, options: Any) -> Any:
        time.sleep(2 * PLAIN_SECONDS if len(inputs["x"]) > 2 else 0)
        return run(slot, inputs, options)

    graphs.run = slow_for_many  # type: ignore[method-assign]
    bench.methods.choose([1, 2, 4], rows)
    assert bench.methods.describe() == "graph up to 2 rows, bound"
    bench.check(2)
    bench.check(4)
    buffers = bench.slots[0].buffers
    assert buffers[GRAPH].buffers["x"].nbytes == 2 * 16
    assert buffers[BOUND].buffers["x"].nbytes == 4 * 16


def test_a_slower_method_is_dropped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=2 * PLAIN_SECONDS)
    bench.methods.choose([1, 2], rows)
    assert bench.methods.order(1) == ()
    assert not bench.methods.runners
    assert bench.methods.describe() == "plain"
    assert not any(slot.buffers for slot in bench.slots)
    bench.check(2)


@pytest.mark.parametrize("wrong_from", [1, 2, 3])
def test_a_method_with_other_answers_is_dropped(
    tmp_path: Path, wrong_from: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, bound=0.0)
    bench.runners[BOUND].wrong_from = wrong_from
    bench.methods.choose([1, 2], rows)
    assert not bench.methods.runners
    assert "m on cuda:0: runs are not bound any more: its answers differ" in caplog.text


def test_a_method_that_keeps_values_of_an_earlier_run_is_dropped(tmp_path: Path) -> None:
    """The two inputs differ, and the first ones come again."""
    bench = Bench(tmp_path, graph=0.0)
    kept = bench.session.run(None, rows(1, 1))
    bench.runners[GRAPH].run = lambda *_: kept  # type: ignore[method-assign]
    bench.methods.choose([1], rows)
    assert not bench.methods.runners


def test_a_method_that_fails_at_warm_up_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, bound=0.0, graph=0.0)
    bench.runners[GRAPH].error = RuntimeError("CUDA failure 900: capture\nand more")
    bench.methods.choose([1, 2], rows)
    assert bench.methods.describe() == "bound"
    assert bench.methods.unusable == {GRAPH: "CUDA failure 900: capture"}
    assert caplog.text.count("runs are not CUDA graphs any more") == 1


def test_a_method_that_fails_later_gives_way_to_the_ordinary_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, bound=0.0)
    bench.methods.choose([1, 2], rows)
    bench.runners[BOUND].error = RuntimeError("broken")
    before = bench.plain_runs
    for _ in range(3):
        bench.check(2)
    assert bench.plain_runs == before + 3
    assert caplog.text.count("runs are not bound any more: broken") == 1
    assert bench.methods.describe() == "plain"


def test_an_error_that_the_ordinary_way_has_too_says_nothing_of_the_method(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, bound=0.0)
    bench.methods.choose([1, 2], rows)
    wrong = {"x": rows(2)["x"].astype(np.float64)}
    with pytest.raises(Exception, match=r"tensor\(double\)"):
        bench.run(wrong)
    bench.check(2)
    assert bench.methods.describe() == "bound"
    assert "any more" not in caplog.text


def test_too_little_memory_in_one_run_does_not_end_a_method(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    bench.methods.choose([1, 2], rows)
    bench.runners[BOUND].error = RuntimeError(
        "Failed to allocate memory for requested buffer of size 4"
    )
    bench.check(2)
    bench.runners[BOUND].error = None
    assert bench.methods.describe() == "bound"
    before = bench.plain_runs
    bench.check(2)
    assert bench.plain_runs == before


def test_a_terminated_run_does_not_run_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    bench.methods.choose([1, 2], rows)
    options = onnxruntime.RunOptions()
    options.terminate = True
    options.log_severity_level = 4
    before = bench.plain_runs
    with pytest.raises(Exception, match="terminate"):
        bench.methods.run(bench.slots[0], rows(2), options)
    assert bench.plain_runs == before
    bench.check(2)
    assert bench.methods.describe() == "bound"


def test_numbers_of_rows_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    plain = bench.plain

    def run(inputs: Inputs, options: onnxruntime.RunOptions) -> list[Any]:
        if len(inputs["x"]) > 2:
            raise DeviceMemoryError("cuda:0")
        return plain(inputs, options)

    bench.methods._plain = run
    bench.methods.choose([1, 2, 4, 8], rows)
    assert [*bench.methods.times] == [1, 2]
    assert bench.methods.describe() == "bound"


def test_too_little_memory_for_the_fewest_rows_ends_measuring(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)

    def run(*_: Any) -> list[Any]:
        raise DeviceMemoryError("cuda:0")

    bench.methods._plain = run
    with pytest.raises(DeviceMemoryError):
        bench.methods.choose([1, 2], rows)


def test_a_device_that_is_lost_ends_measuring(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    bench.runners[BOUND].error = RuntimeError("CUDA failure 700: an illegal memory access ; GPU=0")
    with pytest.raises(RuntimeError, match="illegal"):
        bench.methods.choose([1, 2], rows)
    assert bench.slots[0].buffers  # not freed


def test_threads_that_measure_are_prepared(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    prepared: list[str] = []
    bench.methods._prepare_thread = lambda: prepared.append(threading.current_thread().name)
    bench.methods.choose([1], rows)
    assert prepared == ["measure"] * 4


def test_measuring_ends_after_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_methods, "MEASURING_BUDGET", 0.3)
    bench = Bench(tmp_path, bound=0.0)
    bench.methods.choose([1, 2, 4, 8, 16, 32], rows)
    assert 1 <= len(bench.methods.times) < 6
    bench.check(32)
    bench.check(32)


def test_a_cancelled_load_ends_measuring(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    calls = 0

    def check_cancelled() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        bench.methods.choose([1, 2], rows, check_cancelled)


def test_an_error_while_runs_are_timed_together_ends_measuring(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    runner = bench.runners[BOUND]
    run = runner.run

    def fail_in_threads(*args: Any) -> Any:
        if threading.current_thread().name == "measure":
            raise RuntimeError("lost")
        return run(*args)

    runner.run = fail_in_threads  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="lost"):
        bench.methods.choose([1, 2], rows)


def test_two_runs_at_once_count_too(tmp_path: Path) -> None:
    """Whether copies overlap shows only with several runs in flight."""
    bench = Bench(tmp_path, bound=0.0)
    lock = threading.Lock()
    plain = bench.plain

    def one_at_a_time(inputs: Inputs, options: onnxruntime.RunOptions) -> list[Any]:
        with lock:
            return plain(inputs, options)

    bench.runners[BOUND].seconds = PLAIN_SECONDS
    bench.methods._plain = one_at_a_time
    bench.methods.choose([1], rows)
    times = bench.methods.times[1]
    assert times[BOUND].together < 0.8 * times[PLAIN].together


@pytest.mark.parametrize(
    ("bound", "graph", "order"),
    [
        ((0.9, 1.0), (2.0, 2.0), (BOUND,)),
        ((1.0, 0.5), (0.5, 0.9), (GRAPH, BOUND)),
        ((0.5, 1.2), (1.2, 0.5), ()),
        ((0.97, 0.97), (1.0, 1.0), ()),
        ((0.9, 0.5), (0.5, 1.0), (BOUND, GRAPH)),
    ],
)
def test_order_of_methods(
    bound: tuple[float, float], graph: tuple[float, float], order: tuple[RunMethod, ...]
) -> None:
    times = {
        PLAIN: MethodTime(1.0, 1.0),
        BOUND: MethodTime(*bound),
        GRAPH: MethodTime(*graph),
    }
    assert run_methods._order_methods(times) == order


@pytest.mark.parametrize(
    ("dtype", "difference", "same"),
    [
        (np.float32, 5e-4, True),
        (np.float32, 5e-3, False),
        (np.float16, 5e-3, True),
        (np.float16, 5e-2, False),
        (np.int64, 0, True),
        (np.int64, 1, False),
    ],
)
def test_answers_are_the_same_but_for_rounding(dtype: Any, difference: float, same: bool) -> None:
    expected = np.array([[1, 0], [0, 0]], dtype)
    assert same_answers([expected + np.array(difference, dtype)], [expected]) == same


def test_answers_that_are_no_numbers() -> None:
    nan = np.array([np.nan, np.inf, 1], np.float32)
    assert same_answers([nan], [nan.copy()])
    assert not same_answers([nan], [np.ones(3, np.float32)])
    assert not same_answers([np.ones(3, np.float32)], [nan])
    assert not same_answers([nan], [nan.reshape(3, 1)])
    assert not same_answers([], [nan])


def test_what_was_measured_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0.0)
    bench.methods.choose([1, 2], rows)
    number = r"[0-9.e-]+/[0-9.e-]+"
    each = f"plain {number}, bound {number}"
    assert re.fullmatch(f"1: {each}; 2: {each}", bench.methods.describe_times())
