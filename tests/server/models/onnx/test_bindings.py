import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models
from support.cuda_stub import CudaStub
from support.host_memory import HostMemory, HostStream, bindable

from neurona_server.batching.request import Array
from neurona_server.models.onnx import bindings
from neurona_server.models.onnx.bindings import BoundRunner, CudaMemory, OutputPool
from neurona_server.models.onnx.cuda_driver import CudaDriverError, load_driver

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


def open_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def rows(count: int, seed: int = 0) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)}


class Runner(BoundRunner):
    """A runner, and ordinary runs of its session from which it learns."""

    def __init__(self, path: Path, memory: HostMemory, host_names: Sequence[str] = ()) -> None:
        self.session = open_session(path)
        super().__init__(self.session, memory, *bindable(self.session, host_names))
        self.slot = self.new_slot()

    def plain(self, inputs: dict[str, Array]) -> list[Any]:
        outputs: list[Any] = self.session.run(None, inputs)
        self.learn(inputs, outputs)
        return outputs

    def bound(self, inputs: Any) -> list[Array] | None:
        return self.run(self.slot, inputs, onnxruntime.RunOptions())


@pytest.fixture
def memory() -> HostMemory:
    return HostMemory()


@pytest.fixture
def runner(tmp_path: Path, memory: HostMemory) -> Runner:
    return Runner(onnx_models.save_classifier(tmp_path / "model.onnx"), memory)


def test_shapes_run_bound_once_an_ordinary_run_has_shown_those_of_the_outputs(
    runner: Runner, memory: HostMemory
) -> None:
    assert runner.bound(rows(3)) is None
    for count in (3, 5, 1):
        runner.plain(rows(count))
        for seed in (1, 2):
            outputs = runner.bound(rows(count, seed))
            assert outputs is not None
            np.testing.assert_array_equal(outputs[0], runner.plain(rows(count, seed))[0])
    assert memory.copies.count(("in", 5 * 16)) == 2
    assert memory.copies.count(("out", 5 * 12)) == 2


def test_a_larger_batch_replaces_the_buffers_and_a_smaller_one_shares_them(
    runner: Runner, memory: HostMemory
) -> None:
    for count in (2, 64, 3, 64, 2):
        expected = runner.plain(rows(count, count))[0]
        outputs = runner.bound(rows(count, count))
        assert outputs is not None
        np.testing.assert_array_equal(outputs[0], expected)
    device = [nbytes for kind, nbytes in memory.allocations if kind == "device"]
    assert device == [2 * 16, 2 * 12, 64 * 16, 64 * 12]


def test_a_slot_gets_buffers_for_the_largest_batch_at_once(
    runner: Runner, memory: HostMemory
) -> None:
    for count in (1, 64, 8):
        runner.plain(rows(count))
    for count in (1, 8, 64):
        runner.bound(rows(count))
    device = [nbytes for kind, nbytes in memory.allocations if kind == "device"]
    assert device == [64 * 16, 64 * 12]


def test_outputs_stay_until_their_last_array_is_gone_then_their_memory_is_used_again(
    runner: Runner, memory: HostMemory
) -> None:
    runner.plain(rows(4))
    held = runner.bound(rows(4, seed=1))
    assert held is not None
    part = held[0][1:3]
    expected = part.copy()
    del held
    others = [runner.bound(rows(4, seed)) for seed in range(2, 8)]
    np.testing.assert_array_equal(part, expected)
    allocated = len(memory.allocations)
    del others, part
    for seed in range(7):
        runner.bound(rows(4, seed))
    assert len(memory.allocations) == allocated


def test_beyond_its_limit_the_pool_gives_ordinary_memory(memory: HostMemory) -> None:
    pool = OutputPool(memory, max_bytes=3 * 4096 - 1)
    float32 = np.dtype(np.float32)
    arrays = [pool.take((10,), float32) for _ in range(4)]
    assert memory.allocations == [("host", 4096)] * 2
    assert pool.allocated_bytes == 2 * 4096
    for number, array in enumerate(arrays):
        array[:] = number
    assert [array[0] for array in arrays] == [0, 1, 2, 3]
    addresses = {array.ctypes.data for array in arrays[:2]}
    del arrays, array
    assert {pool.take((5, 2), float32).ctypes.data for _ in range(2)} <= addresses


def test_outputs_of_similar_sizes_share_memory(memory: HostMemory) -> None:
    pool = OutputPool(memory)
    for count in (2000, 1100, 1800, 2048):
        pool.take((count,), np.dtype(np.float32))[:] = 1
    assert memory.allocations == [("host", 8192)]


