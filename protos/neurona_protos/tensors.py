"""Converts numpy arrays to Tensor messages and back, without a copy where the layouts agree.

The layout is that of prediction.proto: row-major, little-endian; BOOL is one byte, STRING a 4-byte
length before the bytes of each element, which are UTF-8 as a rule.
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
    DATA_TYPE_BFLOAT16: np.dtype("<u2"),  # numpy has no such dtype: the upper 16 bits of a FLOAT
    DATA_TYPE_BOOL: np.dtype("?"),
    DATA_TYPE_FLOAT16: np.dtype("<f2"),
    DATA_TYPE_DOUBLE: np.dtype("<f8"),
    DATA_TYPE_UINT32: np.dtype("<u4"),
    DATA_TYPE_UINT64: np.dtype("<u8"),
}
"""The numpy dtype of each supported DataType."""

_DATA_TYPES = {
    dtype: number for number, dtype in NUMPY_DTYPES.items() if number != DATA_TYPE_BFLOAT16
}
_LENGTH = struct.Struct("<I")
_MAX_RANK = 64  # numpy's own limit


class TensorError(ValueError):
    """A tensor is invalid, or an array cannot be sent as one; the message names it."""


def dtype_name(number: DataType) -> str:
    """Return the short name of a DataType: "FLOAT" for DATA_TYPE_FLOAT; its number if unknown."""
    name = DataType.DESCRIPTOR.values_by_number.get(number)
    return str(number) if name is None else name.name.removeprefix("DATA_TYPE_")


def data_type(dtype: np.dtype[Any]) -> DataType:
    """Return the DataType of a numpy dtype, of either byte order; STRING for object and text.

    Raises:
        TensorError: No DataType fits, as for complex numbers, dates and records.
    """
    if dtype.kind in "OSU":
        return DATA_TYPE_STRING
    number = _DATA_TYPES.get(dtype.newbyteorder("<"))
    if number is None:
        supported = ", ".join(str(dtype) for dtype in _DATA_TYPES)
        raise TensorError(f"unsupported array dtype {dtype} (expected one of {supported})")
    return number


def to_tensor(name: str, array: Array, dtype: DataType | None = None) -> Tensor:
    """Convert an array to a Tensor.

    Args:
        name: The name of the input or output.
        array: An array of any shape and byte order.
        dtype: The element type; by default that of the array. BFLOAT16 takes an array of uint16
            with the bits.

    Raises:
        TensorError: The dtype is not supported, or an element of an object array is neither text
            nor bytes.
    """
    number = data_type(array.dtype) if dtype is None else dtype
    data = bytes(encode(name, array, number))
    return Tensor(name=name, dtype=number, shape=array.shape, data=data)


def to_array(tensor: Tensor) -> Array:
    """Convert a Tensor to an array of its dtype and shape.

    The array is a read-only view of the bytes, which protobuf has copied out of the message; BOOL
    and STRING are copied once more. An element of STRING is a str, or bytes if it is not UTF-8.

    Raises:
        TensorError: The dtype is unsupported, or shape and number of bytes contradict each other.
    """
    array = decode(tensor.name, tensor.dtype, tuple(tensor.shape), tensor.data)
    if tensor.dtype == DATA_TYPE_STRING:
        for index, text in enumerate(array.flat):
            if not _is_utf8(text):
                array.flat[index] = encode_text(text)
    return array


def encode(name: str, array: Array, number: DataType) -> bytes | memoryview:
    """Return the bytes of an array, as a view if its layout in memory is that of the message.

    Raises:
        TensorError: An element of an object array is neither text nor bytes.
    """
    if number == DATA_TYPE_STRING:
        return b"".join([_encode_string(name, element) for element in array.ravel()])
    flat = array.astype(NUMPY_DTYPES[number], copy=False).ravel()
    return flat.view(np.uint8).data


def decode(name: str, number: DataType, shape: tuple[int, ...], data: bytes | memoryview) -> Array:
    """Convert the fields of a Tensor to an array, a view of the data; see `to_array`.

    Every element of STRING is a str: bytes that are not UTF-8 become lone surrogates, as in names
    of files (PEP 383), and `encode` makes the same bytes of them.
    """
    dtype = NUMPY_DTYPES.get(number)
    if dtype is None:
        raise TensorError(f"{_named(name)} has unsupported dtype {dtype_name(number)}")
    if len(shape) > _MAX_RANK:
        raise TensorError(f"{_named(name)} has {len(shape)} axes (expected at most {_MAX_RANK})")
    if shape and min(shape) < 0:
        raise TensorError(f"{_named(name)} has shape {list(shape)} (expected no negative size)")
    count = math.prod(shape)
    flat: Array
    if dtype.kind == "O":
        flat = _decode_strings(name, data, count)
    elif len(data) != count * dtype.itemsize:
        raise TensorError(
            f"{_named(name)} has {len(data)} bytes of data (expected {count * dtype.itemsize} for "
            f"{dtype_name(number)} of shape {list(shape)})"
        )
    elif dtype.kind == "b":  # any byte but 0 is true, but a numpy bool must be 0 or 1
        flat = np.frombuffer(data, np.uint8) != 0
    else:
        flat = np.frombuffer(data, dtype)
    try:
        return flat.reshape(shape)
    except ValueError as error:  # an empty array whose sizes exceed what numpy supports
        raise TensorError(f"{_named(name)} has shape {list(shape)}: {error}") from error


def decode_byte_strings(name: str, shape: tuple[int, ...], data: bytes | memoryview) -> Array:
    """Return the elements of a tensor of STRING as bytes; see `decode`.

    Raises:
        TensorError: The data are not as many strings as the shape says.
    """
    return _decode_strings(name, data, math.prod(shape), as_text=False).reshape(shape)


def _named(name: str) -> str:
    return f"tensor {name!r}"


def encode_text(text: str) -> bytes:
    """Return the bytes that `decode_text` has made the text of.

    Raises:
        UnicodeEncodeError: The text has a surrogate that stands for no byte.
    """
    return text.encode("utf-8", "surrogateescape")


def decode_text(data: bytes | memoryview) -> str:
    """Return any bytes as text: UTF-8, and lone surrogates for bytes that are not UTF-8."""
    return str(data, "utf-8", "surrogateescape")


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encode_surrogates(name: str, text: str) -> bytes:
    try:
        return encode_text(text)
    except UnicodeEncodeError as error:
        raise TensorError(
            f"tensor {name!r} has an element with a lone surrogate at character {error.start} "
            "(expected text, or bytes)"
        ) from error


def _encode_string(name: str, element: object) -> bytes:
    if isinstance(element, str):
        try:
            content = element.encode()
        except UnicodeEncodeError:
            content = _encode_surrogates(name, element)
    elif isinstance(element, bytes):
        content = element
    else:
        kind = type(element).__name__
        raise TensorError(f"tensor {name!r} has an element of type {kind} (expected str or bytes)")
    return _LENGTH.pack(len(content)) + content


def _decode_strings(
    name: str, data: bytes | memoryview, count: int, *, as_text: bool = True
) -> Array:
    # Each element takes at least its length: a false shape must not cause a large allocation.
    if count * _LENGTH.size > len(data):
        raise TensorError(
            f"{_named(name)} has {len(data)} bytes of data: too few for {count} strings"
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
        piece = data[start:position]
        # As decode_text does, without the time of the call.
        array[index] = str(piece, "utf-8", "surrogateescape") if as_text else bytes(piece)
    if position != len(data):
        raise TensorError(
            f"{_named(name)} has {len(data) - position} bytes after its {count} strings"
        )
    return array
