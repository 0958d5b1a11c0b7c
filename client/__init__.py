"""The client side of neurona.v1: generated stubs and messages, and numpy arrays as tensors.

channel = grpc.insecure_channel("127.0.0.1:8001")
stub = neurona_client.PredictionStub(channel)
image = neurona_client.to_tensor("image", pixels)  # float32 of shape (rows, 8, 8)
request = neurona_client.PredictRequest(model="lenet5", inputs=[image], top_k=3)
print(stub.Predict(request, timeout=1.0).classification.rows[0].labels)
"""

from neurona_protos.prediction_pb2 import (
    Classification,
    ClassifyResponse,
    DataType,
    DescribeModelRequest,
    DescribeModelResponse,
    Error,
    ListModelsRequest,
    ListModelsResponse,
    ModelMetadata,
    PredictRequest,
    PredictResponse,
    PredictStreamRequest,
    PredictStreamResponse,
    Priority,
    Regression,
    RegressResponse,
    State,
    StreamedRequest,
    StreamedResponse,
    Task,
    Tensor,
)
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import TensorError, to_array, to_tensor

__all__ = [
    "Classification",
    "ClassifyResponse",
    "DataType",
    "DescribeModelRequest",
    "DescribeModelResponse",
    "Error",
    "ListModelsRequest",
    "ListModelsResponse",
    "ModelMetadata",
    "ModelsStub",
    "PredictRequest",
    "PredictResponse",
    "PredictStreamRequest",
    "PredictStreamResponse",
    "PredictionStub",
    "Priority",
    "RegressResponse",
    "Regression",
    "State",
    "StreamedRequest",
    "StreamedResponse",
    "Task",
    "Tensor",
    "TensorError",
    "to_array",
    "to_tensor",
]