def test_outputs_are_in_ordinary_memory_where_no_more_can_be_page_locked(
    memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> Array:
        raise CudaDriverError(2, "CUDA_ERROR_OUT_OF_MEMORY")

    pool = OutputPool(memory)
    float32 = np.dtype(np.float32)
    monkeypatch.setattr(memory, "allocate_host", refuse)
    pool.take((10,), float32)[:] = 1
    assert pool.allocated_bytes == 0
    monkeypatch.undo()
    pool.take((10,), float32)[:] = 1
    assert pool.allocated_bytes == 4096


def test_forgotten_shapes_get_no_buffers(runner: Runner, memory: HostMemory) -> None:
    for count in (1, 64, 8):
        runner.plain(rows(count))
    runner.forget(8)
    assert runner.bound(rows(64)) is None
    assert runner.bound(rows(1)) is not None
    device = [nbytes for kind, nbytes in memory.allocations if kind == "device"]
    assert device == [8 * 16, 8 * 12]


def test_inputs_are_written_where_they_are_copied_from(runner: Runner) -> None:
    assert runner.reserve(runner.slot, {"x": (3, 4)}) is None  # not known yet
    expected = runner.plain(rows(3))[0]
    target = runner.reserve(runner.slot, {"x": (3, 4)})
    assert target is not None
    target["x"][:2] = rows(3)["x"][:2]
    target["x"][2:] = rows(3)["x"][2:]
    outputs = runner.bound(target)
    assert outputs is not None
    np.testing.assert_array_equal(outputs[0], expected)


@pytest.mark.parametrize("shapes", [{}, {"y": (3, 4)}, {"x": (3, 4), "y": (1,)}])
def test_other_inputs_than_the_graph_requires_are_not_bound(
    runner: Runner, shapes: dict[str, tuple[int, ...]]
) -> None:
    runner.plain(rows(3))
    assert runner.reserve(runner.slot, shapes) is None
    arrays: dict[str, Array] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    assert runner.bound(arrays) is None


def test_another_type_than_the_graphs_is_an_error_and_not_converted(runner: Runner) -> None:
    runner.plain(rows(3))
    with pytest.raises(TypeError):
        runner.bound({"x": rows(3)["x"].astype(np.float64)})


def test_inputs_of_any_layout(runner: Runner) -> None:
    array = np.asfortranarray(rows(4)["x"])
    expected = runner.plain({"x": array})[0]
    outputs = runner.bound({"x": array})
    assert outputs is not None
    np.testing.assert_array_equal(outputs[0], expected)


def test_arrays_without_values_are_not_bound(runner: Runner) -> None:
    runner.plain(rows(0))
    assert runner.bound(rows(0)) is None


def test_batches_above_the_limit_are_not_bound(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "MAX_SLOT_BYTES", 20 * 16 + 20 * 12)
    for count in (20, 21, 20):
        runner.plain(rows(count))
        assert (runner.bound(rows(count)) is None) == (count > 20)


def test_the_least_recently_run_shapes_are_dropped(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "MAX_BINDINGS", 2)
    monkeypatch.setattr(bindings, "MAX_KNOWN_SHAPES", 3)
    for count in (9, 1, 2, 3):
        runner.plain(rows(count))
        runner.bound(rows(count))
    assert list(runner.slot.bindings) == [((2, 4),), ((3, 4),)]
    assert runner.bound(rows(9)) is None
    assert runner.bound(rows(1)) is not None


def test_tensors_that_the_graph_has_on_the_host_are_not_copied_to_the_device(
    tmp_path: Path, memory: HostMemory
) -> None:
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [
            helper.make_node("Cast", ["n"], ["f"], to=FLOAT),
            helper.make_node("Add", ["x", "f"], ["y"]),
            helper.make_node("Identity", ["n"], ["m"]),
        ],
        {"x": (FLOAT, ["b", 2]), "n": (INT32, ["b", 1])},
        {"y": (FLOAT, ["b", 2]), "m": (INT32, ["b", 1])},
    )
    runner = Runner(path, memory, host_names=["n", "m"])
    for add in (1, 2):
        inputs = {"x": np.ones((3, 2), np.float32), "n": np.full((3, 1), add, np.int32)}
        expected = runner.plain(inputs)
        outputs = runner.bound(inputs)
        assert outputs is not None
        for output, array in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(output, array)
    assert [kind for kind, _ in memory.allocations].count("device") == 2
    assert memory.copies == [("in", 24), ("out", 24)] * 2


def test_outputs_of_another_shape_than_before_are_an_error(
    tmp_path: Path, memory: HostMemory
) -> None:
    """It must never be that values are missing, or come from an earlier run."""
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("NonZero", ["x"], ["y"])],
        {"x": (FLOAT, ["n"])},
        {"y": (TensorProto.INT64, [1, "m"])},
    )
    runner = Runner(path, memory)
    runner.plain({"x": np.array([1, 0, 1], np.float32)})
    with pytest.raises(RuntimeError, match="shape"):
        runner.bound({"x": np.array([1, 1, 1], np.float32)})


