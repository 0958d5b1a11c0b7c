"""The client of Neurona.

    from neurona_client import Client

    with Client("127.0.0.1:8001") as client:
        print(client.predict("lenet5", pixels).label)

`Client` is for threads, `AsyncClient` for coroutines. Below them are the generated stubs and
messages of neurona.v1, and numpy arrays as tensors. Names are imported when they are used first.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurona_client.async_client import AsyncClient
    from neurona_client.client import Client
    from neurona_client.descriptions import (
        Description,
        ServedModel,
        ServedVersion,
        TensorSpec,
        Value,
    )
    from neurona_client.errors import (
        ClosedError,
        DeadlineError,
        InvalidInputError,
        NeuronaError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        ServerError,
        UnauthenticatedError,
        UnavailableError,
        UnreachableError,
        WrongTaskError,
    )
    from neurona_client.options import Retries, Tls
    from neurona_client.results import Class, Classified, Prediction, Regressed
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

_WHERE = {
    "neurona_client.async_client": ("AsyncClient",),
    "neurona_client.client": ("Client",),
    "neurona_client.descriptions": (
        "Description",
        "ServedModel",
        "ServedVersion",
        "TensorSpec",
        "Value",
    ),
    "neurona_client.errors": (
        "ClosedError",
        "DeadlineError",
        "InvalidInputError",
        "NeuronaError",
        "NotFoundError",
        "OverloadedError",
        "PermissionDeniedError",
        "ServerError",
        "UnauthenticatedError",
        "UnavailableError",
        "UnreachableError",
        "WrongTaskError",
    ),
    "neurona_client.options": ("Retries", "Tls"),
    "neurona_client.results": ("Class", "Classified", "Prediction", "Regressed"),
    "neurona_protos.prediction_pb2_grpc": ("ModelsStub", "PredictionStub"),
    "neurona_protos.tensors": ("TensorError", "to_array", "to_tensor"),
}
_PLACES = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "AsyncClient",
    "Class",
    "Classification",
    "Classified",
    "ClassifyResponse",
    "Client",
    "ClosedError",
    "DataType",
    "DeadlineError",
    "DescribeModelRequest",
    "DescribeModelResponse",
    "Description",
    "Error",
    "InvalidInputError",
    "ListModelsRequest",
    "ListModelsResponse",
    "ModelMetadata",
    "ModelsStub",
    "NeuronaError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "PredictRequest",
    "PredictResponse",
    "PredictStreamRequest",
    "PredictStreamResponse",
    "Prediction",
    "PredictionStub",
    "Priority",
    "RegressResponse",
    "Regressed",
    "Regression",
    "Retries",
    "ServedModel",
    "ServedVersion",
    "ServerError",
    "State",
    "StreamedRequest",
    "StreamedResponse",
    "Task",
    "Tensor",
    "TensorError",
    "TensorSpec",
    "Tls",
    "UnauthenticatedError",
    "UnavailableError",
    "UnreachableError",
    "Value",
    "WrongTaskError",
    "to_array",
    "to_tensor",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_PLACES.get(name, "neurona_protos.prediction_pb2"))
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
