"""Decodes the typed contents of an input, from their bytes in the message, and writes an output's.

As numbers of Python they would take many times the memory and the time. The bytes of packed floats
are those of the array; variable-length integers are decoded in blocks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from neurona_protos.open_inference_pb2 import InferTensorContents
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, decode_text, encode_text
from neurona_protos.wire_format import BYTES, FIXED32, FIXED64, VARINT, content_span, read_varint
from neurona_server.batching.request import Array
from neurona_server.errors import InvalidArgumentError
from neurona_server.rpc.limits import MAX_STRINGS
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES

MAX_PIECES = MAX_STRINGS + 1024
"""Fields in the contents of an input: its strings, or numbers that are not packed."""

BLOCK = 1 << 18
"""Bytes of variable-length integers that are decoded at once; the offsets take many times that."""

_CONTINUED = 0x80
_MAX_VARINT_BYTES = 10

CONTENTS: dict[DataType, tuple[str, int, Any]] = {
    DataType.DATA_TYPE_BOOL: ("bool_contents", VARINT, np.bool_),
    DataType.DATA_TYPE_INT8: ("int_contents", VARINT, np.int32),
    DataType.DATA_TYPE_INT16: ("int_contents", VARINT, np.int32),
    DataType.DATA_TYPE_INT32: ("int_contents", VARINT, np.int32),
    DataType.DATA_TYPE_INT64: ("int64_contents", VARINT, np.int64),
    DataType.DATA_TYPE_UINT8: ("uint_contents", VARINT, np.uint32),
    DataType.DATA_TYPE_UINT16: ("uint_contents", VARINT, np.uint32),
    DataType.DATA_TYPE_UINT32: ("uint_contents", VARINT, np.uint32),
    DataType.DATA_TYPE_UINT64: ("uint64_contents", VARINT, np.uint64),
    DataType.DATA_TYPE_FLOAT: ("fp32_contents", FIXED32, np.dtype("<f4")),
    DataType.DATA_TYPE_DOUBLE: ("fp64_contents", FIXED64, np.dtype("<f8")),
    DataType.DATA_TYPE_STRING: ("bytes_contents", BYTES, np.dtype(object)),
}
"""The field of InferTensorContents for each datatype, and its elements' wire type and dtype."""

_NAMES = {field.number: field.name for field in InferTensorContents.DESCRIPTOR.fields}
_WIRE_TYPES = {name: wire_type for name, wire_type, _ in CONTENTS.values()}


class EncodedContents(NamedTuple):
    """A part of a message that is an InferTensorContents."""

    message: bytes
    start: int
    stop: int


def decode_contents(
    name: str,
    datatype: DataType,
    shape: tuple[int, ...],
    parts: Sequence[EncodedContents],
    max_bytes: int,
) -> Array:
    """Return the array of an input.

    Args:
        name: The input's name, for errors.
        datatype: Its datatype.
        shape: Its shape, without negative sizes.
        parts: Its contents; several count as one.
        max_bytes: The size that the array may have.

    Raises:
        InvalidArgumentError: The elements are in another datatype's field, too few, too many, or
            out of range.
    """
    type_name = DATATYPE_NAMES[datatype]
    if datatype not in CONTENTS:
        raise InvalidArgumentError(
            f"input {name!r} is {type_name}, which can be sent in raw_input_contents only"
        )
    field, wire_type, field_dtype = CONTENTS[datatype]
    dtype, count = NUMPY_DTYPES[datatype], math.prod(shape)
    try:
        pieces = _collect(name, type_name, field, parts)
        actual, decode = _decoder(pieces, wire_type, field_dtype, dtype)
        if actual != count:
            raise InvalidArgumentError(
                f"input {name!r} has {actual} elements in {field} "
                f"(expected {count} for shape {list(shape)})"
            )
        if wire_type != BYTES and count * dtype.itemsize > max_bytes:
            raise InvalidArgumentError(
                f"input {name!r} has {count * dtype.itemsize} bytes (expected at most {max_bytes})"
            )
        return decode().reshape(shape)
    except _RangeError as error:
        limits = np.iinfo(dtype)
        raise InvalidArgumentError(
            f"input {name!r} has elements {error} "
            f"(expected {limits.min} to {limits.max} for {type_name})"
        ) from None
    except ValueError as error:
        raise InvalidArgumentError(f"input {name!r} has invalid contents: {error}") from None


def decode_byte_contents(
    name: str, shape: tuple[int, ...], parts: Sequence[EncodedContents]
) -> Array:
    """Return the elements of an input of BYTES as bytes; see `decode_contents`.

    Raises:
        InvalidArgumentError: The elements are in another field, too few or too many.
    """
    field = CONTENTS[DataType.DATA_TYPE_STRING][0]
    try:
        pieces = _collect(name, DATATYPE_NAMES[DataType.DATA_TYPE_STRING], field, parts)
    except ValueError as error:
        raise InvalidArgumentError(f"input {name!r} has invalid contents: {error}") from None
    if len(pieces) != math.prod(shape):
        raise InvalidArgumentError(
            f"input {name!r} has {len(pieces)} elements in {field} "
            f"(expected {math.prod(shape)} for shape {list(shape)})"
        )
    array = np.empty(len(pieces), dtype=object)
    for index, piece in enumerate(pieces):
        array[index] = bytes(piece)
    return array.reshape(shape)


