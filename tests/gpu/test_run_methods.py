"""Runs with bound buffers and CUDA graphs on a real GPU: they work, are right, and are used.

Each test makes its models itself. Where one fails, its message says which step of the way it was.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.fakes import FakeRequest

from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Array
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx import loading, run_methods
from neurona_server.models.onnx.bindings import BoundRunner, CudaMemory, graph_tensors
from neurona_server.models.onnx.cuda_driver import load_driver
from neurona_server.models.onnx.cuda_graphs import GraphRunner
from neurona_server.models.onnx.run_methods import RunMethod, same_answers
from neurona_server.models.onnx.runtime import CPU, CUDA, RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture
def memory() -> CudaMemory:
    return CudaMemory(load_driver(), 0)


def save_perceptron(path: Path, layers: int = 12, width: int = 64) -> Path:
    """Save a network of many small kernels: what CUDA graphs are for."""
    random = np.random.default_rng(1)
    nodes, constants, value = [], {}, "x"
    for number in range(layers):
        constants[f"w{number}"] = random.normal(0, width**-0.5, (width, width)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [f"m{number}"]))
        value = "y" if number == layers - 1 else f"h{number}"
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [value]))
    shape = ["batch", width]
    return onnx_models.save(path, nodes, {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, constants)


def save_lstm(path: Path, hidden: int = 64) -> Path:
    random = np.random.default_rng(1)
    constants = {
        name: random.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in {
            "w": (1, 4 * hidden, 8),
            "r": (1, 4 * hidden, hidden),
            "b": (1, 8 * hidden),
        }.items()
    }
    return onnx_models.save(
        path,
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["t", "w", "r", "b", "n"], ["", "h"], hidden_size=hidden),
            helper.make_node("Squeeze", ["h", "zero"], ["y"]),
        ],
        {"x": (FLOAT, ["batch", "time", 8]), "n": (INT32, ["batch"])},
        {"y": (FLOAT, ["batch", hidden])},
        {**constants, "zero": np.array([0])},
    )


def rows(count: int, seed: int, width: int = 64) -> Array:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def open_session(path: Path, provider: str) -> onnxruntime.InferenceSession:
    providers = [provider] if provider == CPU else [(provider, {"device_id": "0"}), CPU]
    session = onnxruntime.InferenceSession(path, providers=providers, enable_fallback=0)
    assert session.get_providers()[0] == provider
    return session


def tensors(session: onnxruntime.InferenceSession, memory: CudaMemory) -> Any:
    types = {"tensor(float)": (1, np.float32), "tensor(int32)": (6, np.int32)}
    known = {
        node.name: (types[node.type][0], np.dtype(types[node.type][1]))
        for node in [*session.get_inputs(), *session.get_outputs()]
    }
    return graph_tensors(session, known, memory)


def options() -> onnxruntime.RunOptions:
    return onnxruntime.RunOptions()


def test_the_driver_copies_through_a_stream(memory: CudaMemory) -> None:
    host = memory.allocate_host(4 << 20)
    host[:] = np.random.default_rng(1).integers(0, 256, host.size, np.uint8)
    device = memory.allocate_device(host.size)
    back = memory.allocate_host(host.size)
    stream = memory.new_stream()
    stream.copy_in([(device.address, host)])
    stream.copy_out([(back, device.address)])
    np.testing.assert_array_equal(back, host)


def test_page_locked_memory_is_copied_faster(memory: CudaMemory) -> None:
    nbytes = 64 << 20
    device, stream = memory.allocate_device(nbytes), memory.new_stream()
    times = {}
    for name, host in (
        ("page-locked", memory.allocate_host(nbytes)),
        ("ordinary", np.ones(nbytes, np.uint8)),
    ):
        stream.copy_in([(device.address, host)])
        started = time.perf_counter()
        for _ in range(5):
            stream.copy_in([(device.address, host)])
        times[name] = 5 * nbytes / (time.perf_counter() - started) / 1e9
    assert times["page-locked"] > times["ordinary"], f"GB/s: {times}"


def test_where_onnx_runtime_has_inputs_and_outputs(tmp_path: Path, memory: CudaMemory) -> None:
    """Lengths are an input in the host's memory; all else is on the device."""
    session = open_session(save_lstm(tmp_path / "model.onnx"), CUDA)
    infos = {
        node.name: info.name
        for node, info in zip(session.get_inputs(), session.get_input_memory_infos(), strict=True)
    }
    inputs, outputs = tensors(session, memory)
    placed = {tensor.name: tensor.on_device for tensor in [*inputs, *outputs]}
    assert placed == {"x": True, "n": False, "y": True}, f"ONNX Runtime's names: {infos}"


