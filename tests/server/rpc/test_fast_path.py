"""Requests like one that was found good before are answered like it, each with its own data."""

import gc
import weakref

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.rpc import fast_path

ONES = np.ones((1, 2), np.float32)
ROW = np.ones((1, 4), np.float32)


@pytest.fixture
def adjustable(tmp_path, make_server):
    """A model whose optional input, of any size, would be taken for rows of several callers."""
    onnx_models.save(
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
        response = call.result()
        if send is infer:
            values = np.frombuffer(response.raw_output_contents[0], np.float32)
        else:
            values = to_array(response.outputs[0])
        assert (values == scale).all()


def test_the_templates_of_a_model_are_bounded(make_server, monkeypatch):
    monkeypatch.setattr(fast_path, "MAX_TEMPLATES", 4)
    monkeypatch.setattr(fast_path, "MAX_TEMPLATES", 4)
    caches = []
    make = fast_path.FastPath.__init__

    def make_and_keep(self, *arguments):
        make(self, *arguments)
        caches.append(self._prepared)

    monkeypatch.setattr(fast_path.FastPath, "__init__", make_and_keep)
    server = make_server()
    model = server.registry.resolve("regressor")
    for length in range(1, 20):
        series = to_tensor("series", np.ones((1, length), np.float32))
        for _ in range(2):
            response = server.prediction.Predict(
                PredictRequest(model="regressor", inputs=[series]), timeout=10
            )
            assert response.regression.rows[0].values == [length]
    (prepared,) = [cache[id(model)] for cache in caches if id(model) in cache]
    assert 0 < len(prepared) <= 4


def classify(server):
    request = PredictRequest(model="classifier", inputs=[to_tensor("x", ROW)])
    server.prediction.Predict(request, timeout=10)


def infer_classes(server):
    request = ModelInferRequest(model_name="classifier", raw_input_contents=[ROW.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=ROW.shape)
    server.triton.ModelInfer(request, timeout=10)


@pytest.mark.parametrize("send", [classify, infer_classes])
def test_prepared_requests_are_freed_with_their_model(make_server, wait_until, send):
    server = make_server(explicit=True, load_model=["classifier"])
    for _ in range(3):
        send(server)
    model = weakref.ref(server.registry.resolve("classifier"))
    gc.collect()
    gc.disable()
    try:
        server.reconciler.unload("classifier")
        wait_until(lambda: model() is None)
    finally:
        gc.enable()