def set_contents(contents: InferTensorContents, array: Array, datatype: DataType) -> None:
    """Write an output as typed contents; `datatype` is one of CONTENTS."""
    field, wire_type, field_dtype = CONTENTS[datatype]
    flat = array.ravel()
    if wire_type == BYTES:
        elements = [encode_text(text) if isinstance(text, str) else text for text in flat]
    else:
        elements = flat.astype(field_dtype, copy=False).tolist()
    getattr(contents, field).extend(elements)


def _collect(
    name: str, type_name: str, field: str, parts: Sequence[EncodedContents]
) -> list[memoryview]:
    """Return the pieces of the `field`; raise InvalidArgumentError if there are others."""
    pieces = []
    for other, piece in _pieces(parts):
        if other != field:
            raise InvalidArgumentError(
                f"input {name!r} has {other} (expected {field} or raw_input_contents "
                f"for {type_name})"
            )
        pieces.append(piece)
        if len(pieces) > MAX_PIECES:
            raise InvalidArgumentError(
                f"input {name!r} has more than {MAX_PIECES} fields in its contents"
            )
    return pieces


def _decoder(
    pieces: Sequence[memoryview], wire_type: int, field_dtype: Any, dtype: np.dtype[Any]
) -> tuple[int, Callable[[], Array]]:
    """Return the number of elements in the pieces of a field, and the function that decodes them.

    The latter is called once that number is found right.
    """
    if wire_type == BYTES:
        return len(pieces), lambda: _decode_strings(pieces)
    encoded = np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.uint8)
    if wire_type == VARINT:
        count = int(np.count_nonzero(encoded < _CONTINUED))
        return count, lambda: _decode_integers(encoded, field_dtype, dtype, count)
    return len(encoded) // dtype.itemsize, lambda: encoded.view(field_dtype)


class _RangeError(Exception):
    """Elements are out of the range of their datatype; the message says which they are."""


def _pieces(parts: Sequence[EncodedContents]) -> Iterator[tuple[str, memoryview]]:
    """Yield the field and the bytes of each string, and of each number or list of packed ones.

    Raises ValueError.
    """
    for message, begin, end in parts:
        view = memoryview(message)
        position = begin
        while position < end:
            tag, position = read_varint(message, position)
            start, position = content_span(message, tag & 7, position)
            if position > end:
                raise ValueError("the message ends inside a field")
            name = _NAMES.get(tag >> 3, "")
            if name == "bytes_contents":
                if tag & 7 == BYTES:
                    yield name, view[start:position]
            elif name and tag & 7 in (BYTES, _WIRE_TYPES[name]) and start < position:
                yield name, view[start:position]


def _decode_strings(pieces: Sequence[memoryview]) -> Array:
    array = np.empty(len(pieces), dtype=object)
    for index, piece in enumerate(pieces):
        array[index] = decode_text(piece)
    return array


def _decode_integers(encoded: Array, field_dtype: Any, dtype: np.dtype[Any], count: int) -> Array:
    """Decode variable-length integers block by block.

    Args:
        encoded: The bytes of all of them.
        field_dtype: What the field's elements are.
        dtype: What the array's elements are, which may be shorter.
        count: The number of integers.

    Raises:
        _RangeError: An element does not fit `dtype`.
        ValueError: A number is incomplete or too long.
    """
    array = np.empty(count, dtype)
    position = index = 0
    while position < len(encoded):
        block = encoded[position : position + BLOCK]
        ends = np.flatnonzero(block < _CONTINUED) + 1
        if not len(ends) or (position + len(block) == len(encoded) and ends[-1] != len(block)):
            raise ValueError("the message ends inside a number")
        values = _decode_block(block[: ends[-1]], ends).astype(field_dtype)
        if dtype.itemsize < values.itemsize:
            limits = np.iinfo(dtype)
            if values.min() < limits.min or values.max() > limits.max:
                raise _RangeError(f"from {values.min()} to {values.max()}")
        array[index : index + len(values)] = values
        index += len(values)
        position += int(ends[-1])
    return array


def _decode_block(block: Array, ends: Array) -> Array:
    """Return the integers, as 64 bits each, that end before the offsets `ends`."""
    if len(ends) == len(block):  # each has a single byte
        return block.astype(np.uint64)
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    longest = int(lengths.max())
    if longest > _MAX_VARINT_BYTES:
        raise ValueError(f"a number has {longest} bytes")
    values: Array = (block[starts] & 0x7F).astype(np.uint64)
    for octet in range(1, longest):
        longer = np.flatnonzero(lengths > octet)
        bits = (block[starts[longer] + octet] & 0x7F).astype(np.uint64)
        values[longer] |= bits << np.uint64(7 * octet)
    return values
