"""Elements that came in the lists of InferTensorContents."""

import math
from typing import Any

import numpy as np

from neurona_protos.open_inference_pb2 import InferTensorContents
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Array
from neurona_server.errors import InvalidError
from neurona_server.rpc.open_inference.datatypes import NAMES

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
    """Raises InvalidError when they are in another list, too few or many, or do not fit."""
    if number not in _LISTS:
        raise InvalidError(
            f"input {name!r} is {NAMES[number]}, which travels in raw_input_contents only"
        )
    field, wide = _LISTS[number]
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidError(
                f"input {name!r} has {other.name}; {NAMES[number]} goes in {field} or in "
                "raw_input_contents"
            )
    values = getattr(contents, field)
    count = math.prod(shape)
    if len(values) != count:
        raise InvalidError(
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
            raise InvalidError(
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
            raise InvalidError(f"input {name!r} has no UTF-8 in string {index}: {error}") from None
    return array
