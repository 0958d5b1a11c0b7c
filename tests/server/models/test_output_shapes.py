"""The shapes that a file declares are hints; what the model does with its first runs is a fact."""

import os
import shutil
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry
from support.in_process_server import InProcessServer

from neurona_client import Client
from neurona_protos.prediction_pb2 import DescribeModelRequest, PredictRequest, Task
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import LoadError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource, read_settings
from neurona_server.telemetry.metrics import Metrics

FLOAT = TensorProto.FLOAT
SHARED = os.environ.get("NEURONA_SHARED")
DOUBLED = [helper.make_node("Add", ["x", "x"], ["y"])]
UNKNOWN = [  # y = 2 * x, of a shape that no inference finds
    helper.make_node("Shape", ["x"], ["shape"]),
    helper.make_node("Abs", ["shape"], ["same"]),
    helper.make_node("Add", ["x", "x"], ["sum"]),
    helper.make_node("Reshape", ["sum", "same"], ["y"]),
]


def save(path, nodes, inputs, outputs, constants=None):
    """Save a graph; a shape of None is none at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def load(path, toml="", pbtxt=""):
    if toml:
        (path.parent / "model.toml").write_text(toml)
    if pbtxt:
        (path.parent / "config.pbtxt").write_text(pbtxt)
    settings = read_settings(path.parent)
    metrics = Metrics(CollectorRegistry())
    return Model(ModelSource("m", 1, path, settings=settings), ModelOptions(), metrics)


@pytest.fixture
def serve(tmp_path):
    servers = []

    def serve():
        servers.append(InProcessServer(tmp_path, BatchPolicy()))
        return servers[0]

    yield serve
    for server in servers:
        server.stop()


@pytest.mark.parametrize(
    ("declared", "corrected"),
    [
        ([1], (None, 3)),
        ([1, 1], (None, 3)),
        (["n", 1], ("n", 3)),
        ([1, 3], (None, 3)),
        (["n", 3], ("n", 3)),
        (["n", "m"], ("n", "m")),
        (["n"], (None, 3)),
        ([1, 1, 1], (None, 3)),
        ([], (None, 3)),
        (None, (None, None)),  # as ONNX Runtime infers
    ],
    ids=str,
)
def test_wrongly_declared_output_is_batched_and_described(tmp_path, declared, corrected):
    for nodes in (DOUBLED, UNKNOWN):  # DOUBLED, for which ONNX Runtime corrects the file itself
        path = save(tmp_path / "model.onnx", nodes, {"x": ["n", 3]}, {"y": declared})
        signature = load(path).signature
        assert signature.batched
    (output,) = signature.outputs
    sizes = [size if isinstance(size, int) else None for size in output.shape]
    expected = [size if isinstance(size, int) else None for size in corrected]
    assert (sizes, output.any_shape) == (expected, False)


@pytest.mark.parametrize(
    "toml", ["batched = true", 'inputs.x.axes=["batch",""]\noutputs.y.axes=["batch",""]']
)
def test_wrongly_declared_output_can_be_batched_by_settings(tmp_path, toml):
    path = save(tmp_path / "model.onnx", UNKNOWN, {"x": ["n", 3]}, {"y": [1]})
    assert load(path, toml).signature.batched


def test_output_with_another_number_of_rows_cannot_be_batched_by_settings(tmp_path):
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)]
    path = save(tmp_path / "model.onnx", nodes, {"x": ["n", 3]}, {"y": ["m", 3]})
    with pytest.raises(LoadError, match=r"batched, but output 'y' has shape \[8, 3\] for 4 rows"):
        load(path, "batched = true")
    assert not load(path, "batched = false").signature.batched


def test_labels_are_counted_in_what_the_model_returns(tmp_path):
    path = save(tmp_path / "model.onnx", UNKNOWN, {"x": ["n", 3]}, {"y": ["n", 1]})
    task = 'task = "classification"\nanswer = "y"\n'
    model = load(path, task + 'labels = ["a", "b", "c"]')
    assert model.metadata.task == Task.TASK_CLASSIFICATION
    with pytest.raises(LoadError, match=r"describe 1 columns of 'y', which is .*, 3\]"):
        load(path, task + 'labels = ["a"]')


def test_labels_of_a_model_that_was_never_run_are_believed(tmp_path):
    """A model that takes dates as texts, say, fails on synthetic ones."""
    nodes = [
        *UNKNOWN[:2],
        helper.make_node("Div", ["same", "same"], ["ones"]),
        helper.make_node("Mul", ["ones", "two_columns"], ["wrong"]),  # not for 123 numbers a row
        helper.make_node("Reshape", ["x", "wrong"], ["y"]),
    ]
    path = save(
        tmp_path / "model.onnx",
        nodes,
        {"x": ["n", 123]},
        {"y": ["n", 1]},
        {"two_columns": np.array([7, 2])},
    )
    model = load(path, 'task="classification"\nanswer="y"\nlabels=["no","yes"]')
    assert [*model.metadata.labels] == ["no", "yes"]


def test_config_pbtxt_is_compared_with_what_the_model_returns(tmp_path):
    pbtxt = """
        platform: "onnxruntime_onnx" max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: 3 }
        output { name: "y" data_type: TYPE_FP32 dims: %d }
    """
    path = save(tmp_path / "model.onnx", UNKNOWN, {"x": ["n", 3]}, {"y": [1, 1]})
    model = load(path, pbtxt=pbtxt % 3)
    assert model.signature.batched
    assert model.signature.outputs[0].shape == (None, 3)
    with pytest.raises(LoadError, match=r"declares the output 'y' as .*1\] \(expected .*3\]"):
        load(path, pbtxt=pbtxt % 1)


def test_sizes_that_depend_on_values_stay_free(tmp_path):
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["y"], to=FLOAT),
    ]
    path = save(tmp_path / "model.onnx", nodes, {"x": ["n", "m"]}, {"y": [2, 1]})
    model = load(path)
    assert not model.signature.batched
    assert model.signature.outputs[0].shape == (2, None)


def test_values_that_are_sizes_are_not_taken_for_a_shape(tmp_path):
    """The declared shape is that of an example with other values."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("ConstantOfShape", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.INT64, [3])],
            [helper.make_tensor_value_info("y", FLOAT, [4, 3, 2])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "model.onnx")
    assert load(tmp_path / "model.onnx").signature.outputs[0].shape == (None, None, None)


