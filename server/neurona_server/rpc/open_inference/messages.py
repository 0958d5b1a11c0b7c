"""Reads parts of Open Inference Protocol messages that several of its methods share.

These are the parsing, the lookup of a model by name and version, the names of datatypes, and the
parameters of requests.
"""

import math
import re
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest
from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.policy import Priority, QueuePolicies, QueueTimeout, priority_of
from neurona_server.errors import (
    InvalidArgumentError,
    NeuronaError,
    NotFoundError,
    quoted,
)
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.rpc.call import Call, Unary
from neurona_server.rpc.security.access import Grant, Right

DATATYPE_NAMES: dict[DataType, str] = {
    DataType.DATA_TYPE_BOOL: "BOOL",
    DataType.DATA_TYPE_UINT8: "UINT8",
    DataType.DATA_TYPE_UINT16: "UINT16",
    DataType.DATA_TYPE_UINT32: "UINT32",
    DataType.DATA_TYPE_UINT64: "UINT64",
    DataType.DATA_TYPE_INT8: "INT8",
    DataType.DATA_TYPE_INT16: "INT16",
    DataType.DATA_TYPE_INT32: "INT32",
    DataType.DATA_TYPE_INT64: "INT64",
    DataType.DATA_TYPE_FLOAT16: "FP16",
    DataType.DATA_TYPE_FLOAT: "FP32",
    DataType.DATA_TYPE_DOUBLE: "FP64",
    DataType.DATA_TYPE_STRING: "BYTES",
    DataType.DATA_TYPE_BFLOAT16: "BF16",
}
_DATATYPES = {name: datatype for datatype, name in DATATYPE_NAMES.items()}

FINAL_RESPONSE = "triton_final_response"
"""The parameter that marks the last response to a request of a stream."""

_RESERVED_PREFIX = "triton_"
_EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"

_VERSION_NUMBER = re.compile(r"[0-9]{1,18}")

Request = TypeVar("Request", bound=Message)


def parse_message(kind: type[Request], data: bytes) -> Request:
    """Parse a message.

    Raises:
        InvalidArgumentError: The bytes are not a message of this kind.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidArgumentError(f"the bytes are not an {name}") from None


def unary_method(
    right: Right | None, kind: type[Request], respond: Callable[[Request, Grant], Message]
) -> Unary:
    """Make a method of a function that returns the response or raises a NeuronaError.

    Callers need the `right`; without one the method is open to everybody.
    """

    def start(call: Call) -> None:
        try:
            response = respond(parse_message(kind, call.request), call.grant)
        except NeuronaError as error:
            call.fail(error)
        else:
            call.reply(response.SerializeToString())

    return Unary(start, right)


def resolve_model(registry: Registry, name: str, version: str) -> Model:
    """Return the model with a name and a version.

    `version` is a number, one of the model's labels, or empty for the server's choice.

    Raises:
        NotFoundError: There is no such model or version. The message has Triton's words, followed
            by ours.
    """
    try:
        if not _VERSION_NUMBER.fullmatch(version):
            return registry.resolve(name, label=version)
        if not int(version):
            raise NotFoundError("versions are counted from 1")
        return registry.resolve(name, int(version))
    except NotFoundError as error:
        if not version and name in registry.names():
            text = f"Request for unknown model: {quoted(name)} has no available versions: {error}"
            raise NotFoundError(text) from None
        raise unknown_model_error(name, version, error) from None


def unknown_model_error(name: str, version: str, error: NotFoundError) -> NotFoundError:
    """Return the error in the words of Triton, which its clients may look for."""
    which = (
        f" version {version if _VERSION_NUMBER.fullmatch(version) else quoted(version)}"
        if version
        else ""
    )
    return NotFoundError(f"Request for unknown model: {quoted(name)}{which} is not found: {error}")


def parse_datatype(name: str, input_name: str) -> DataType:
    """Return the datatype of a name.

    Raises:
        InvalidArgumentError: The name is unknown; the message names the input.
    """
    datatype = _DATATYPES.get(name)
    if datatype is None:
        raise InvalidArgumentError(
            f"input {quoted(input_name)} has datatype {quoted(name)} "
            f"(expected one of {', '.join(_DATATYPES)})"
        )
    return datatype


def config_datatype(datatype: DataType) -> str:
    """Return the name that a ModelConfig uses, where BYTES is called STRING."""
    name = DATATYPE_NAMES[datatype]
    return "TYPE_" + ("STRING" if name == "BYTES" else name)


class RequestParameters(NamedTuple):
    """The parameters of a request that say how to serve it."""

    priority: Priority
    deadline: float
    """Seconds of the monotonic clock."""
    queue_timeout: QueueTimeout | None = None


def read_request_parameters(
    message: ModelInferRequest, deadline: float, policies: QueuePolicies | None
) -> RequestParameters:
    """Read the parameters `priority` and `timeout`.

    `deadline` is the call's; it or the end of `timeout` counts, whichever is earlier. If the
    `policies` of the model have a timeout, they say whether that of the request counts, and it is a
    limit of the wait only. Unknown parameters are the caller's own and ignored.

    Raises:
        InvalidArgumentError: A parameter has the wrong type or value, or a reserved name.
    """
    number, seconds = 0, math.inf
    if message.parameters:  # most have none
        for name, value in message.parameters.items():
            if name == "priority":
                number = read_unsigned_parameter(name, value)
            elif name == "timeout":
                seconds = (read_unsigned_parameter(name, value) or math.inf) / 1e6
            elif name.startswith(_RESERVED_PREFIX) and name != _EMPTY_FINAL_RESPONSE:
                raise InvalidArgumentError(
                    f"parameter keys starting with {_RESERVED_PREFIX!r} are reserved for Triton "
                    f"usage and should not be specified: {quoted(name)}"
                )
    queue_timeout = None
    if policies is not None:
        number = policies.number(number)
        queue_timeout = policies.timeout(number, seconds)
    if queue_timeout is None and seconds < math.inf:
        deadline = min(deadline, time.monotonic() + seconds)
    return RequestParameters(priority_of(number), deadline, queue_timeout)


def read_unsigned_parameter(name: str, value: InferParameter) -> int:
    """Return the value of an integer parameter.

    Raises:
        InvalidArgumentError: It is not an integer, or negative.
    """
    kind = value.WhichOneof("parameter_choice")
    number = 0
    if kind == "int64_param":
        number = value.int64_param
    elif kind == "uint64_param":
        number = value.uint64_param
    else:
        raise InvalidArgumentError(
            f"parameter {name!r} is a {kind or 'nothing'} (expected int64_param or uint64_param)"
        )
    if number < 0:
        raise InvalidArgumentError(f"parameter {name!r} is {number} (expected 0 or more)")
    return number
