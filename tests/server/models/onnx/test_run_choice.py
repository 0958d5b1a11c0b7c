"""Whole models that run on a stand-in device: the CPU provider, with memory of the host as its own.

To Neurona it is the device cuda:0; ONNX Runtime ignores the numbers of graphs there.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.fakes import FakeRequest
from support.host_memory import HostMemory
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import DataType, DescribeModelRequest
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Array
from neurona_server.errors import DeviceLostError, LoadError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx import loading, run_choice, run_methods, runtime, session
from neurona_server.models.onnx.run_methods import RunMethod
from neurona_server.models.onnx.runtime import CPU, RuntimeOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import DeclaredTensor, ModelSettings
from neurona_server.telemetry.metrics import Metrics

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
Load = Callable[..., Model]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> HostMemory:
    """Make the CPU provider a CUDA device, and every way to run as good as another."""
    memory = HostMemory()
    monkeypatch.setattr(runtime, "CUDA_PROVIDERS", (CPU,))
    monkeypatch.setattr(runtime, "CUDA", CPU)
    monkeypatch.setattr(session, "find_memory", lambda _: memory)
    monkeypatch.setattr(run_methods, "FASTER_RATIO", 1e9)
    monkeypatch.setattr(run_methods, "SLOWER_RATIO", 1e9)
    return memory


@pytest.fixture
def graph_sessions(monkeypatch: pytest.MonkeyPatch) -> list[onnxruntime.InferenceSession]:
    """The sessions that were loaded for CUDA graphs, which a test may have."""
    sessions: list[onnxruntime.InferenceSession] = []

    def load(path: Path, *_: Any) -> onnxruntime.InferenceSession:
        sessions.append(onnxruntime.InferenceSession(path, providers=[CPU]))
        return sessions[-1]

    monkeypatch.setattr(loading, "load_with_cuda_graphs", load)
    return sessions


@pytest.fixture
def load() -> Iterator[Load]:
    models: list[Model] = []

    def load(path: Path, settings: ModelSettings | None = None, **options: Any) -> Model:
        models.append(
            Model(
                ModelSource("m", 1, path, settings or ModelSettings()),
                ModelOptions(
                    runtime=RuntimeOptions(providers=("cpu",), threads=1, **options),
                    policy=BatchPolicy(max_rows=8, inline=False),
                ),
                Metrics(CollectorRegistry()),
            )
        )
        return models[-1]

    yield load
    for model in models:
        model.start()
        model.drain(5)
        model.close()


class Waiting(FakeRequest):
    """A request whose outputs can be waited for."""

    def __init__(self, inputs: dict[str, Array]) -> None:
        group = tuple([array.shape[1:] for array in inputs.values()])
        super().__init__(inputs, len(next(iter(inputs.values()))), group)
        self.done = threading.Event()

    def finish(self, outputs: Any, error: Any) -> None:
        super().finish(outputs, error)
        self.done.set()

    def outputs(self) -> list[Array]:
        assert self.done.wait(20)
        ((outputs, error),) = self.results
        assert error is None
        return [*outputs]


def serve(model: Model, inputs: Sequence[dict[str, Array]]) -> list[list[Array]]:
    """Submit requests at once; return the outputs of each."""
    requests = [Waiting(one) for one in inputs]
    for request in requests:
        model.batcher.submit(request)
    return [request.outputs() for request in requests]


def rows(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def check_under_load(model: Model, path: Path) -> None:
    """Serve batches of many sizes from several threads, and compare each answer."""
    plain = onnxruntime.InferenceSession(path, providers=[CPU])

    def call(number: int) -> None:
        inputs = [{"x": rows(1 + (number + one) % 5, 100 * number + one)} for one in range(4)]
        for one, outputs in zip(inputs, serve(model, inputs), strict=True):
            np.testing.assert_allclose(outputs[0], plain.run(None, one)[0], rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(call, number) for number in range(40)]:
            future.result()


def test_batches_are_joined_in_page_locked_memory_and_answers_are_right(
    tmp_path: Path, memory: HostMemory, load: Load
) -> None:
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    model = load(path)
    assert model.batcher.devices == ["cuda:0"]
    assert model.batcher.instances == 2
    (one,) = model.sessions
    assert one.run_method == "bound"
    assert model.batcher.joins_in_place
    model.start()
    copies = len(memory.copies)
    check_under_load(model, path)
    assert len(memory.copies) > copies
    assert len(memory.prepared_threads) >= 3  # that which loaded it, and those that serve


def test_small_batches_run_as_graphs(
    tmp_path: Path,
    memory: HostMemory,
    load: Load,
    graph_sessions: list[onnxruntime.InferenceSession],
) -> None:
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    model = load(path)
    assert len(graph_sessions) == 1
    (one,) = model.sessions
    assert "graph" in one.run_method
    model.start()
    check_under_load(model, path)


@pytest.mark.parametrize(
    "options",
    [
        {"gpu_memory_bytes": 1 << 30},
        {"provider_options": {"cuda": {"enable_cuda_graph": "0"}}},
        {"run_method": "bound"},
    ],
)
def test_no_graphs_where_options_speak_against_them(
    tmp_path: Path,
    memory: HostMemory,
    load: Load,
    graph_sessions: list[onnxruntime.InferenceSession],
    options: dict[str, Any],
) -> None:
    model = load(onnx_models.save_classifier(tmp_path / "model.onnx"), **options)
    assert graph_sessions == []
    assert model.sessions[0].run_method == "bound"


def test_no_graphs_of_slow_models_large_ones_and_control_flow(
    tmp_path: Path,
    memory: HostMemory,
    load: Load,
    graph_sessions: list[onnxruntime.InferenceSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(onnx_models.save_loop(tmp_path / "loop.onnx"))
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    monkeypatch.setattr(run_choice, "GRAPH_SECONDS", 0.0)
    load(path)
    monkeypatch.setattr(run_choice, "GRAPH_SECONDS", 10.0)
    monkeypatch.setattr(memory, "free_bytes", lambda: 7 * path.stat().st_size)
    load(path)
    assert graph_sessions == []
    monkeypatch.setattr(memory, "free_bytes", lambda: 9 * path.stat().st_size)
    load(path)
    assert len(graph_sessions) == 1


def test_external_data_count_as_part_of_the_model(
    tmp_path: Path,
    memory: HostMemory,
    load: Load,
    graph_sessions: list[onnxruntime.InferenceSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = np.zeros((4, 5000), np.float32)
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["b", 4])},
        {"y": (FLOAT, ["b", 5000])},
        {"w": weights},
    )
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="w.bin")
    monkeypatch.setattr(memory, "free_bytes", lambda: 7 * weights.nbytes)
    load(path)
    assert graph_sessions == []
    monkeypatch.setattr(memory, "free_bytes", lambda: 9 * weights.nbytes)
    load(path)
    assert len(graph_sessions) == 1


def test_a_model_that_onnx_runtime_makes_no_graphs_of(
    tmp_path: Path, memory: HostMemory, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("This session cannot use the graph capture feature as requested")

    monkeypatch.setattr(loading, "load_with_cuda_graphs", refuse)
    model = load(onnx_models.save_classifier(tmp_path / "model.onnx"))
    assert model.sessions[0].run_method == "bound"


def test_strings_are_not_bound(tmp_path: Path, memory: HostMemory, load: Load) -> None:
    model = load(onnx_models.save_echo(tmp_path / "model.onnx", "BYTES"))
    assert model.sessions[0].run_method == "plain"
    assert not model.batcher.joins_in_place
    model.start()
    name = model.signature.inputs[0].name
    (outputs,) = serve(model, [{name: np.array([["a"], ["b"]], object)}])
    assert outputs[0].tolist() == [["a"], ["b"]]


def test_shapes_that_a_config_declares_are_joined_too(
    tmp_path: Path, memory: HostMemory, load: Load
) -> None:
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    declared = DeclaredTensor("input", "x", DataType.DATA_TYPE_FLOAT, (-1, 2, 2), (-1, 4))
    model = load(path, ModelSettings(declared=(declared,)))
    assert model.batcher.joins_in_place
    model.start()
    plain = onnxruntime.InferenceSession(path, providers=[CPU])
    inputs = [{"x": rows(2, seed).reshape(2, 2, 2)} for seed in range(12)]
    for one, outputs in zip(inputs, serve(model, inputs), strict=True):
        expected = plain.run(None, {"x": one["x"].reshape(2, 4)})[0]
        np.testing.assert_allclose(outputs[0], expected, rtol=1e-5, atol=1e-6)


def test_lengths_of_sequences_are_all_steps_then_half_of_them(
    tmp_path: Path, memory: HostMemory, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lengths 0 and 1 of other synthetic inputs, a recurrent model would do nothing."""
    random = np.random.default_rng(1)
    weights = {
        "w": random.standard_normal((1, 12, 2)).astype(np.float32),
        "r": random.standard_normal((1, 12, 3)).astype(np.float32),
    }
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["t", "w", "r", "", "n"], ["", "h"], hidden_size=3),
            helper.make_node("Squeeze", ["h", "zero"], ["y"]),
        ],
        {"x": (FLOAT, ["b", "t", 2]), "n": (INT32, ["b"])},
        {"y": (FLOAT, ["b", 3])},
        {**weights, "zero": np.array([0])},
    )
    made: list[tuple[int, list[int]]] = []
    choose = session.Session.choose_methods

    def note(self: Any, sizes: Any, make_inputs: Any, cancellation: Any) -> None:
        for seed in (1, 2):
            inputs = make_inputs(2, seed)
            made.append((inputs["x"].shape[1], inputs["n"].tolist()))
        choose(self, sizes, make_inputs, cancellation)

    monkeypatch.setattr(session.Session, "choose_methods", note)
    model = load(path)
    assert made == [(8, [8, 8]), (8, [4, 4])]
    (one,) = model.sessions
    assert one.run_method == "bound"
    # The file's graph has buffers; lengths beside each other run in the rewritten one.
    assert one.runs_sequences
    model.start()
    plain = onnxruntime.InferenceSession(path, providers=[CPU])
    requests = [
        {
            "x": random.standard_normal((1, steps, 2)).astype(np.float32),
            "n": np.array([steps], "i4"),
        }
        for steps in (3, 3, 9, 5, 7, 3)
    ]
    for request, outputs in zip(requests, serve(model, requests), strict=True):
        np.testing.assert_allclose(outputs[0], plain.run(None, request)[0], rtol=1e-5, atol=1e-6)
    assert one.free_memory()