def test_the_copies_of_one_batch_overlap_the_run_of_another(
    tmp_path: Path, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_runs, second_copied = threading.Event(), threading.Event()

    class Stream(HostStream):
        def copy_in(self, copies: Sequence[tuple[int, Array]]) -> None:
            if threading.current_thread().name == "second":
                assert first_runs.wait(10)
                second_copied.set()
            super().copy_in(copies)

    class LongRun(onnxruntime.InferenceSession):
        def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> None:
            if threading.current_thread().name == "first":
                first_runs.set()
                assert second_copied.wait(10)
            super().run_with_iobinding(iobinding, run_options)

    monkeypatch.setattr(memory, "new_stream", lambda: Stream(memory))
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    session = LongRun(path, providers=["CPUExecutionProvider"])
    runner = BoundRunner(session, memory, *bindable(session))
    inputs = {"first": rows(3, 1), "second": rows(3, 2)}
    expected = {name: session.run(None, one)[0] for name, one in inputs.items()}
    runner.learn(inputs["first"], [expected["first"]])
    results: dict[str, Array] = {}

    def serve(name: str) -> None:
        outputs = runner.run(runner.new_slot(), inputs[name], onnxruntime.RunOptions())
        assert outputs is not None
        results[name] = outputs[0]

    threads = [threading.Thread(target=serve, args=(name,), name=name) for name in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for name in inputs:
        np.testing.assert_array_equal(results[name], expected[name])


def test_a_run_that_is_terminated_is_over_before_its_buffers_are_used_again(
    runner: Runner, memory: HostMemory
) -> None:
    """ONNX Runtime does not wait for the kernels that it has launched."""
    expected = runner.plain(rows(3))[0]
    options = onnxruntime.RunOptions()
    options.terminate, options.log_severity_level = True, 4
    with pytest.raises(Exception, match="terminate"):
        runner.run(runner.slot, rows(3, 1), options)
    assert memory.synchronizations == 1
    allocated = len(memory.allocations)
    outputs = runner.bound(rows(3))
    assert outputs is not None
    np.testing.assert_array_equal(outputs[0], expected)
    assert memory.synchronizations == 1
    assert len(memory.allocations) == allocated + 1  # of the outputs


def test_buffers_that_may_be_in_use_are_not_used_again(
    runner: Runner, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    expected = runner.plain(rows(3))[0]
    monkeypatch.setattr(memory, "synchronize", fail)
    with monkeypatch.context() as patch:
        patch.setattr(runner.session, "run_with_iobinding", fail)
        views = runner.reserve(runner.slot, {"x": (3, 4)})
        with pytest.raises(RuntimeError, match="broken"):
            runner.bound(views)
    assert not runner.slot.buffers
    assert runner.reserve(runner.slot, {"x": (3, 4)}) is not views
    outputs = runner.bound(rows(3))
    assert outputs is not None
    np.testing.assert_array_equal(outputs[0], expected)


def test_nobody_waits_for_a_device_that_is_lost(
    runner: Runner, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")

    runner.plain(rows(3))
    monkeypatch.setattr(runner.session, "run_with_iobinding", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        runner.bound(rows(3))
    assert memory.synchronizations == 0


def test_waiting_for_a_device_does_not_spoil_a_capture(
    cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stub.configure(monkeypatch)
    memory = CudaMemory(load_driver(str(cuda_stub.path)), 0)
    memory.synchronize()
    monkeypatch.setattr(bindings, "CAPTURE_SECONDS", 0.01)
    with bindings.capture_lock, pytest.raises(TimeoutError):
        memory.synchronize()
    memory.synchronize()


def test_cuda_memory(cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through the driver's functions, whose stand-in has device memory that the CPU can use."""
    cuda_stub.configure(monkeypatch, memory=1 << 30)
    driver = load_driver(str(cuda_stub.path))
    memory = CudaMemory(driver, 0)
    monkeypatch.setattr(memory, "device_type", "cpu")
    session = open_session(onnx_models.save_classifier(tmp_path / "model.onnx"))
    before = driver.memory_info(0)[0], cuda_stub.host_allocations()
    runner = BoundRunner(session, memory, *bindable(session))
    slot = runner.new_slot()
    for count in (2, 7, 3):
        expected = session.run(None, rows(count))[0]
        runner.learn(rows(count), [expected])
        outputs = runner.run(slot, rows(count), onnxruntime.RunOptions())
        assert outputs is not None
        np.testing.assert_array_equal(outputs[0], expected)
    assert driver.memory_info(0)[0] < before[0]
    assert cuda_stub.host_allocations() > before[1]
    del runner, slot, outputs
    gc.collect()
    assert (driver.memory_info(0)[0], cuda_stub.host_allocations()) == before
