"""Requests like one that was found good before are answered like it, each with its own data."""

import numpy as np
import pytest
import small_models
from onnx import TensorProto, helper

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_array, to_tensor

ONES = np.ones((1, 2), np.float32)


@pytest.fixture
def adjustable(tmp_path, make_server):
    """A model whose optional input, of any size, would be taken for rows of several callers."""
    small_models.save(
        tmp_path / "adjustable" / "1" / "model.onnx",
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 2]), "scale": (TensorProto.FLOAT, ["n"])},
        {"y": (TensorProto.FLOAT, ["batch", 2])},
        {"scale": np.full(1, 2, np.float32)},
    )
    return make_server(root=tmp_path, start_models=False)


def predict(server, scale):
    scales = np.array([scale], np.float32)
    request = PredictRequest(
        model="adjustable", inputs=[to_tensor("x", ONES), to_tensor("scale", scales)]
    )
    return server.prediction.Predict.future(request, timeout=10)


def infer(server, scale):
    request = ModelInferRequest(model_name="adjustable")
    request.inputs.add(name="x", datatype="FP32", shape=(1, 2))
    request.inputs.add(name="scale", datatype="FP32", shape=(1,))
    request.raw_input_contents.extend([ONES.tobytes(), np.float32(scale).tobytes()])
    return server.triton.ModelInfer.future(request, timeout=10)


@pytest.mark.parametrize("send", [predict, infer])
def test_each_has_its_own_optional_input(adjustable, wait_until, send):
    model = adjustable.registry.resolve("adjustable")
    calls = []
    for scale in (1, 2, 3, 4):
        calls.append(send(adjustable, scale))
        wait_until(lambda: model.batcher.queue.rows == len(calls))
    model.start()
    for scale, call in enumerate(calls, 1):
        answer = call.result()
        if send is infer:
            values = np.frombuffer(answer.raw_output_contents[0], np.float32)
        else:
            values = to_array(answer.outputs[0])
        assert (values == scale).all()
