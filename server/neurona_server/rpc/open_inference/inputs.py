"""Reads the inputs of a ModelInferRequest: raw, typed, or in shared memory."""

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
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES, parse_datatype
from neurona_server.rpc.open_inference.shared_memory import (
    BYTE_SIZE,
    RegionSlice,
    SharedMemoryService,
)

_CONTENTS_FIELDS: dict[DataType, tuple[str, Any]] = {
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
"""The field of InferTensorContents for each datatype, and the dtype of the field's elements."""


def describe_inputs(message: ModelInferRequest, signature: Signature) -> dict[str, TensorType]:
    """Return the datatype and shape of each input.

    Raises:
        InvalidArgumentError: An input is a duplicate, or has an unknown datatype, or another one
            than the model's. The signature checks the latter too, but would name the datatype as
            neurona.v1 does.
    """
    expected = {spec.name: spec.dtype for spec in (*signature.inputs, *signature.optional)}
    described: dict[str, TensorType] = {}
    for tensor in message.inputs:
        name = tensor.name
        if name in described:
            raise InvalidArgumentError(f"duplicate input {quoted(name)}")
        datatype = parse_datatype(tensor.datatype, name)
        if datatype != expected.get(name, datatype):
            raise InvalidArgumentError(
                f"inference input {name!r} data-type is {tensor.datatype!r}, but model "
                f"{message.model_name!r} expects {DATATYPE_NAMES[expected[name]]!r}"
            )
        described[name] = (datatype, tuple(tensor.shape))
    return described


def request_size(message: ModelInferRequest) -> int:
    """Return the size of a request in bytes, with its inputs in shared memory."""
    size = message.ByteSize()
    for tensor in message.inputs:
        if tensor.parameters and BYTE_SIZE in tensor.parameters:
            size += max(0, tensor.parameters[BYTE_SIZE].int64_param)
    return size


def read_inputs(
    message: ModelInferRequest,
    described: Mapping[str, TensorType],
    memory: SharedMemoryService,
    owner: str,
    max_bytes: int,
) -> Inputs:
    """Return the arrays of inputs that fit the model's signature.

    Arrays of raw contents are read-only views. At most `max_bytes` are read from shared memory,
    from regions of `owner`, the caller.

    Raises:
        InvalidArgumentError: There is too little or too much data, or data in several places.
        TensorError: The data does not fit the shape.
        NotAllowedError, NotFoundError: See `SharedMemoryService.find_slice`.
    """
    arrays: dict[str, Array] = {}
    raw = message.raw_input_contents
    raw_count = len(raw)
    raw_used = 0
    shared_bytes = 0
    for tensor in message.inputs:
        name = tensor.name
        datatype, shape = described[name]
        region_slice = None
        if tensor.parameters:
            region_slice = memory.find_slice(owner, tensor.parameters, f"input {name!r}")
        if tensor.HasField("contents"):
            if raw_count:
                raise InvalidArgumentError(
                    "contents field must not be specified when using raw_input_contents for "
                    f"{name!r} for model {message.model_name!r}"
                )
            if region_slice:
                raise InvalidArgumentError(
                    f"input {name!r} has both contents and a shared memory region"
                )
        if region_slice:
            shared_bytes += region_slice.byte_size
            if shared_bytes > max_bytes:
                raise InvalidArgumentError(
                    f"the inputs in shared memory have {shared_bytes} bytes or more "
                    f"(expected at most {max_bytes})"
                )
            _check_slice_size(name, described[name], region_slice)
            data = region_slice.region.read(region_slice.offset, region_slice.byte_size)
            arrays[name] = decode(name, datatype, shape, data)
        elif raw_count:
            if raw_used < raw_count:
                arrays[name] = decode(name, datatype, shape, raw[raw_used])
            raw_used += 1
        else:
            arrays[name] = decode_contents(name, datatype, shape, tensor.contents)
    if raw_count and raw_used != raw_count:
        raise InvalidArgumentError(
            f"the request has {raw_count} raw_input_contents (expected {raw_used}, one for each "
            "input that is not in shared memory)"
        )
    return arrays


def _check_slice_size(name: str, described: TensorType, region_slice: RegionSlice) -> None:
    """Check the size before the slice is read, since a region may be large."""
    datatype, shape = described
    dtype = NUMPY_DTYPES[datatype]
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind != "O" and region_slice.byte_size != size:
        raise InvalidArgumentError(
            f"input {name!r} has {region_slice.byte_size} bytes in shared memory "
            f"(expected {size} for shape {list(shape)})"
        )


def decode_contents(
    name: str, datatype: DataType, shape: tuple[int, ...], contents: InferTensorContents
) -> Array:
    """Return the array of an input whose elements are in a typed field of the message.

    Raises:
        InvalidArgumentError: The elements are in another datatype's field, too few, too many, or
            out of range.
    """
    type_name = DATATYPE_NAMES[datatype]
    if datatype not in _CONTENTS_FIELDS:
        raise InvalidArgumentError(
            f"input {name!r} is {type_name}, which can be sent in raw_input_contents only"
        )
    field, field_dtype = _CONTENTS_FIELDS[datatype]
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidArgumentError(
                f"input {name!r} has {other.name} (expected {field} or raw_input_contents "
                f"for {type_name})"
            )
    values = getattr(contents, field)
    count = math.prod(shape)
    if len(values) != count:
        raise InvalidArgumentError(
            f"input {name!r} has {len(values)} elements in {field} "
            f"(expected {count} for shape {list(shape)})"
        )
    if datatype == DataType.DATA_TYPE_STRING:
        return _decode_strings(name, values).reshape(shape)
    array = np.fromiter(values, field_dtype, count)
    dtype = NUMPY_DTYPES[datatype]
    if dtype.itemsize < array.itemsize:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InvalidArgumentError(
                f"input {name!r} has elements from {array.min()} to {array.max()} "
                f"(expected {limits.min} to {limits.max} for {type_name})"
            )
    return array.astype(dtype, copy=False).reshape(shape)


def _decode_strings(name: str, values: list[bytes]) -> Array:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        try:
            array[index] = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(
                f"input {name!r} has invalid UTF-8 in string {index}: {error}"
            ) from None
    return array
