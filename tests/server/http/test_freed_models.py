"""Models that are freed after wrong requests; alone, as the garbage collector is off meanwhile."""

import contextlib
import gc
import json
import weakref

import grpc
import numpy as np
import pytest
from support.http_caller import PREDICT, PROTOBUF, serve

from neurona_protos.open_inference_pb2 import ModelInferRequest, RepositoryModelUnloadRequest
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

INFER = "/v2/models/classifier/infer"
WRONG_SHAPE = {"name": "x", "datatype": "FP32", "shape": [1, 5], "data": [0] * 5}
WRONG_DATATYPE = {"name": "x", "datatype": "INT32", "shape": [1, 4], "data": [0] * 4}
WRONG_OUTPUT = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}],
    "outputs": [{"name": "none"}],
}


@pytest.mark.parametrize("transport", ["cygrpc", "aio"])
def test_a_model_is_freed_after_wrong_requests_over_http_and_grpc(
    repository, transport, wait_until
):
    predict = PredictRequest(model="classifier", inputs=[to_tensor("x", np.ones((1, 5), "f4"))])
    infer = ModelInferRequest(model_name="classifier", raw_input_contents=[bytes(20)])
    infer.inputs.add(name="x", datatype="FP32", shape=[1, 5])
    binary = {**WRONG_SHAPE, "parameters": {"binary_data_size": 20}}
    del binary["data"]
    text = json.dumps({"inputs": [binary]}).encode()
    flags = ["--model-control", "explicit", "--load-model", "classifier", "--transport", transport]
    with serve(repository, *flags) as caller:
        channel = caller.app.channel
        gc.collect()
        gc.disable()
        try:
            model = weakref.ref(caller.app.app._registry.resolve("classifier"))
            assert caller.predict()[0] == 200
            for tensor in (WRONG_SHAPE, WRONG_DATATYPE):
                assert caller.post_json(INFER, {"inputs": [tensor]})[0] == 400
            assert caller.post_json(INFER, WRONG_OUTPUT)[0] == 400
            length = {"Inference_Header_Content_Length": str(len(text))}
            assert caller.send(INFER, text + bytes(20), **length)[0] == 400
            body = predict.SerializeToString()
            assert caller.send(PREDICT, body, Content_Type=PROTOBUF)[0] == 400
            for call, message in (
                (PredictionStub(channel).Predict, predict),
                (GRPCInferenceServiceStub(channel).ModelInfer, infer),
            ):
                with contextlib.suppress(grpc.RpcError):
                    call(message, timeout=30)
            unload = RepositoryModelUnloadRequest(model_name="classifier")
            GRPCInferenceServiceStub(channel).RepositoryModelUnload(unload, timeout=30)
            wait_until(lambda: model() is None)
        finally:
            gc.enable()
