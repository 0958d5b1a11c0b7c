import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry
from support import onnx_models

from neurona_protos.prediction_pb2 import DataType, ModelMetadata, State, Task
from neurona_server.errors import LoadError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx.runtime import CPU, RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def load(metrics, tmp_path):
    def load(path=tmp_path / "model.onnx", name="m", version=1):
        return Model(ModelSource(name, version, path), ModelOptions(), metrics)

    return load


def test_the_signature_comes_from_the_graph(repository):
    session = Session(repository / "regressor" / "1" / "model.onnx", RuntimeOptions())
    (spec,) = session.inputs
    assert (spec.name, spec.dtype, spec.shape) == (
        "series",
        DataType.DATA_TYPE_FLOAT,
        ("batch", "time"),
    )
    assert [spec.name for spec in session.outputs] == ["value"]


@pytest.mark.parametrize(
    ("name", "batched"),
    [
        ("classifier", True),
        ("regressor", True),
        ("picker", True),
        ("fixed", False),
        ("running_sum", False),  # its free axis 0 is time: joining it would mix answers up
    ],
)
def test_only_models_that_can_be_batched_are_batched(repository, load, name, batched):
    assert load(repository / name / "1" / "model.onnx").signature.batched is batched


def lagged(x):
    """y[t] = x[t] + x[t - 2]: the first two rows do not show it."""
    return [
        helper.make_node("Pad", [x, "pads"], ["padded"]),
        helper.make_node("Slice", ["padded", "start", "stop"], ["late"]),
        helper.make_node("Add", [x, "late"], ["y"]),
    ]


@pytest.mark.parametrize(
    ("dtype", "nodes"),
    [
        (TensorProto.INT64, [helper.make_node("CumSum", ["x", "axis"], ["y"])]),
        (
            TensorProto.FLOAT,
            [
                helper.make_node("CumSum", ["x", "axis"], ["sums"]),
                helper.make_node("Mul", ["sums", "small"], ["y"]),
            ],
        ),
        (
            TensorProto.FLOAT,
            [helper.make_node("TopK", ["x", "count"], ["y", "which"], axis=0, largest=0)],
        ),
        (TensorProto.FLOAT, lagged("x")),
        (TensorProto.FLOAT, [helper.make_node("Softmax", ["x"], ["y"], axis=0)]),
    ],
    ids=["sum of whole numbers", "small sums", "ranking", "two steps back", "softmax over time"],
)
def test_rows_that_change_each_other_are_never_batched(load, tmp_path, dtype, nodes):
    if nodes[0].op_type == "TopK":  # ranks as many candidates as come
        shape = [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "one"], ["count"]),
        ]
        nodes = shape + nodes
    onnx_models.save(
        tmp_path / "model.onnx",
        nodes,
        {"x": (dtype, ["rows", 2])},
        {"y": (dtype, ["rows", 2])},
        {
            "axis": np.array(0),
            "small": np.float32([1e-5]),
            "zero": np.array([0]),
            "one": np.array([1]),
            "pads": np.array([2, 0, 0, 0]),
            "start": np.array([0]),
            "stop": np.array([-2]),
        },
    )
    assert not load().signature.batched


def test_values_that_equal_nothing_prove_nothing(load, tmp_path):
    onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Div", ["x", "zero"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 2])},
        {"y": (TensorProto.FLOAT, ["batch", 2])},
        {"zero": np.float32([0])},
    )
    assert not load().signature.batched


def test_a_float64_sum_over_the_batch_is_not_batched(load, tmp_path):
    """Each row's answer depends on the other rows: batching would change it."""
    onnx_models.save(
        tmp_path / "model.onnx",
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        {"x": (TensorProto.DOUBLE, ["batch", 2])},
        {"y": (TensorProto.DOUBLE, ["batch", 2])},
    )
    assert not load().signature.batched


