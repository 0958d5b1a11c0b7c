"""What the parameters of a request say of how it is to be served."""

import re
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest
from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.policy import Priority
from neurona_server.errors import (
    InvalidArgumentError,
    NeuronaError,
    NotFoundError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.rpc.call import Call, Unary
from neurona_server.rpc.security.access import Grant, Right

NAMES: dict[DataType, str] = {
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
_NUMBERS = {name: number for number, name in NAMES.items()}


def number_of(name: str, of: str) -> DataType:
    """Raises InvalidArgumentError that names the input `of`."""
    number = _NUMBERS.get(name)
    if number is None:
        raise InvalidArgumentError(
            f"input {quoted(of)} has datatype {quoted(name)}; expected one of "
            + ", ".join(_NUMBERS)
        )
    return number


def config_type(number: DataType) -> str:
    """As a ModelConfig says it: BYTES is STRING there."""
    name = NAMES[number]
    return "TYPE_" + ("STRING" if name == "BYTES" else name)


Request = TypeVar("Request", bound=Message)


def parse(kind: type[Request], data: bytes) -> Request:
    """Raises InvalidArgumentError."""
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidArgumentError(f"the bytes are not an {name}") from None


def unary_method(
    right: Right | None, kind: type[Request], respond: Callable[[Request, Grant], Message]
) -> Unary:
    """For callers with the `right`; None: for everybody."""

    def start(call: Call) -> None:
        try:
            response = respond(parse(kind, call.request), call.grant)
        except NeuronaError as error:
            call.fail(error)
        else:
            call.reply(response.SerializeToString())

    return Unary(start, right)


_NUMBER = re.compile(r"[0-9]{1,18}")


def resolve(registry: Registry, name: str, version: str) -> Model:
    """`version` is a number, one of the model's labels, or empty: the server's choice.

    Raises NotFoundError, in Triton's words with our own behind them.
    """
    try:
        if not _NUMBER.fullmatch(version):
            return registry.resolve(name, label=version)
        if not int(version):
            raise NotFoundError("versions are counted from 1")
        return registry.resolve(name, int(version))
    except NotFoundError as error:
        raise unknown(name, version, error) from None


def unknown(name: str, version: str, error: NotFoundError) -> NotFoundError:
    which = f" version {quoted(version)}" if version else ""
    return NotFoundError(f"Request for unknown model: {quoted(name)}{which} is not found: {error}")


RESERVED = "triton_"
EMPTY_FINAL = "triton_enable_empty_final_response"

LEVELS = (Priority.NORMAL, Priority.HIGH, Priority.NORMAL)
"""By number, 1 the most urgent as in Triton, 0 the default; every greater one is LOW."""


class RequestParameters(NamedTuple):
    priority: Priority
    deadline: float


def read_terms(message: ModelInferRequest, deadline: float) -> RequestParameters:
    """`deadline` is the call's: the nearer of it and of the parameter `timeout` holds.

    Parameters that are nobody's are the caller's own and passed over. Raises InvalidArgumentError,
    and
    UnsupportedError for a sequence.
    """
    priority = Priority.NORMAL
    if message.parameters:  # most have none
        for name, value in message.parameters.items():
            if name == "priority":
                level = whole(name, value)
                priority = LEVELS[level] if level < len(LEVELS) else Priority.LOW
            elif name == "timeout":
                if microseconds := whole(name, value):
                    deadline = min(deadline, time.monotonic() + microseconds / 1e6)
            elif name in ("sequence_id", "sequence_start", "sequence_end"):
                if getattr(value, value.WhichOneof("parameter_choice") or "bool_param"):
                    raise UnsupportedError(
                        f"parameter {name!r}: this server keeps no state for a sequence of "
                        "requests; send it without sequence_id, or with 0"
                    )
            elif name.startswith(RESERVED) and name != EMPTY_FINAL:
                raise InvalidArgumentError(
                    f"parameter keys starting with {RESERVED!r} are reserved for Triton usage and "
                    f"should not be specified; {quoted(name)} came"
                )
    return RequestParameters(priority, deadline)


def whole(name: str, value: InferParameter) -> int:
    """A number that is not negative. Raises InvalidArgumentError."""
    kind = value.WhichOneof("parameter_choice")
    number = 0
    if kind == "int64_param":
        number = value.int64_param
    elif kind == "uint64_param":
        number = value.uint64_param
    else:
        raise InvalidArgumentError(
            f"parameter {name!r} is a {kind or 'nothing'}; expected int64_param or uint64_param"
        )
    if number < 0:
        raise InvalidArgumentError(f"parameter {name!r} is {number}; expected 0 or more")
    return number
