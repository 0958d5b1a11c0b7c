import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models
from support.host_memory import HostMemory, bindable

from neurona_server.batching.request import Array
from neurona_server.models.onnx import bindings, cuda_graphs
from neurona_server.models.onnx.cuda_graphs import RUNS_BEFORE_CAPTURE, GraphRunner

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


class CapturingSession(onnxruntime.InferenceSession):
    """Runs on the CPU, but does with graphs what the CUDA provider does.

    A run with a number that this thread has not captured is captured: its values on the host are
    what all later runs with the number get, whatever they are given. `hosted` tells where they are.
    """

    def __init__(self, path: Path, hosted: dict[str, Array]) -> None:
        super().__init__(path, providers=["CPUExecutionProvider"])
        self.hosted = hosted
        self.captured: dict[tuple[threading.Thread, str], dict[str, Array]] = {}
        self.numbers: list[str] = []
        self.memory = HostMemory()
        self.active: list[bool] = []
        self.running = 0
        self.fail = False

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
        assert self.running == 0, "runs of a session with graphs are concurrent"
        self.running += 1
        try:
            self._run(iobinding, run_options)
        finally:
            self.running -= 1

    def _run(self, iobinding: Any, run_options: Any) -> None:
        number = run_options.get_run_config_entry("gpu_graph_id")
        self.numbers.append(number)
        self.active.append(self.memory.active)
        if self.fail:
            raise RuntimeError("CUDA failure 900: operation not permitted when stream is capturing")
        values = {name: view.copy() for name, view in self.hosted.items()}
        captured = self.captured.setdefault((threading.current_thread(), number), values)
        for name, view in self.hosted.items():
            view[...] = captured[name]
        super().run_with_iobinding(iobinding, None)
        for name, view in self.hosted.items():
            view[...] = values[name]


class Model:
    """y = x + n, where n is an input that kernels get from the host."""

    def __init__(self, folder: Path, host_names: Sequence[str] = ("n",)) -> None:
        path = onnx_models.save(
            folder / "model.onnx",
            [
                helper.make_node("Cast", ["n"], ["f"], to=FLOAT),
                helper.make_node("Add", ["x", "f"], ["y"]),
            ],
            {"x": (FLOAT, ["b", 2]), "n": (INT32, ["b", 1])},
            {"y": (FLOAT, ["b", 2])},
        )
        self.hosted: dict[str, Array] = {}
        self.session = CapturingSession(path, self.hosted)
        self.plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.runner = GraphRunner(
            self.session,
            self.session.memory,
            *bindable(self.session, host_names),
            host_values=["n"],
        )
        self.slot = self.runner.new_slot()

    def learn(self, rows: int, add: int, value: float = 1.0) -> tuple[dict[str, Array], list[Any]]:
        """Run it in the ordinary way; return inputs and outputs."""
        inputs = {
            "x": np.full((rows, 2), value, np.float32),
            "n": np.full((rows, 1), add, np.int32),
        }
        outputs = self.plain.run(None, inputs)
        self.runner.learn(inputs, outputs)
        return inputs, outputs

    def run(self, rows: int, add: int, value: float = 1.0) -> Array | None:
        """Return y if it was run as a graph, and check it."""
        inputs, expected = self.learn(rows, add, value)
        views = self.runner.reserve(
            self.slot, {name: array.shape for name, array in inputs.items()}
        )
        assert views is not None
        self.hosted["n"] = views["n"]
        outputs = self.runner.run(self.slot, inputs, onnxruntime.RunOptions())
        if outputs is None:
            return None
        np.testing.assert_array_equal(outputs[0], expected[0])
        return outputs[0]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def test_the_same_shapes_are_captured_once_they_have_come_often_enough(model: Model) -> None:
    ran = [model.run(3, 5, value) is not None for value in range(RUNS_BEFORE_CAPTURE + 2)]
    assert ran == [False] * (RUNS_BEFORE_CAPTURE - 1) + [True] * 3
    assert model.session.numbers == ["1", "1", "1"]
    assert model.runner.graphs == 1


def test_each_number_of_rows_has_a_graph(model: Model) -> None:
    model.runner.eager = True
    for rows in (1, 2, 4):
        model.learn(rows, 5)
    for rows in (1, 2, 4, 1, 2, 4):
        assert model.run(rows, 5) is not None
    assert model.session.numbers == ["1", "2", "3", "1", "2", "3"]


@pytest.mark.parametrize("host_names", [["n"], []], ids=["on the host", "read by the host"])
def test_a_graph_is_used_for_the_values_that_it_holds_only(
    tmp_path: Path, host_names: Sequence[str]
) -> None:
    model = Model(tmp_path, host_names)
    model.runner.eager = True
    for add in (5, 6, 5, 6):
        assert model.run(3, add) is not None
    assert model.session.numbers == ["1", "2", "1", "2"]
    model.runner.eager = False
    assert model.run(3, 7) is None
    assert model.run(3, 5) is not None