def test_a_file_that_is_no_model_is_rejected_without_its_path(load, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(LoadError, match="looks like a text") as caught:
        load()
    assert str(tmp_path) not in str(caught.value)


def test_a_tensor_of_an_unsupported_type_is_rejected_by_name(load, tmp_path):
    value = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    node = helper.make_node("SequenceLength", ["s"], ["n"])
    length = helper.make_tensor_value_info("n", TensorProto.INT64, [])
    graph = helper.make_graph([node], "g", [value], [length])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "model.onnx",
    )
    with pytest.raises(LoadError, match=r"input 's' is seq\(tensor\(float\)\)"):
        load()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (ModelMetadata(task=Task.TASK_CLASSIFICATION), "answer 'probabilities'; its outputs are"),
        (ModelMetadata(task=Task.TASK_REGRESSION, answer="z"), "answer 'z'; its outputs are .'y'"),
        (
            ModelMetadata(task=Task.TASK_CLASSIFICATION, answer="y", labels=["a"]),
            "describe 1 columns of 'y'",
        ),
        (
            ModelMetadata(task=Task.TASK_CLASSIFICATION, answer="count"),
            r"'count' is INT64 of shape .* \(expected 2 axes for a classification",
        ),
        (
            ModelMetadata(task=Task.TASK_CLASSIFICATION, answer="whole"),
            r"'whole' is UINT8 of shape .* \(expected floats for a classification",
        ),
        (
            ModelMetadata(task=Task.TASK_REGRESSION, answer="text"),
            r"'text' is STRING of shape .* \(expected numbers for a regression",
        ),
        (ModelMetadata(task=7, answer="y"), "an unknown task 7"),
    ],
)
def test_metadata_that_contradict_the_graph_are_rejected(load, tmp_path, metadata, message):
    onnx_models.save(
        tmp_path / "model.onnx",
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Shape", ["x"], ["count"]),
            helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.UINT8),
            helper.make_node("Cast", ["x"], ["text"], to=TensorProto.STRING),
        ],
        {"x": (TensorProto.FLOAT, ["batch", 2])},
        {
            "y": (TensorProto.FLOAT, ["batch", 2]),
            "count": (TensorProto.INT64, [2]),
            "whole": (TensorProto.UINT8, ["batch", 2]),
            "text": (TensorProto.STRING, ["batch", 2]),
        },
        metadata=metadata,
    )
    with pytest.raises(LoadError, match=message):
        load()


def test_a_model_is_loading_then_ready_then_draining(repository, load, metrics):
    model = load(repository / "classifier" / "1" / "model.onnx")
    assert model.state == State.STATE_LOADING
    model.start()
    assert model.state == State.STATE_READY
    labels = {"model": "m", "version": "1", "task": "CLASSIFICATION", "provider": model.provider}
    assert metrics.registry.get_sample_value("neurona_model_info", labels) == 1
    labels = {"model": "m", "version": "1", "device": "cpu", "method": "plain"}
    assert metrics.registry.get_sample_value("neurona_model_run_method", labels) == 1
    assert model.drain(5.0)
    assert model.state == State.STATE_DRAINING


def test_a_run_of_onnx_runtime_heeds_that_it_is_terminated(tmp_path):
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(3000)]
    path = onnx_models.save(
        tmp_path / "model.onnx",
        nodes,
        {"x0": (TensorProto.FLOAT, [400, 400])},
        {"x3000": (TensorProto.FLOAT, [400, 400])},
        {"w": np.eye(400, dtype=np.float32)},
    )
    run = Session(path, RuntimeOptions(threads=1)).new_run()
    threading.Timer(0.2, run.terminate).start()
    started = time.monotonic()
    with pytest.raises(Exception, match="terminate"):
        run({"x0": np.eye(400, dtype=np.float32)})
    assert time.monotonic() - started < 3  # all of it takes several times as long


def test_every_instance_is_known_to_admission(repository, metrics):
    source = ModelSource("c", 1, repository / "classifier" / "1" / "model.onnx")
    model = Model(source, ModelOptions(instances=3), metrics)
    assert model.batcher.admission.instances == model.batcher.instances == 3


def test_without_a_gpu_the_provider_is_honest(load, repository):
    model = load(repository / "classifier" / "1" / "model.onnx")
    assert model.provider in (CPU, "CUDAExecutionProvider")
    session = Session(repository / "classifier" / "1" / "model.onnx", RuntimeOptions(threads=1))
    assert session.provider == model.provider
    (out,) = session.run({"x": np.zeros((2, 4), np.float32)})
    np.testing.assert_allclose(out, np.full((2, 3), 1 / 3), rtol=1e-6)