def test_bound_runs_give_the_answers_of_ordinary_ones(tmp_path: Path, memory: CudaMemory) -> None:
    path = save_perceptron(tmp_path / "model.onnx")
    session = open_session(path, CUDA)
    runner = BoundRunner(session, memory, *tensors(session, memory))
    slot = runner.new_slot()
    for count in (1, 7, 64, 3):
        for seed in (1, 2):
            inputs = {"x": rows(count, seed)}
            expected = session.run(None, inputs)
            runner.learn(inputs, expected)
            outputs = runner.run(slot, inputs, options())
            assert outputs is not None, f"{count} rows are not bound"
            assert same_answers(outputs, expected), f"{count} rows, input {seed}"


def test_bound_runs_with_lengths_on_the_host(tmp_path: Path, memory: CudaMemory) -> None:
    session = open_session(save_lstm(tmp_path / "model.onnx"), CUDA)
    runner = BoundRunner(session, memory, *tensors(session, memory))
    slot = runner.new_slot()
    random = np.random.default_rng(1)
    for lengths in ([10, 10, 10], [10, 4, 1], [3, 10, 7]):
        x = random.standard_normal((3, 10, 8)).astype(np.float32)
        inputs = {"x": x, "n": np.array(lengths, np.int32)}
        expected = session.run(None, inputs)
        runner.learn(inputs, expected)
        outputs = runner.run(slot, inputs, options())
        assert outputs is not None
        assert same_answers(outputs, expected), f"lengths {lengths}"


def test_a_run_that_is_terminated_leaves_the_next_one_alone(
    tmp_path: Path, memory: CudaMemory
) -> None:
    """Its kernels go on for a while, with the same buffers."""
    path = save_perceptron(tmp_path / "model.onnx")
    session = open_session(path, CUDA)
    runner = BoundRunner(session, memory, *tensors(session, memory))
    expected = [session.run(None, {"x": rows(512, seed)}) for seed in (1, 2)]
    runner.learn({"x": rows(512, 1)}, expected[0])
    slot = runner.new_slot()
    terminated = 0
    for attempt in range(50):
        ended = options()
        timer = threading.Timer(attempt * 2e-5, setattr, (ended, "terminate", True))
        timer.start()
        try:
            runner.run(slot, {"x": rows(512, 1)}, ended)
        except Exception as error:  # ONNX Runtime has a class of its own for each status
            if "terminate" not in str(error):
                raise
            terminated += 1
        outputs = runner.run(slot, {"x": rows(512, 2)}, options())
        assert outputs is not None
        assert same_answers(outputs, expected[1]), f"attempt {attempt}, {terminated} terminated"
        timer.join()


def test_two_threads_run_bound_at_once(tmp_path: Path, memory: CudaMemory) -> None:
    session = open_session(save_perceptron(tmp_path / "model.onnx"), CUDA)
    runner = BoundRunner(session, memory, *tensors(session, memory))
    inputs = [{"x": rows(16, seed)} for seed in range(8)]
    expected = [session.run(None, one) for one in inputs]
    runner.learn(inputs[0], expected[0])

    def serve(number: int) -> None:
        slot = runner.new_slot()
        for one in range(200):
            index = (one + number) % 8
            outputs = runner.run(slot, inputs[index], options())
            assert outputs is not None
            assert same_answers(outputs, expected[index]), f"thread {number}, run {one}"

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(serve, number) for number in range(2)]:
            future.result()


@pytest.fixture
def graphs(memory: CudaMemory) -> Callable[..., GraphRunner]:
    def make(path: Path, host_values: tuple[str, ...] = ()) -> GraphRunner:
        session = loading.load_with_cuda_graphs(path, RuntimeOptions(), LoadCancellation(), 0)
        runner = GraphRunner(session, memory, *tensors(session, memory), host_values=host_values)
        runner.eager = True
        return runner

    return make


def test_graphs_give_the_answers_of_ordinary_runs(
    tmp_path: Path, graphs: Callable[..., GraphRunner]
) -> None:
    path = save_perceptron(tmp_path / "model.onnx")
    plain, runner = open_session(path, CUDA), graphs(path)
    for count in (1, 2, 8):
        runner.learn({"x": rows(count, 0)}, plain.run(None, {"x": rows(count, 0)}))
    slot = runner.new_slot()
    for seed in range(5):
        for count in (1, 2, 8):
            inputs = {"x": rows(count, seed)}
            outputs = runner.run(slot, inputs, options())
            assert outputs is not None
            assert same_answers(outputs, plain.run(None, inputs)), f"{count} rows, input {seed}"
    assert runner.graphs == 3


def test_graphs_of_an_lstm_hold_for_the_lengths_that_were_captured(
    tmp_path: Path, graphs: Callable[..., GraphRunner]
) -> None:
    path = save_lstm(tmp_path / "model.onnx")
    plain, runner = open_session(path, CUDA), graphs(path, ("n",))
    slot = runner.new_slot()
    for lengths in ([10, 10], [4, 9], [10, 10], [4, 9]):
        inputs = {
            "x": rows(20, len(lengths), 8).reshape(2, 10, 8),
            "n": np.array(lengths, np.int32),
        }
        expected = plain.run(None, inputs)
        runner.learn(inputs, expected)
        outputs = runner.run(slot, inputs, options())
        assert outputs is not None
        assert same_answers(outputs, expected), f"lengths {lengths}"
    assert runner.graphs == 2


