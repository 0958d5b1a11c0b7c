"""Third-party ONNX models are served unchanged."""

import os
import shutil
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import DataType, DescribeModelRequest, PredictRequest, Task
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import LoadError
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.scanner import find_models
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs

SHARED = os.environ.get("NEURONA_SHARED")
pytestmark = pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
ONNX = Path(SHARED or "") / "onnx"
UNSERVABLE = {"ort_sequence_length"}  # its input is a sequence, not a tensor
NAMES = sorted(path.name for path in ONNX.iterdir()) if SHARED else []


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository with copies of all models, with or without folders of versions."""
    root = tmp_path_factory.mktemp("others")
    for name in NAMES:
        shutil.copytree(ONNX / name, root / name)
    return root


@pytest.fixture(scope="module")
def server(root):
    server = InProcessServer(root, BatchPolicy(max_rows=4))
    yield server
    server.stop()


def run_directly(path, inputs):
    """Return ONNX Runtime's own outputs, maps by class as arrays of their values."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = session.run(None, inputs)
    return [
        np.array([list(row.values()) for row in output], np.float32)
        if isinstance(output, list)
        else output
        for output in outputs
    ]


@pytest.mark.parametrize("name", sorted(set(NAMES) - UNSERVABLE))
def test_served_outputs_equal_those_of_onnxruntime(server, root, name):
    (source,) = [one for one in find_models([root]) if one.name == name]
    session = Session(source.path, RuntimeOptions())
    for size in FREE_SIZES:
        inputs = make_inputs(session.inputs, 1, size)
        if any(spec.dtype == DataType.DATA_TYPE_BFLOAT16 for spec in session.inputs):
            expected = session.run(inputs)
            break
        try:
            expected = run_directly(source.path, inputs)
        except Exception:  # noqa: S112  the model does not support this size
            continue
        break
    tensors = [to_tensor(s.name, inputs[s.name], s.dtype) for s in session.inputs]
    request = PredictRequest(model=name, inputs=tensors, raw_outputs=True)
    calls = [server.prediction.Predict.future(request, timeout=60) for _ in range(8)]
    for call in calls:
        outputs = call.result().outputs
        assert [output.name for output in outputs] == [spec.name for spec in session.outputs]
        for output, expected_array in zip(outputs, expected, strict=True):
            array = to_array(output)
            assert array.shape == np.shape(expected_array)
            if array.dtype == object:
                assert array.tolist() == expected_array.tolist()
            else:
                np.testing.assert_allclose(array, expected_array, rtol=1e-4, atol=1e-5)


def test_map_by_class_is_a_classification_with_its_labels(server):
    described = server.models.Describe(DescribeModelRequest(model="skl_rf_iris"))
    assert described.metadata.task == Task.TASK_CLASSIFICATION
    assert list(described.metadata.labels) == ["0", "1", "2"]
    flowers = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
    request = PredictRequest(model="skl_rf_iris", inputs=[to_tensor("float_input", flowers)])
    rows = server.prediction.Classify(request).classification.rows
    assert [row.labels[0] for row in rows] == ["0", "2"]
    assert all(row.probabilities[0] > 0.8 for row in rows)


def test_optional_input_may_be_left_out(server):
    described = server.models.Describe(DescribeModelRequest(model="ort_optional_inputs_ir4"))
    optional = [tensor for tensor in described.inputs if tensor.optional]
    assert len(optional) == 1
    required = [
        to_tensor(tensor.name, np.full(1, value, np.float32))
        for value, tensor in enumerate(described.inputs, start=1)
        if not tensor.optional
    ]
    extra = to_tensor(optional[0].name, np.full(list(optional[0].shape), 7, np.float32))
    without = PredictRequest(model="ort_optional_inputs_ir4", inputs=required)
    with_extra = PredictRequest(model="ort_optional_inputs_ir4", inputs=[*required, extra])
    first, second = (
        server.prediction.Predict(request).outputs for request in (without, with_extra)
    )
    assert any(
        to_array(a).tolist() != to_array(b).tolist() for a, b in zip(first, second, strict=True)
    )
    wrong = to_tensor(optional[0].name, np.zeros((2, 2, 2), np.float32))
    with pytest.raises(grpc.RpcError, match="expected FLOAT of shape"):
        server.prediction.Predict(
            PredictRequest(model="ort_optional_inputs_ir4", inputs=[*required, wrong])
        )


@pytest.mark.parametrize(
    ("name", "batched"),
    [
        ("skl_rf_iris", True),
        ("tract_xgboost_regressor_tree", True),
        ("tract_byte_sb_bidi_lstm", True),
        ("triton_simple", True),
        ("triton_simple_string", True),
        ("ort_lstm_bidirectional_cntk", False),  # its free axis is time
        ("ort_cnn_mnist_pytorch", False),  # one image at a time
        ("ort_scan_1", False),
    ],
)
def test_models_with_independent_rows_are_batched(server, name, batched):
    assert server.models.Describe(DescribeModelRequest(model=name)).batched is batched


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("neg_arbitrary_external_file", "external data file"),
        ("neg_custom_mul_op", "Custom_Mul.*No opset import for domain"),
        ("neg_missing_external_data", "external data file"),
        ("neg_noopset", "opset"),
        ("neg_opset_314159", "Opset 314159"),
    ],
)
def test_invalid_models_are_rejected_without_a_path(name, reason):
    with pytest.raises(LoadError, match=reason) as caught:
        Session(ONNX.parent / "onnx_invalid" / name / "model.onnx", RuntimeOptions())
    assert "/" not in str(caught.value).replace("…/", "")