def test_a_model_on_the_cpu_measures_nothing(tmp_path: Path, load: Load) -> None:
    model = load(onnx_models.save_classifier(tmp_path / "model.onnx"))
    (one,) = model.sessions
    assert (one.run_method, one.slots, model.batcher.joins_in_place) == ("plain", 1, False)


def test_an_option_leaves_the_ordinary_way_only(
    tmp_path: Path, memory: HostMemory, load: Load
) -> None:
    model = load(onnx_models.save_classifier(tmp_path / "model.onnx"), run_method="plain")
    assert (model.sessions[0].run_method, model.batcher.ranking) == ("plain", None)
    assert not model.batcher.joins_in_place
    model.start()
    check_under_load(model, tmp_path / "model.onnx")


def test_describe_and_metrics_say_how_batches_run(
    tmp_path: Path, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_methods, "_order_methods", lambda times: (RunMethod.BOUND,))
    path = tmp_path / "models" / "m" / "1" / "model.onnx"
    onnx_models.save_classifier(path)
    server = InProcessServer(tmp_path / "models")
    try:
        version = server.models.Describe(DescribeModelRequest(model="m")).version
        assert (version.run_method, version.devices[0].label) == ("bound", "cuda:0")
        labels = {"model": "m", "version": "1", "device": "cuda:0", "method": "bound"}
        assert server.metrics.registry.get_sample_value("neurona_model_run_method", labels) == 1
    finally:
        server.stop()