def test_a_graph_is_faster_than_ordinary_runs_of_small_batches(
    tmp_path: Path, graphs: Callable[..., GraphRunner]
) -> None:
    path = save_perceptron(tmp_path / "model.onnx")
    plain, runner = open_session(path, CUDA), graphs(path)
    inputs = {"x": rows(1, 0)}
    runner.learn(inputs, plain.run(None, inputs))
    slot = runner.new_slot()

    def seconds(run: Callable[[], object]) -> float:
        times = []
        for _ in range(200):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return float(np.median(times[50:]))

    ordinary = seconds(lambda: plain.run(None, inputs))
    graph = seconds(lambda: runner.run(slot, inputs, options()))
    assert graph < 0.8 * ordinary, f"{1e6 * graph:.0f} us as a graph, {1e6 * ordinary:.0f} us plain"


def test_other_threads_go_on_while_a_graph_is_captured(
    tmp_path: Path, graphs: Callable[..., GraphRunner], memory: CudaMemory
) -> None:
    """They allocate and copy, which CUDA forbids during a capture unless a thread is prepared."""
    path = save_perceptron(tmp_path / "model.onnx")
    plain = open_session(path, CUDA)
    stop = threading.Event()

    def disturb() -> int:
        memory.prepare_thread()
        runs = 0
        while not stop.is_set():
            session = open_session(path, CUDA)
            session.run(None, {"x": rows(1 + runs % 50, runs)})
            runs += 1
        return runs

    with ThreadPoolExecutor(1) as pool:
        disturbing = pool.submit(disturb)
        try:
            for attempt in range(5):
                runner = graphs(path)
                slot = runner.new_slot()
                for count in (1, 2, 3, 4, 5):
                    inputs = {"x": rows(count, attempt)}
                    expected = plain.run(None, inputs)
                    runner.learn(inputs, expected)
                    outputs = runner.run(slot, inputs, options())
                    assert outputs is not None
                    assert same_answers(outputs, expected), f"attempt {attempt}, {count} rows"
        finally:
            stop.set()
        assert disturbing.result() > 0


class Waiting(FakeRequest):
    """A request whose outputs can be waited for."""

    def __init__(self, inputs: dict[str, Array]) -> None:
        super().__init__(inputs, len(inputs["x"]), (inputs["x"].shape[1:],))
        self.done = threading.Event()

    def finish(self, outputs: Any, error: Any) -> None:
        super().finish(outputs, error)
        self.done.set()

    def outputs(self) -> list[Array]:
        assert self.done.wait(60), "no answer within a minute"
        ((outputs, error),) = self.results
        assert error is None, f"the request failed: {error}"
        return [*outputs]


@pytest.fixture(params=[None, RunMethod.BOUND, RunMethod.GRAPH], ids=["measured", "bound", "graph"])
def model(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Model]:
    """A model that runs in the way that was measured, or in a given one for all batch sizes."""
    caplog.set_level(logging.INFO)
    if request.param is not None:
        monkeypatch.setattr(
            run_methods,
            "_order_methods",
            lambda times: (request.param,) if request.param in times else (),
        )
    path = save_perceptron(tmp_path / "model.onnx")
    model = Model(
        ModelSource("m", 1, path),
        ModelOptions(policy=BatchPolicy(max_rows=16)),
        Metrics(CollectorRegistry()),
    )
    if request.param is not None:
        assert str(request.param) in model.run_method, f"{model.run_method}:\n{caplog.text}"
    model.start()
    yield model
    model.drain(10)
    model.close()


def test_a_served_model_answers_right_under_load(model: Model, tmp_path: Path) -> None:
    reference = open_session(tmp_path / "model.onnx", CPU)

    def call(number: int) -> None:
        for one in range(25):
            inputs = {"x": rows(1 + (number + one) % 7, 100 * number + one)}
            request = Waiting(inputs)
            model.batcher.submit(request)
            expected = reference.run(None, inputs)[0]
            np.testing.assert_allclose(request.outputs()[0], expected, atol=0.02)

    with ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(call, number) for number in range(16)]:
            future.result()
    unusable = [one._methods.unusable for one in model.sessions if one._methods is not None]
    assert not any(unusable), f"given up: {unusable}"


def test_a_closed_session_gives_its_memory_back(tmp_path: Path, memory: CudaMemory) -> None:
    path = save_perceptron(tmp_path / "model.onnx", width=256)

    def load() -> None:
        session = Session(path, RuntimeOptions())
        session.choose_methods(
            [1, 64], lambda count, seed: {"x": rows(count, seed, 256)}, LoadCancellation()
        )
        session.close()

    load()
    load()
    before = memory.free_bytes()
    for _ in range(5):
        load()
    lost = before - memory.free_bytes()
    assert lost < 32 << 20, f"five loads kept {lost >> 20} MiB of the GPU's memory"
