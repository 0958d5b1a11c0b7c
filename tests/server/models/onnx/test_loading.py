"""Which of its providers runs a model, if some of them cannot load it or fail in its first run."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.loading import (
    _Loader,
    load,
    load_with_cuda_graphs,
    public_reason,
)
from neurona_server.models.onnx.model_file import read_outline
from neurona_server.models.onnx.runtime import CPU, CUDA, RuntimeOptions

TENSORRT = "TensorrtExecutionProvider"
FLOAT = TensorProto.FLOAT


@pytest.fixture
def model(tmp_path):
    return onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["n", 3])},
        {"y": (FLOAT, ["n", 3])},
        {"w": np.float32([2])},
    )


@pytest.fixture
def fails_in_runs(tmp_path):
    """Return a model that loads, but whose reshape of 3 values to 7 fails."""
    return onnx_models.save(
        tmp_path / "failing.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (FLOAT, ["n", 3])},
        {"y": (FLOAT, [None])},
        {"shape": np.int64([7])},
    )


class ProviderSession:
    """A session on the CPU that says that another provider runs it."""

    def __init__(self, path, provider):
        self._session = onnxruntime.InferenceSession(path, providers=[CPU])
        self._provider = provider

    def get_providers(self):
        return [self._provider, CPU]

    def __getattr__(self, name):
        return getattr(self._session, name)


class Loader(_Loader):
    """Loads what `sessions` says by the first provider: a file, or an error."""

    def __init__(self, path, sessions):
        super().__init__(path, read_outline(path), RuntimeOptions(), 1, LoadCancellation())
        self.sessions = sessions
        self.tried = []

    def _load_session(self, providers):
        name = providers[0]
        self.tried.append(name)
        result = self.sessions.get(name)
        if isinstance(result, Exception):
            raise result
        if result is None:
            return super()._load_session(providers)
        return ProviderSession(result, name)


def test_the_first_provider_that_works_runs_the_model(model):
    loader = Loader(model, {CUDA: model})
    loaded = loader.load([CUDA, CPU])
    assert loaded.session.get_providers()[0] == CUDA
    assert (loaded.problem, loader.tried) == ("", [CUDA])


def test_a_provider_that_cannot_load_it_is_left_out(model, caplog):
    loader = Loader(model, {"A": RuntimeError("no A\nmore"), CUDA: model})
    loaded = loader.load(["A", CUDA, CPU])
    assert loaded.session.get_providers()[0] == CUDA
    assert loaded.problem == "a could not load it: no A"
    assert "cannot be loaded by A: no A" in caplog.text


def test_the_cpu_is_the_last_resort(model, caplog):
    loader = Loader(model, {"A": RuntimeError("no A"), CUDA: RuntimeError("no B")})
    loaded = loader.load(["A", CUDA, CPU])
    assert loaded.session.get_providers() == [CPU]
    assert loaded.problem == "a could not load it: no A"
    assert loader.tried == ["A", CUDA, CPU]


def test_a_provider_that_fails_in_the_first_run_is_left_out(model, fails_in_runs, caplog):
    loaded = Loader(model, {CUDA: fails_in_runs}).load([CUDA, CPU])
    assert loaded.session.get_providers() == [CPU]
    assert loaded.problem.startswith("cuda could not run it: ")
    assert "CUDAExecutionProvider fails in its first run: " in caplog.text


def test_a_model_that_fails_on_all_providers_keeps_the_first(fails_in_runs):
    loader = Loader(fails_in_runs, {CUDA: fails_in_runs})
    loaded = loader.load([CUDA, CPU])
    assert loaded.session.get_providers()[0] == CUDA
    assert (loaded.problem, loader.tried) == ("", [CUDA, CPU])
    loader = Loader(fails_in_runs, {CUDA: fails_in_runs, CPU: RuntimeError("no CPU")})
    assert loader.load([CUDA, CPU]).session.get_providers()[0] == CUDA


def test_no_provider_is_left_out_of_a_single_one(model):
    with pytest.raises(RuntimeError, match="no A"):
        Loader(model, {CUDA: RuntimeError("no A")}).load([CUDA])
    with pytest.raises(LoadError, match="no room"):
        Loader(model, {CUDA: LoadError("no room")}).load([CUDA, CPU])


def test_a_cancelled_load_tries_no_other_provider(model):
    loader = Loader(model, {CUDA: RuntimeError("ended")})
    loader._cancellation.cancel("unloaded")
    with pytest.raises(LoadError, match="unloaded"):
        loader.load([CUDA, CPU])
    assert loader.tried == [CUDA]


def test_the_cpu_alone_is_not_tried_by_a_run(model, fails_in_runs):
    loaded = load(fails_in_runs, RuntimeOptions(providers=("cpu",)), 1, LoadCancellation())
    assert loaded.problem == ""


@pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
)
def test_real_providers_without_their_libraries_are_left_out(model):
    """TensorRT raises, CUDA only logs that it could not be started; the CPU gets its threads."""
    if onnxruntime.InferenceSession(model, providers=[CUDA, CPU]).get_providers()[0] == CUDA:
        pytest.skip("needs a machine without CUDA")
    options = RuntimeOptions(gpu_threads=1)
    loader = _Loader(model, read_outline(model), options, 2, LoadCancellation())
    loaded = loader.load([(TENSORRT, {"device_id": "0"}), (CUDA, {"device_id": "0"}), CPU])
    assert loaded.session.get_providers() == [CPU]
    assert loaded.problem.startswith("tensorrt could not load it: TensorRT is not found (expected ")
    assert loaded.session.get_session_options().intra_op_num_threads == 2


@pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
)
def test_cuda_graphs_need_no_cpu_among_the_providers(model):
    """Without CUDA it fails, too, but since there is no CUDA."""
    options = RuntimeOptions(providers=("cuda",))
    reason = ""
    try:
        load_with_cuda_graphs(model, options, LoadCancellation(), 0)
    except Exception as error:
        reason = str(error)
    assert "Conflicting session configuration" not in reason


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<"
            "THRW, void, Status> onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = "
            "cudaError; bool THRW = true] /onnxruntime_src/onnxruntime/core/providers/cuda/"
            "cuda_call.cc:146 std::conditional_t<THRW, void, Status> onnxruntime::CudaCall(ERRTYPE)"
            " CUDA failure 2: out of memory ; GPU=0 ; hostname=secret ; file=/onnxruntime_src/"
            "gpu_data_transfer.cc ; line=63 ; expr=cudaMalloc(&p, size); \n\n",
            "CUDA failure 2: out of memory",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node."
            " Name:'conv1' Status Message: /onnxruntime_src/onnxruntime/core/providers/cuda/nn/"
            "conv.cc:388 Status onnxruntime::cuda::Conv<float>::UpdateState() CUDNN failure 3000: "
            "CUDNN_STATUS_NOT_SUPPORTED ; GPU=0 ; hostname=secret ; expr=plan",
            "Non-zero status code returned while running Conv node. Name:'conv1' Status Message: "
            "CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED",
        ),
    ],
)
def test_errors_of_cuda_do_not_name_the_machine(message: str, reason: str) -> None:
    assert public_reason(RuntimeError(message), Path("/models/m/1/model.onnx")) == reason
