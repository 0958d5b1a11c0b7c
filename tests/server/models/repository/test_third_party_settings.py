"""Third-party models with settings as their users would write them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import DescribeModelRequest, PredictRequest, Task
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy

SHARED = os.environ.get("NEURONA_SHARED")
pytestmark = pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
ONNX = Path(SHARED or "") / "onnx"

SIMPLE = """
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  {{ name: "INPUT0" data_type: {data_type} dims: [ 16 ] }},
  {{ name: "INPUT1" data_type: {data_type} dims: [ 16 ] }}
]
output [
  {{ name: "OUTPUT0" data_type: {data_type} dims: [ 16 ] }},
  {{ name: "OUTPUT1" data_type: {data_type} dims: [ 16 ] }}
]
dynamic_batching {{ }}
model_warmup [ {{
  name: "random"
  batch_size: 8
  inputs {{ key: "INPUT0" value: {{ data_type: {data_type} dims: [ 16 ] random_data: true }} }}
  inputs {{ key: "INPUT1" value: {{ data_type: {data_type} dims: [ 16 ] random_data: true }} }}
}} ]
"""


@pytest.fixture
def serve(tmp_path):
    servers = []

    def serve(**settings):
        for name, (file, text) in settings.items():
            shutil.copytree(ONNX / name, tmp_path / name)
            (tmp_path / name / file).write_text(text)
        servers.append(InProcessServer(tmp_path, BatchPolicy()))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


def test_triton_examples_with_their_configs(serve):
    texts = {"triton_simple": "TYPE_INT32", "triton_simple_string": "TYPE_STRING"}
    server = serve(
        **{
            name: ("config.pbtxt", SIMPLE.format(name=name, data_type=data_type))
            for name, data_type in texts.items()
        }
    )
    numbers = np.arange(32, dtype=np.int32).reshape(2, 16)
    for name in texts:
        array = numbers if name == "triton_simple" else numbers.astype(str).astype(object)
        request = PredictRequest(
            model=name, inputs=[to_tensor("INPUT0", array), to_tensor("INPUT1", array)]
        )
        total, difference = server.prediction.Predict(request, timeout=10).outputs
        np.testing.assert_array_equal(to_array(total).astype(np.int32), 2 * numbers)
        np.testing.assert_array_equal(to_array(difference).astype(np.int32), 0 * numbers)
        description = server.models.Describe(DescribeModelRequest(model=name), timeout=10)
        assert description.batched
        assert description.batching.max_rows == 8


def test_scikit_learn_classes_with_labels_from_model_toml(serve):
    toml = 'labels = ["setosa", "versicolor", "virginica"]\n[inputs.float_input]\nunit = "cm"\n'
    server = serve(skl_rf_iris=("model.toml", toml))
    x = np.float32([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]])
    request = PredictRequest(model="skl_rf_iris", inputs=[to_tensor("float_input", x)], top_k=3)
    rows = server.prediction.Classify(request, timeout=10).classification.rows
    assert [row.labels[0] for row in rows] == ["setosa", "virginica"]
    metadata = server.models.Describe(
        DescribeModelRequest(model="skl_rf_iris"), timeout=10
    ).metadata
    assert (metadata.task, metadata.inputs[0].unit) == (Task.TASK_CLASSIFICATION, "cm")
