"""From a ModelInferRequest to a model's inputs."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from neurona_protos.open_inference_pb2 import InferTensorContents, ModelInferRequest
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, decode
from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.models.signature import Signature, TensorType
from neurona_server.rpc.open_inference.messages import NAMES, number_of
from neurona_server.rpc.open_inference.shared_memory import (
    BYTE_SIZE,
    RegionSlice,
    SharedMemoryService,
)

_LISTS: dict[DataType, tuple[str, Any]] = {
    DataType.DATA_TYPE_BOOL: ("bool_contents", np.bool_),
    DataType.DATA_TYPE_INT8: ("int_contents", np.int32),
    DataType.DATA_TYPE_INT16: ("int_contents", np.int32),
    DataType.DATA_TYPE_INT32: ("int_contents", np.int32),
    DataType.DATA_TYPE_INT64: ("int64_contents", np.int64),
    DataType.DATA_TYPE_UINT8: ("uint_contents", np.uint32),
    DataType.DATA_TYPE_UINT16: ("uint_contents", np.uint32),
    DataType.DATA_TYPE_UINT32: ("uint_contents", np.uint32),
    DataType.DATA_TYPE_UINT64: ("uint64_contents", np.uint64),
    DataType.DATA_TYPE_FLOAT: ("fp32_contents", np.float32),
    DataType.DATA_TYPE_DOUBLE: ("fp64_contents", np.float64),
    DataType.DATA_TYPE_STRING: ("bytes_contents", object),
}


def from_contents(
    name: str, number: DataType, shape: tuple[int, ...], contents: InferTensorContents
) -> Array:
    """Raises InvalidArgumentError when they are in another list, too few or many, or do not fit."""
    if number not in _LISTS:
        raise InvalidArgumentError(
            f"input {name!r} is {NAMES[number]}, which travels in raw_input_contents only"
        )
    field, wide = _LISTS[number]
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidArgumentError(
                f"input {name!r} has {other.name}; {NAMES[number]} goes in {field} or in "
                "raw_input_contents"
            )
    values = getattr(contents, field)
    count = math.prod(shape)
    if len(values) != count:
        raise InvalidArgumentError(
            f"input {name!r} has {len(values)} elements in {field}; "
            f"{NAMES[number]} of shape {list(shape)} takes {count}"
        )
    if number == DataType.DATA_TYPE_STRING:
        return _strings(name, values).reshape(shape)
    array = np.fromiter(values, wide, count)
    narrow = NUMPY_DTYPES[number]
    if narrow.itemsize < array.itemsize:
        limits = np.iinfo(narrow)
        if array.min() < limits.min or array.max() > limits.max:
            raise InvalidArgumentError(
                f"input {name!r} has elements from {array.min()} to {array.max()}; "
                f"{NAMES[number]} holds {limits.min} to {limits.max}"
            )
    return array.astype(narrow, copy=False).reshape(shape)


def _strings(name: str, values: list[bytes]) -> Array:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        try:
            array[index] = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(
                f"input {name!r} has no UTF-8 in string {index}: {error}"
            ) from None
    return array


def describe(message: ModelInferRequest, signature: Signature) -> dict[str, TensorType]:
    """Raises InvalidArgumentError when an input stands twice, or has a datatype that is not known
    or not
    the model's: the signature would say so too, but by the names of neurona.v1."""
    expected = {spec.name: spec.dtype for spec in (*signature.inputs, *signature.optional)}
    described: dict[str, TensorType] = {}
    for tensor in message.inputs:
        name = tensor.name
        if name in described:
            raise InvalidArgumentError(f"input {quoted(name)} stands twice; expected it once")
        number = number_of(tensor.datatype, name)
        if number != expected.get(name, number):
            raise InvalidArgumentError(
                f"inference input {name!r} data-type is {tensor.datatype!r}, but model "
                f"{message.model_name!r} expects {NAMES[expected[name]]!r}"
            )
        described[name] = (number, tuple(tensor.shape))
    return described


def size_of(message: ModelInferRequest) -> int:
    """Bytes of a request, with those that it has in shared memory."""
    size = message.ByteSize()
    for tensor in message.inputs:
        if tensor.parameters and BYTE_SIZE in tensor.parameters:
            size += max(0, tensor.parameters[BYTE_SIZE].int64_param)
    return size


def read_inputs(
    message: ModelInferRequest,
    described: Mapping[str, TensorType],
    memory: SharedMemoryService,
    most_bytes: int,
) -> Inputs:
    """The arrays of inputs that fit the model's signature: read-only views on raw contents.

    Raises InvalidArgumentError, TensorError, and what `Memory.place` raises.
    """
    arrays: dict[str, Array] = {}
    raw = message.raw_input_contents
    raws = len(raw)
    used = 0
    shared = 0
    for tensor in message.inputs:
        name = tensor.name
        number, shape = described[name]
        place = memory.place(tensor.parameters, f"input {name!r}") if tensor.parameters else None
        if tensor.HasField("contents"):
            if raws:
                raise InvalidArgumentError(
                    "contents field must not be specified when using raw_input_contents for "
                    f"{name!r} for model {message.model_name!r}"
                )
            if place:
                raise InvalidArgumentError(f"input {name!r} has contents and is in shared memory")
        if place:
            shared += place.byte_size
            if shared > most_bytes:
                raise InvalidArgumentError(
                    f"the inputs in shared memory have {shared} bytes or more; "
                    f"expected at most {most_bytes}"
                )
            _check_size(name, described[name], place)
            data = place.region.read(place.offset, place.byte_size)
            arrays[name] = decode(name, number, shape, data)
        elif raws:
            if used < raws:
                arrays[name] = decode(name, number, shape, raw[used])
            used += 1
        else:
            arrays[name] = from_contents(name, number, shape, tensor.contents)
    if raws and used != raws:
        raise InvalidArgumentError(
            f"the request has {raws} raw_input_contents; expected {used}, one for each input that "
            "is not in shared memory"
        )
    return arrays


def _check_size(name: str, described: TensorType, place: RegionSlice) -> None:
    """Before it is read: a region may be large."""
    number, shape = described
    dtype = NUMPY_DTYPES[number]
    wanted = math.prod(shape) * dtype.itemsize
    if dtype.kind != "O" and place.byte_size != wanted:
        raise InvalidArgumentError(
            f"input {name!r} has {place.byte_size} bytes in shared memory; "
            f"its shape {list(shape)} takes {wanted}"
        )
