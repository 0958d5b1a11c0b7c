"""Options for convolutions are measured: the fastest session with the same answers is kept."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx import convolution_options, loading
from neurona_server.models.onnx.compiled_models import read_traits
from neurona_server.models.onnx.convolution_options import choose_options, remembered_options
from neurona_server.models.onnx.model_file import read_outline
from neurona_server.models.onnx.runtime import CPU, CUDA, RuntimeOptions

FLOAT = TensorProto.FLOAT
VALUES = {"cudnn_conv_algo_search": "HEURISTIC", "device_id": "0"}
NHWC, FUSED = {"prefer_nhwc": "1"}, {"fuse_conv_bias": "1"}


class Clock:
    """Stands still but for the runs of SlowSession."""

    now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    convolution_options._decisions.clear()
    monkeypatch.setattr(convolution_options, "time", CLOCK)


@pytest.fixture
def model(tmp_path):
    return onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["n", 1, 4, 4])},
        {"y": (FLOAT, ["n", 1, 2, 2])},
        {"w": np.ones((1, 1, 3, 3), np.float32)},
    )


class SlowSession:
    """A real session on the CPU, of which a batch takes a time and answers may be changed."""

    def __init__(self, path, batch=0.02, row=0.005, change=lambda array: array, cpu_nodes=0):
        self._session = onnxruntime.InferenceSession(path, providers=[CPU])
        self._batch, self._row, self._change = batch, row, change
        self._cpu_nodes = cpu_nodes

    def get_inputs(self):
        return self._session.get_inputs()

    def get_providers(self):
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self):
        nodes = type("Subgraph", (), {"ep_name": CPU, "get_nodes": lambda _: [0] * self._cpu_nodes})
        return [nodes()]

    def run(self, names, inputs, options):
        rows = len(next(iter(inputs.values())))
        CLOCK.now += self._batch if rows > 1 else self._row
        return [self._change(array) for array in self._session.run(names, inputs, options)]


class Runtime:
    """Loads a model with options; `sessions` says how fast, by the options beside VALUES."""

    def __init__(self, path, **sessions):
        self.path, self.sessions = path, sessions
        self.loads = []

    def load_with(self, values):
        extra = {key: value for key, value in values.items() if key not in VALUES}
        self.loads.append(extra)
        how = self.sessions.get("_".join(extra))
        if isinstance(how, Exception):
            raise how
        return SlowSession(self.path, **(how or {}))

    def choose(self, values=VALUES, cancellation=None, **first):
        session = SlowSession(self.path, **first)
        chosen = choose_options(
            self.path, session, values, self.load_with, cancellation or LoadCancellation()
        )
        return session, chosen


def test_faster_options_are_kept_and_added_up(model, caplog):
    runtime = Runtime(
        model, prefer_nhwc={"batch": 0.01}, prefer_nhwc_fuse_conv_bias={"batch": 0.003}
    )
    with caplog.at_level("INFO"):
        session, chosen = runtime.choose()
    assert chosen is not session
    assert runtime.loads == [NHWC, NHWC | FUSED]
    assert remembered_options(model, VALUES) == NHWC | FUSED
    assert "cuda.prefer_nhwc=1 is faster: " in caplog.text


@pytest.mark.parametrize(
    "how",
    [
        {},  # as fast
        {"batch": 0.04},
        {"batch": 0.01, "row": 0.02},  # a single row is slower
        {"batch": 0.01, "change": lambda array: array + 0.2},
        {"batch": 0.01, "change": lambda array: array.astype(np.float64)},
        {"batch": 0.01, "change": lambda array: array * np.nan},
        {"batch": 0.01, "cpu_nodes": 1},
        RuntimeError("no memory"),
    ],
)
def test_options_that_are_not_better_are_not_kept(model, how):
    runtime = Runtime(model, prefer_nhwc=how)
    session, chosen = runtime.choose()
    assert chosen is session
    assert runtime.loads == [NHWC, FUSED]
    assert remembered_options(model, VALUES) == {}


def test_rounding_is_no_difference(model):
    runtime = Runtime(model, prefer_nhwc={"batch": 0.01, "change": lambda array: array * 1.001})
    session, chosen = runtime.choose()
    assert chosen is not session


def test_classes_must_be_equal_but_for_a_few():
    equal = convolution_options._are_equal
    classes = np.arange(100)
    assert equal(classes, classes)
    assert equal(classes, np.where(classes < 4, 0, classes))
    assert not equal(classes, np.where(classes < 40, 0, classes))
    assert equal(np.float32([np.inf, 1]), np.float32([np.inf, 1.001]))
    assert not equal(np.float32([np.inf, 1]), np.float32([1, 1]))
    assert equal(np.float32([]), np.float32([]))


def test_options_that_are_set_are_not_measured(model):
    runtime = Runtime(model, fuse_conv_bias={"batch": 0.01})
    runtime.choose(VALUES | {"prefer_nhwc": "0"})
    assert [*runtime.loads[0]] == ["prefer_nhwc", "fuse_conv_bias"]
    assert runtime.loads[0]["prefer_nhwc"] == "0"
    assert len(runtime.loads) == 1


def test_a_decision_counts_for_all_devices_until_the_file_or_the_options_change(model):
    Runtime(model, prefer_nhwc={"batch": 0.01}).choose()
    assert remembered_options(model, VALUES | {"device_id": "3", "enable_cuda_graph": "1"}) == NHWC
    assert remembered_options(model, VALUES | {"use_tf32": "0"}) is None
    model.write_bytes(model.read_bytes() + b"\x08\x07")  # its IR version once more
    assert remembered_options(model, VALUES) is None


def test_a_model_that_rejects_random_inputs_is_not_measured(tmp_path):
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (FLOAT, ["n", 3])},
        {"y": (FLOAT, [None])},
        {"shape": np.int64([7])},
    )
    runtime = Runtime(path)
    session, chosen = runtime.choose()
    assert chosen is session
    assert runtime.loads == []


def test_a_measurement_can_be_cancelled(model):
    cancellation = LoadCancellation()
    cancellation.cancel("unloaded")
    with pytest.raises(LoadError, match="unloaded"):
        Runtime(model).choose(cancellation=cancellation)
    assert remembered_options(model, VALUES) is None


class Loader(loading._Loader):
    """Loads sessions that say that CUDA runs them."""

    def __init__(self, path, **options):
        options = RuntimeOptions(**options)
        super().__init__(path, read_outline(path), options, 1, LoadCancellation())
        self.loads = []

    def _load_session(self, providers):
        name, values = providers[0]
        self.loads.append(values)
        assert name == CUDA
        return SlowSession(self._path, batch=0.01 if "prefer_nhwc" in values else 0.02)


def test_later_sessions_of_a_model_are_loaded_with_what_the_first_has_chosen(model):
    first, second = Loader(model), Loader(model)
    first.load([(CUDA, VALUES), CPU])
    assert first.loads == [VALUES, VALUES | NHWC, VALUES | NHWC | FUSED]
    second.load([(CUDA, VALUES | {"device_id": "1"}), CPU])
    assert second.loads == [VALUES | {"device_id": "1"} | NHWC]  # once: no second copy


def test_a_model_without_convolutions_is_not_measured(tmp_path, model):
    assert read_traits(model).has_convolution
    path = onnx_models.save(
        tmp_path / "other.onnx",
        [helper.make_node("Neg", ["x"], ["y"])],
        {"x": (FLOAT, ["n"])},
        {"y": (FLOAT, ["n"])},
    )
    loader = Loader(path)
    loader.load([(CUDA, VALUES), CPU])
    assert loader.loads == [VALUES]


def test_nothing_is_measured_without_memory_for_a_second_copy(model, cuda_stub, monkeypatch):
    cuda_stub.install(monkeypatch, devices=1, memory=1 << 29)
    full, limited = Loader(model), Loader(model)
    full.load([(CUDA, VALUES), CPU])
    assert full.loads == [VALUES]
    cuda_stub.configure(monkeypatch, devices=1, memory=1 << 33)
    limit = VALUES | {"gpu_mem_limit": str(1 << 28)}  # of one session
    limited.load([(CUDA, limit), CPU])
    assert limited.loads == [limit]
    roomy = Loader(model)
    roomy.load([(CUDA, VALUES), CPU])
    assert len(roomy.loads) == 3