def test_the_stand_in_has_what_it_is_to_reveal(tmp_path: Path) -> None:
    """Without the check of values, the captured ones would be used."""
    model = Model(tmp_path)
    model.runner._host_values = ()
    model.runner.eager = True
    model.run(3, 5)
    with pytest.raises(AssertionError):
        model.run(3, 6)


def test_a_larger_batch_has_other_addresses_so_graphs_are_captured_again(model: Model) -> None:
    model.runner.eager = True
    for rows in (1, 8, 1):
        model.run(rows, 5)
    assert model.session.numbers == ["1", "2", "3"]


def test_the_number_of_graphs_is_limited(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    model.runner.eager = True
    assert [model.run(rows, 5) is not None for rows in (4, 3, 2, 4)] == [True, True, False, True]


def test_many_values_are_not_compared(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_HOST_VALUES", 8)
    model.runner.eager = True
    assert [model.run(rows, 5) is not None for rows in (2, 3)] == [True, False]


def test_counts_of_values_do_not_grow_without_limit(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_COUNTED_VALUES", 10)
    for add in range(100):
        assert model.run(1, add) is None
    (binding,) = model.slot.bindings.values()
    assert len(binding.graph_counts) <= 10


def test_a_capture_that_fails_leaves_no_graph(model: Model) -> None:
    model.runner.eager = True
    model.session.fail = True
    with pytest.raises(RuntimeError, match="capturing"):
        model.run(3, 5)
    model.session.fail = False
    assert model.run(3, 5) is not None
    assert model.session.numbers == ["1", "2"]


def test_a_capture_whose_copies_failed_is_not_made_by_the_next_run(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no copy")

    model.runner.eager = True
    assert model.run(3, 5) is not None
    with monkeypatch.context() as patch:
        patch.setattr(model.slot.stream, "copy_in", fail)
        with pytest.raises(RuntimeError, match="no copy"):
            model.run(3, 6)
    for add in (5, 6, 5, 6):
        assert model.run(3, add) is not None
    assert model.session.numbers == ["1", "1", "2", "1", "2"]


def test_nothing_is_captured_while_another_session_captures(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may hang, on another device; batches run in another way meanwhile."""
    with bindings.capture_lock:
        assert [model.run(3, 5) for _ in range(RUNS_BEFORE_CAPTURE + 2)] == [None] * 5
        model.runner.eager = True
        monkeypatch.setattr(cuda_graphs, "CAPTURE_SECONDS", 0.01)
        monkeypatch.setattr(bindings, "CAPTURE_SECONDS", 0.01)
        with pytest.raises(TimeoutError):
            model.run(3, 5)
    assert model.run(3, 5) is not None


def test_a_graph_is_launched_on_its_own_device(model: Model) -> None:
    """The thread may have run a batch on another one since; captures set it themselves."""
    model.runner.eager = True
    for _ in range(2):
        assert model.run(3, 5) is not None
    assert model.session.active == [False, True]


def test_a_capture_cannot_be_terminated(model: Model) -> None:
    """ONNX Runtime would keep the nodes that ran before as the graph."""
    inputs = {"x": np.ones((2, 2), np.float32), "n": np.ones((2, 1), np.int32)}
    model.runner.learn(inputs, model.plain.run(None, inputs))
    model.runner.eager = True
    views = model.runner.reserve(model.slot, {name: array.shape for name, array in inputs.items()})
    assert views is not None
    model.hosted["n"] = views["n"]
    options = onnxruntime.RunOptions()
    options.terminate = True
    outputs = model.runner.run(model.slot, inputs, options)
    assert outputs is not None
    np.testing.assert_array_equal(outputs[0], np.full((2, 2), 2, np.float32))


def test_each_thread_captures_and_runs_are_not_concurrent(model: Model) -> None:
    model.runner.eager = True
    ran: list[bool] = []

    def serve() -> None:
        ran.extend(model.run(3, 5, value) is not None for value in range(50))

    # The model's own dictionary of views is for one thread: each waits for the one before.
    for _ in range(2):
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
    assert ran == [True] * 100
    assert sorted(set(model.session.numbers)) == ["1", "2"]


def test_concurrent_callers_wait_for_each_other(tmp_path: Path) -> None:
    model = Model(tmp_path)
    model.hosted.clear()
    model.runner.eager = True
    inputs = {"x": np.ones((64, 2), np.float32), "n": np.ones((64, 1), np.int32)}
    model.runner.learn(inputs, model.plain.run(None, inputs))
    errors: list[BaseException] = []

    def serve() -> None:
        slot = model.runner.new_slot()
        try:
            for _ in range(100):
                assert model.runner.run(slot, inputs, onnxruntime.RunOptions()) is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