def test_columns_of_a_model_of_fixed_size_are_counted(tmp_path):
    path = save(tmp_path / "model.onnx", UNKNOWN, {"x": [1, 3]}, {"y": [1, 1]})
    model = load(path, 'task="classification"\nanswer="y"\nlabels=["a", "b", "c"]')
    assert model.signature.outputs[0].shape == (1, 3)


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
def test_xgboost_with_one_declared_column_has_both_labels(tmp_path, serve):
    folder = tmp_path / "xgb" / "1"
    folder.mkdir(parents=True)
    case = Path(SHARED or "") / "cases" / "15-small-ones" / "xgb_declared_n1.onnx"
    shutil.copy(case, folder / "model.onnx")
    (tmp_path / "xgb" / "model.toml").write_text(
        'task = "classification"\nanswer = "probabilities"\nlabels = ["no", "yes"]\n'
    )
    server = serve()
    described = server.models.Describe(DescribeModelRequest(model="xgb"), timeout=10)
    assert described.batched
    assert [[*output.shape] for output in described.outputs] == [[-1], [-1, 2]]
    rows = np.zeros((5, described.inputs[0].shape[1]), np.float32)
    request = PredictRequest(model="xgb", inputs=[to_tensor("input", rows)], top_k=2)
    classified = server.prediction.Classify(request, timeout=10).classification.rows
    assert [{*row.labels} for row in classified] == [{"no", "yes"}] * 5


def test_input_without_a_shape_takes_any(tmp_path, serve):
    save(tmp_path / "any" / "1" / "model.onnx", DOUBLED, {"x": None}, {"y": None})
    save(tmp_path / "number" / "1" / "model.onnx", DOUBLED, {"x": []}, {"y": []})
    server = serve()
    described = server.models.Describe(DescribeModelRequest(model="any"), timeout=10)
    assert described.inputs[0].any_shape
    assert described.outputs[0].any_shape
    assert not server.models.Describe(DescribeModelRequest(model="number")).inputs[0].any_shape
    with Client(f"127.0.0.1:{server.port}") as client:
        for shape in [(), (3,), (2, 3), (2, 3, 4), (0, 3), (1, 0), (2, 1, 1, 1, 1, 2)]:
            x = np.random.default_rng(1).random(shape, np.float32)
            y = client.predict("any", {"x": x}).outputs["y"]
            np.testing.assert_array_equal(y, np.asarray(2 * x), strict=True)
        assert client.predict("number", {"x": np.float32(2)}).outputs["y"] == 4
    request = PredictRequest(model="number", inputs=[to_tensor("x", np.ones(3, np.float32))])
    with pytest.raises(grpc.RpcError, match=r"expected FLOAT of shape \[\]"):
        server.prediction.Predict(request, timeout=10)


def test_settings_give_an_input_without_a_shape_its_axes(tmp_path):
    path = save(tmp_path / "model.onnx", DOUBLED, {"x": None}, {"y": None})
    model = load(path, 'inputs.x.axes = ["batch", "feature"]')
    assert model.signature.batched
    assert model.signature.inputs[0].shape == ("batch", "feature")
    assert model.signature.outputs[0].shape == (None, None)


UNEQUAL = ["?", "*", "-1", "None", "unk", "unk__12", "unknown", "DynamicDimension", "side"]


@pytest.mark.parametrize("name", UNEQUAL)
def test_equal_names_do_not_make_sizes_equal(tmp_path, serve, name):
    """Converters give all axes of unknown size one name."""
    nodes = [helper.make_node("Concat", ["x", "z"], ["y"], axis=2)]
    save(
        tmp_path / "m" / "1" / "model.onnx",
        nodes,
        {"x": ["N", 3, name, name], "z": ["N", 3, name, name]},
        {"y": ["N", 3, name, name]},
    )
    x, z = np.ones((1, 3, 5, 7), np.float32), np.ones((1, 3, 2, 7), np.float32)
    request = PredictRequest(model="m", inputs=[to_tensor("x", x), to_tensor("z", z)])
    (output,) = serve().prediction.Predict(request, timeout=10).outputs
    np.testing.assert_array_equal(to_array(output), np.concatenate([x, z], axis=2))


def test_sizes_that_must_be_equal_are_still_compared(tmp_path, serve):
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    save(
        tmp_path / "m" / "1" / "model.onnx",
        nodes,
        {"x": ["batch", "time"], "z": ["batch", "time"]},
        {"y": ["batch", "time"]},
    )
    tensors = [to_tensor(name, np.ones((1, n), np.float32)) for name, n in [("x", 5), ("z", 6)]]
    with pytest.raises(grpc.RpcError, match="its 'time' is 6, that of another input 5"):
        serve().prediction.Predict(PredictRequest(model="m", inputs=tensors), timeout=10)
