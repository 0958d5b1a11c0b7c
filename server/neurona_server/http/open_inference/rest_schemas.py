"""What the OpenAPI document says of requests and responses with tensors, and of errors.

The types of requests are those that parse them; only responses are described for the document. The
file is alone because nothing but the document uses it.
"""

from typing import Any

import msgspec

from neurona_protos import open_inference_pb2 as pb
from neurona_server.http.open_inference.infer_requests import RequestBody

INFER_REQUEST = RequestBody


class ResponseTensor(msgspec.Struct):
    """An output: its data are here, behind the JSON, or in shared memory."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, bool | int | float | str] = {}
    """`binary_data_size`, or where it is in shared memory."""
    data: list[bool | int | float | str] = []


class InferResponse(msgspec.Struct):
    """The response of a model."""

    model_name: str
    model_version: str
    outputs: list[ResponseTensor]
    id: str = ""
    parameters: dict[str, bool | int | float | str] = {}


class RestError(msgspec.Struct):
    """An error."""

    error: str


class LiveResponse(msgspec.Struct):
    """Whether the server answers."""

    live: bool


class ModelsResponse(msgspec.Struct):
    """The names of the models that are ready."""

    models: list[str]


class ReadyResponse(msgspec.Struct):
    """Whether every model that is to be served is ready."""

    ready: bool


class ModelReadyResponse(msgspec.Struct):
    """Whether a model is ready."""

    name: str
    ready: bool


def _settings(value: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value}


TRACE_SETTINGS = _settings(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
)
LOG_SETTINGS = _settings({"type": ["boolean", "integer", "string"]})


def list_of(message: Any) -> dict[str, Any]:
    """Return the schema of a list of messages."""
    names = {
        pb.RepositoryIndexResponse: ("name", "version", "state", "reason"),
        pb.SystemSharedMemoryStatusResponse: ("name", "key", "offset", "byte_size"),
        pb.CudaSharedMemoryStatusResponse: ("name", "device_id", "byte_size"),
    }[message]
    numbers = ("offset", "byte_size", "device_id")
    properties = {name: {"type": "integer" if name in numbers else "string"} for name in names}
    return {"type": "array", "items": {"type": "object", "properties": properties}}
