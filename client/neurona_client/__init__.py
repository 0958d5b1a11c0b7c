"""The Python client of Neurona.

    from neurona_client import Client

    with Client("127.0.0.1:8001") as client:
        print(client.predict("lenet5", pixels).label)

`Client` is for threads, `AsyncClient` for coroutines. For programs that want gRPC itself there are
the generated stubs and messages of neurona.v1, and conversions of numpy arrays to tensors.

A name is imported when it is used for the first time, so that a program pays for nothing else: the
command `neurona health` needs neither numpy nor the messages. Type checkers read the imports,
Python reads the table; a test compares the two.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurona_client.async_client import AsyncClient as AsyncClient
    from neurona_client.client import Client as Client
    from neurona_client.descriptions import ModelDescription as ModelDescription
    from neurona_client.descriptions import ServedModel as ServedModel
    from neurona_client.descriptions import ServedVersion as ServedVersion
    from neurona_client.descriptions import TensorSpec as TensorSpec
    from neurona_client.descriptions import ValueSpec as ValueSpec
    from neurona_client.errors import ClosedError as ClosedError
    from neurona_client.errors import DeadlineExceededError as DeadlineExceededError
    from neurona_client.errors import InvalidInputError as InvalidInputError
    from neurona_client.errors import NeuronaError as NeuronaError
    from neurona_client.errors import NotFoundError as NotFoundError
    from neurona_client.errors import OverloadedError as OverloadedError
    from neurona_client.errors import PermissionDeniedError as PermissionDeniedError
    from neurona_client.errors import ServerError as ServerError
    from neurona_client.errors import UnauthenticatedError as UnauthenticatedError
    from neurona_client.errors import UnavailableError as UnavailableError
    from neurona_client.errors import UnreachableError as UnreachableError
    from neurona_client.errors import WrongTaskError as WrongTaskError
    from neurona_client.inputs import EncodedImage as EncodedImage
    from neurona_client.options import Retries as Retries
    from neurona_client.options import Tls as Tls
    from neurona_client.results import ClassificationResult as ClassificationResult
    from neurona_client.results import ClassProbability as ClassProbability
    from neurona_client.results import Prediction as Prediction
    from neurona_client.results import RegressionResult as RegressionResult
    from neurona_client.sessions import AsyncSession as AsyncSession
    from neurona_client.sessions import Session as Session
    from neurona_protos.prediction_pb2 import Classification as Classification
    from neurona_protos.prediction_pb2 import ClassifyResponse as ClassifyResponse
    from neurona_protos.prediction_pb2 import DataType as DataType
    from neurona_protos.prediction_pb2 import DescribeModelRequest as DescribeModelRequest
    from neurona_protos.prediction_pb2 import DescribeModelResponse as DescribeModelResponse
    from neurona_protos.prediction_pb2 import Error as Error
    from neurona_protos.prediction_pb2 import ListModelsRequest as ListModelsRequest
    from neurona_protos.prediction_pb2 import ListModelsResponse as ListModelsResponse
    from neurona_protos.prediction_pb2 import ModelMetadata as ModelMetadata
    from neurona_protos.prediction_pb2 import PredictRequest as PredictRequest
    from neurona_protos.prediction_pb2 import PredictResponse as PredictResponse
    from neurona_protos.prediction_pb2 import PredictStreamRequest as PredictStreamRequest
    from neurona_protos.prediction_pb2 import PredictStreamResponse as PredictStreamResponse
    from neurona_protos.prediction_pb2 import Priority as Priority
    from neurona_protos.prediction_pb2 import Regression as Regression
    from neurona_protos.prediction_pb2 import RegressResponse as RegressResponse
    from neurona_protos.prediction_pb2 import State as State
    from neurona_protos.prediction_pb2 import StreamedRequest as StreamedRequest
    from neurona_protos.prediction_pb2 import StreamedResponse as StreamedResponse
    from neurona_protos.prediction_pb2 import Task as Task
    from neurona_protos.prediction_pb2 import Tensor as Tensor
    from neurona_protos.prediction_pb2_grpc import ModelsStub as ModelsStub
    from neurona_protos.prediction_pb2_grpc import PredictionStub as PredictionStub
    from neurona_protos.tensors import TensorError as TensorError
    from neurona_protos.tensors import to_array as to_array
    from neurona_protos.tensors import to_tensor as to_tensor

_NAMES_BY_MODULE = {
    "neurona_client.async_client": "AsyncClient",
    "neurona_client.client": "Client",
    "neurona_client.descriptions": (
        "ModelDescription ServedModel ServedVersion TensorSpec ValueSpec"
    ),
    "neurona_client.errors": (
        "ClosedError DeadlineExceededError InvalidInputError NeuronaError NotFoundError "
        "OverloadedError PermissionDeniedError ServerError UnauthenticatedError UnavailableError "
        "UnreachableError WrongTaskError"
    ),
    "neurona_client.inputs": "EncodedImage",
    "neurona_client.options": "Retries Tls",
    "neurona_client.results": "ClassificationResult ClassProbability Prediction RegressionResult",
    "neurona_client.sessions": "AsyncSession Session",
    "neurona_protos.prediction_pb2": (
        "Classification ClassifyResponse DataType DescribeModelRequest DescribeModelResponse Error "
        "ListModelsRequest ListModelsResponse ModelMetadata PredictRequest PredictResponse "
        "PredictStreamRequest PredictStreamResponse Priority Regression RegressResponse State "
        "StreamedRequest StreamedResponse Task Tensor"
    ),
    "neurona_protos.prediction_pb2_grpc": "ModelsStub PredictionStub",
    "neurona_protos.tensors": "TensorError to_array to_tensor",
}
_MODULE_BY_NAME = {
    name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()
}

__all__ = list(_MODULE_BY_NAME)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