def test_what_fails_while_methods_are_measured_does_not_fail_the_load(
    tmp_path: Path, memory: HostMemory, load: Load, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(_: int) -> Array:
        raise RuntimeError("no page-locked memory")

    monkeypatch.setattr(memory, "allocate_host", fail)
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    model = load(path)
    assert model.sessions[0].run_method == "plain"
    assert "no page-locked memory" in caplog.text
    model.start()
    check_under_load(model, path)


def test_a_device_that_is_lost_while_methods_are_measured_fails_the_load(
    tmp_path: Path,
    memory: HostMemory,
    load: Load,
    graph_sessions: list[onnxruntime.InferenceSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing of it is freed: CUDA may hang or end the process then."""

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail)
    monkeypatch.setattr(run_choice, "_abandoned", [])
    with pytest.raises(LoadError, match="device lost: cuda:0"):
        load(onnx_models.save_classifier(tmp_path / "model.onnx"))
    (methods,) = run_choice._abandoned
    assert methods is not None
    assert methods.runners[RunMethod.GRAPH]._session is graph_sessions[0]


def test_buffers_on_a_device_that_is_lost_are_not_freed(
    tmp_path: Path, memory: HostMemory, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_abandoned_sessions", [])
    model = load(onnx_models.save_classifier(tmp_path / "model.onnx"))
    (one,) = model.sessions
    buffers = [slot.buffers[RunMethod.BOUND] for slot in one._run_slots]
    assert one.reserve_inputs(one._run_slots[0], {"x": (2, 4)}) is not None
    one.abandon(DeviceLostError("cuda:0", "gone"))
    assert one.reserve_inputs(one._run_slots[0], {"x": (2, 4)}) is None  # nor is more made
    one.close()
    assert [slot.buffers[RunMethod.BOUND] for slot in one._run_slots] == buffers


def test_buffers_of_a_closed_session_are_freed(
    tmp_path: Path, memory: HostMemory, load: Load
) -> None:
    (one,) = load(onnx_models.save_classifier(tmp_path / "model.onnx")).sessions
    one.close()
    assert not any(slot.buffers for slot in one._run_slots)
