"""The first run of a session, with ones of the sizes that it takes."""

import threading
import time

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx import trial_run
from neurona_server.models.onnx.trial_run import long_step, make_ones, try_run

FLOAT = TensorProto.FLOAT


@pytest.fixture
def session(tmp_path):
    def session(nodes, inputs, outputs, constants=None):
        path = onnx_models.save(tmp_path / "model.onnx", nodes, inputs, outputs, constants or {})
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    return session


def test_ones_have_the_types_and_shapes_of_the_inputs(session):
    kinds = [
        *(FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT64),
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.UINT64),
    ]
    one = session(
        [helper.make_node("Identity", [f"x{kind}"], [f"y{kind}"]) for kind in kinds],
        {f"x{kind}": (kind, ["n", 3, None]) for kind in kinds},
        {f"y{kind}": (kind, ["n", 3, None]) for kind in kinds},
    )
    ones = make_ones(one, 2, 5)
    assert {array.shape for array in ones.values()} == {(2, 3, 5)}
    assert all((array == 1).all() for array in ones.values())
    assert try_run(one, LoadCancellation()) is None


def test_strings_and_fixed_rows(session):
    one = session(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.STRING, [2])},
        {"y": (TensorProto.STRING, [2])},
    )
    assert make_ones(one, 7, 7)["x"].tolist() == ["1", "1"]
    assert try_run(one, LoadCancellation()) is None


def test_larger_sizes_are_tried_after_smaller_ones(session):
    def convolution(size):
        return session(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            {"x": (FLOAT, ["n", 1, "h", "w"])},
            {"y": (FLOAT, ["n", 1, None, None])},
            {"w": np.ones((1, 1, size, size), np.float32)},
        )

    assert try_run(convolution(60), LoadCancellation()) is None
    assert "Conv" in str(try_run(convolution(500), LoadCancellation()))


def test_the_largest_batch_is_run_first():
    shapes = []

    class Session:
        def get_inputs(self):
            return [type("Node", (), {"name": "x", "type": "tensor(float)", "shape": ["n", 3]})]

        def run(self, _names, inputs, _options):
            shapes.append(inputs["x"].shape)

    assert try_run(Session(), LoadCancellation(), 16) is None
    assert shapes == [(16, 3), (1, 3)]
    assert try_run(Session(), LoadCancellation(), 1) is None
    assert shapes[2:] == [(1, 3)]


def test_no_arrays_of_unusual_types_and_huge_sizes(session):
    one = session(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.BFLOAT16, ["n"])},
        {"y": (TensorProto.BFLOAT16, ["n"])},
    )
    assert make_ones(one, 1, 1) is None
    assert try_run(one, LoadCancellation()) is None
    wide = session(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (FLOAT, ["n", "a", "b", "c", "d"])},
        {"y": (FLOAT, ["n", "a", "b", "c", "d"])},
    )
    assert make_ones(wide, 224, 224) is None


def test_a_run_that_never_ends_can_be_cancelled(tmp_path):
    path = onnx_models.save_endless_loop(tmp_path / "model.onnx")
    endless = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    cancellation = LoadCancellation()
    timer = threading.Timer(0.2, cancellation.cancel, ["given up"])
    timer.start()
    with pytest.raises(LoadError, match="given up"):
        try_run(endless, cancellation)
    timer.join()


def test_compiling_counts_as_progress_for_a_limited_time(monkeypatch):
    monkeypatch.setattr(trial_run, "_HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(trial_run, "COMPILING_SECONDS", 0.1)
    steps = []
    with long_step(LoadCancellation(lambda: steps.append(time.monotonic()))):
        time.sleep(0.5)
    assert len(steps) == 5
