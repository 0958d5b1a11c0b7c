"""numpy arrays as Tensor messages and back, without a copy where the wire allows it.

The layout is that of prediction.proto: row-major, little-endian, BOOL one byte, STRING
elements each behind a 4-byte length.
"""

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_protos.prediction_pb2 import (
    DATA_TYPE_BFLOAT16,
    DATA_TYPE_BOOL,
    DATA_TYPE_DOUBLE,
    DATA_TYPE_FLOAT,
    DATA_TYPE_FLOAT16,
    DATA_TYPE_INT8,
    DATA_TYPE_INT16,
    DATA_TYPE_INT32,
    DATA_TYPE_INT64,
    DATA_TYPE_STRING,
    DATA_TYPE_UINT8,
    DATA_TYPE_UINT16,
    DATA_TYPE_UINT32,
    DATA_TYPE_UINT64,
    DataType,
    Tensor,
)

Array = NDArray[Any]

NUMPY_DTYPES: dict[DataType, np.dtype[Any]] = {
    DATA_TYPE_FLOAT: np.dtype("<f4"),
    DATA_TYPE_UINT8: np.dtype("u1"),
    DATA_TYPE_INT8: np.dtype("i1"),
    DATA_TYPE_UINT16: np.dtype("<u2"),
    DATA_TYPE_INT16: np.dtype("<i2"),
    DATA_TYPE_INT32: np.dtype("<i4"),
    DATA_TYPE_INT64: np.dtype("<i8"),
    DATA_TYPE_STRING: np.dtype(object),
    DATA_TYPE_BFLOAT16: np.dtype("<u2"),  # numpy has none: its bits, the upper half of a FLOAT
    DATA_TYPE_BOOL: np.dtype("?"),
    DATA_TYPE_FLOAT16: np.dtype("<f2"),
    DATA_TYPE_DOUBLE: np.dtype("<f8"),
    DATA_TYPE_UINT32: np.dtype("<u4"),
    DATA_TYPE_UINT64: np.dtype("<u8"),
}
_DATA_TYPES = {
    dtype: number for number, dtype in NUMPY_DTYPES.items() if number != DATA_TYPE_BFLOAT16
}
_LENGTH = struct.Struct("<I")
_MAX_RANK = 64  # numpy's own limit


class TensorError(ValueError):
    """A tensor that contradicts itself; the message names it and says how."""


def dtype_name(number: DataType) -> str:
    """ "FLOAT" for DATA_TYPE_FLOAT; the number itself where the enum has no name for it."""
    name = DataType.DESCRIPTOR.values_by_number.get(number)
    return str(number) if name is None else name.name.removeprefix("DATA_TYPE_")


def data_type(dtype: np.dtype[Any]) -> DataType:
    """The DataType of a numpy dtype, of either byte order; text of any width is STRING.

    Raises TensorError for a dtype that has none (complex, datetime, records).
    """
    if dtype.kind in "OSU":
        return DATA_TYPE_STRING
    number = _DATA_TYPES.get(dtype.newbyteorder("<"))
    if number is None:
        known = ", ".join(str(dtype) for dtype in _DATA_TYPES)
        raise TensorError(f"an array of dtype {dtype} cannot be sent; expected one of {known}")
    return number


def to_tensor(name: str, array: Array, dtype: DataType | None = None) -> Tensor:
    """`dtype` is that of the array unless it is given, as for BFLOAT16, whose arrays are uint16.

    Raises TensorError for a dtype that a Tensor cannot carry.
    """
    number = data_type(array.dtype) if dtype is None else dtype
    data = bytes(encode(name, array, number))
    return Tensor(name=name, dtype=number, shape=array.shape, data=data)


def to_array(tensor: Tensor) -> Array:
    """A read-only view on the tensor's bytes, as protobuf hands them out: one copy out of the
    message, and another for BOOL and STRING.

    Raises TensorError when dtype, shape and byte count do not fit together.
    """
    return decode(tensor.name, tensor.dtype, tuple(tensor.shape), tensor.data)


def encode(name: str, array: Array, number: DataType) -> bytes | memoryview:
    """The bytes of an array, a view on them where they lie in memory as they travel."""
    if number == DATA_TYPE_STRING:
        return b"".join([_encode_string(name, element) for element in array.ravel()])
    flat = array.astype(NUMPY_DTYPES[number], copy=False).ravel()
    return flat.view(np.uint8).data


def decode(name: str, number: DataType, shape: tuple[int, ...], data: bytes) -> Array:
    """As `to_array`, of a tensor's parts."""
    dtype = NUMPY_DTYPES.get(number)
    if dtype is None:
        raise TensorError(f"{_named(name)} has dtype {dtype_name(number)}, which is not supported")
    if len(shape) > _MAX_RANK:
        raise TensorError(f"{_named(name)} has {len(shape)} axes; expected at most {_MAX_RANK}")
    if shape and min(shape) < 0:
        raise TensorError(f"{_named(name)} has shape {list(shape)}; no size may be negative")
    count = math.prod(shape)
    flat: Array
    if dtype.kind == "O":
        flat = _decode_strings(name, data, count)
    elif len(data) != count * dtype.itemsize:
        raise TensorError(
            f"{_named(name)} has {len(data)} bytes of data; "
            f"{dtype_name(number)} of shape {list(shape)} takes {count * dtype.itemsize}"
        )
    elif dtype.kind == "b":  # any byte but 0 is true, and a numpy bool must be 0 or 1
        flat = np.frombuffer(data, np.uint8) != 0
    else:
        flat = np.frombuffer(data, dtype)
    try:
        return flat.reshape(shape)
    except ValueError as error:  # no elements, but sizes whose product numpy cannot hold
        raise TensorError(f"{_named(name)} has shape {list(shape)}: {error}") from error


def _named(name: str) -> str:
    return f"tensor {name!r}"


def _encode_string(name: str, element: object) -> bytes:
    if isinstance(element, str):
        element = element.encode()
    if not isinstance(element, bytes):
        kind = type(element).__name__
        raise TensorError(f"tensor {name!r} has an element of type {kind}; expected str or bytes")
    return _LENGTH.pack(len(element)) + element


def _decode_strings(name: str, data: bytes, count: int) -> Array:
    # Each element takes at least its length, so that a lying shape cannot make us allocate.
    if count * _LENGTH.size > len(data):
        raise TensorError(
            f"{_named(name)} has {len(data)} bytes of data, too few for {count} strings"
        )
    array = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        start = position + _LENGTH.size
        if start > len(data):
            raise TensorError(f"{_named(name)} ends inside string {index} of {count}")
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise TensorError(f"{_named(name)} ends inside string {index} of {count}")
        try:
            array[index] = data[start:position].decode()
        except UnicodeDecodeError as error:
            raise TensorError(f"{_named(name)} has no UTF-8 in string {index}: {error}") from error
    if position != len(data):
        raise TensorError(
            f"{_named(name)} has {len(data) - position} bytes behind its {count} strings"
        )
    return array
