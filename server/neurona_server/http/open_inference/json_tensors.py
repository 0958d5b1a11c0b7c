"""Tensors as JSON: arrays of numbers, booleans or texts, flat or nested as the tensor's shape.

Numbers are decoded block by block, after their count was found right: as objects of Python they
take many times the bytes of their text. JSON has no NaN and no infinities: they are written as the
texts "NaN", "Infinity" and "-Infinity", as in protobuf's JSON, and read as these texts or as the
bare words that some programs write.
"""

import base64
import binascii
import contextlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec
import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, decode_text, encode
from neurona_server.batching.request import Array
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.rpc.limits import MAX_AXES, MAX_STRINGS
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES

BLOCK = 1 << 18
"""Bytes of JSON whose numbers are decoded at once."""

BINARY_ONLY = (DataType.DATA_TYPE_FLOAT16, DataType.DATA_TYPE_BFLOAT16)
"""Datatypes that travel as binary data, as in the protocol's other forms."""

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""The texts that stand for numbers that JSON has not."""

_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)
"""A text, or the start of one that does not end: without it, the search would start again behind
each of its quotes. Nothing goes back, which would take ten times as long: no other thread runs
while a text is matched."""
_DIGIT = re.compile(rb"[0-9]")
_DIGITS = range(6, 10)
"""6 digits are never one too many to tell numbers of 32 bits apart, 9 always enough."""

_EXACT_EXPONENT = 13
_POWERS = 10.0 ** np.arange(_EXACT_EXPONENT + _DIGITS[-1])
_MAX_COMPARED = 1 << 16
"""Elements of an axis that are compared with the first, for an error or an odd shape."""

_FEW = 64
"""Numbers of 32 bits up to which each is shortened by itself."""

_decode_float_block = msgspec.json.Decoder(list[float]).decode
_decode_mixed_block = msgspec.json.Decoder(list[float | str]).decode
_decode_integer_block = msgspec.json.Decoder(list[int]).decode
_decode_boolean_block = msgspec.json.Decoder(list[bool]).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_decode_any = msgspec.json.Decoder().decode


def has_bare_words(text: bytes) -> bool:
    """Return whether JSON may have the bare words NaN or Infinity, which JSON has not."""
    return b"NaN" in text or b"Infinity" in text


def count_fields(text: bytes, enough: int) -> int:
    """Return the number of fields of JSON; any up to `enough` if there are not more than that.

    Of JSON with too many texts those behind MAX_STRINGS count as if they were none.
    """
    fields = text.count(b":")
    if fields <= enough:
        return fields
    # Most may be in texts.
    for match in itertools.islice(_STRING.finditer(text), MAX_STRINGS + 2 * enough):
        fields -= text.count(b":", *match.span())
        if fields <= enough:
            break
    return fields


def quote_words(text: bytes) -> bytes:
    """Return JSON in which the bare words NaN and Infinity, which JSON has not, are texts.

    Raises:
        InvalidArgumentError: It has too many texts.
    """
    pieces: list[bytes] = []
    position = 0
    for match in _STRING.finditer(text):
        pieces += (_quote_words(text[position : match.start()]), match[0])
        position = match.end()
        if len(pieces) > 4 * MAX_STRINGS:  # those of the data, and names
            raise _too_many_strings()
    return b"".join([*pieces, _quote_words(text[position:])])


def _quote_words(text: bytes) -> bytes:
    """Quote the words in JSON without texts."""
    if not has_bare_words(text):
        return text
    text = text.replace(b"NaN", b'"NaN"').replace(b"Infinity", b'"Infinity"')
    return text.replace(b'-"Infinity"', b'"-Infinity"')


def _too_many_strings() -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the request has more than {MAX_STRINGS} strings (expected at most {MAX_STRINGS})"
    )


def read_json_tensor(
    name: str,
    datatype: DataType,
    shape: Sequence[int],
    data: bytes | memoryview,
    *,
    is_base64: bool = False,
) -> bytes | memoryview:
    """Return the bytes of a tensor whose elements are given as JSON.

    Args:
        name: The input's name, for errors.
        datatype: Its datatype.
        shape: Its shape, without negative sizes.
        data: A JSON array, flat or nested as the shape; axes of size 1 may be left out or added.
        is_base64: Whether texts are the base64 of what they stand for.

    Returns:
        Row-major, little-endian; texts have a 4-byte length before each.

    Raises:
        InvalidArgumentError: The elements are too many, too few, of another type, or out of range.
    """
    text = bytes(data)
    if datatype in BINARY_ONLY:
        type_name = DATATYPE_NAMES[datatype]
        raise InvalidArgumentError(
            f"sending {type_name} data via JSON is not supported: input {quoted(name)} (expected "
            "binary data: parameter 'binary_data_size')"
        )
    if datatype == DataType.DATA_TYPE_STRING:
        return encode(name, _read_texts(name, shape, text, is_base64=is_base64), datatype)
    if not text.startswith(b"["):
        raise _no_array_error(name, datatype)
    if _is_nested(name, shape, text.translate(None, _NOT_STRUCTURE)):
        text = b"[" + text.translate(None, b"[]") + b"]"
    array = np.empty(math.prod(shape), NUMPY_DTYPES[datatype])
    position = 0
    for block in _blocks(text):
        values = _decode_block(name, datatype, block)
        # "[]" and "[1]" have the same brackets and commas.
        if position + len(values) > len(array):
            raise _count_error(name, position + len(values), shape)
        array[position : position + len(values)] = values
        position += len(values)
    if position != len(array):
        raise _count_error(name, position, shape)
    return encode(name, array, datatype)


def write_json_tensor(
    name: str, datatype: DataType, count: int, data: bytes | memoryview
) -> list[Any]:
    """Return the elements of a tensor for JSON: a flat list.

    Args:
        name: The output's name, for errors.
        datatype: Its datatype.
        count: The number of its elements.
        data: Its bytes.

    Raises:
        InvalidArgumentError: The datatype is for binary data only, or a text is not UTF-8.
    """
    if datatype in BINARY_ONLY:
        raise InvalidArgumentError(
            f"sending {DATATYPE_NAMES[datatype]} data via JSON is not supported: output "
            f"{quoted(name)} (expected a request for binary data: parameter 'binary_data' of the "
            "output, or 'binary_data_output')"
        )
    if datatype == DataType.DATA_TYPE_STRING:
        return [_text_of(name, element) for element in _split_strings(data, count)]
    array = np.frombuffer(data, NUMPY_DTYPES[datatype])
    if array.dtype.kind != "f":
        return cast("list[Any]", array.tolist())
    finite = np.isfinite(array)
    values: list[Any] = _shorten(array) if array.dtype.itemsize == 4 else array.tolist()
    if not finite.all():
        for index in np.flatnonzero(~finite).tolist():
            values[index] = _name_of(values[index])
    return values


def _name_of(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _shorten(array: Array) -> list[float]:
    """Return numbers of 32 bits as those of 64 bits with the fewest digits that stand for them.

    0.1 has 17 digits otherwise.
    """
    if len(array) <= _FEW:
        return [float(str(value)) for value in array]
    exact = array.astype(np.float64)
    shortened = exact.copy()
    with np.errstate(all="ignore"):
        exponents = np.floor(np.log10(np.abs(exact)))
        # Powers of ten up to 10^22 are exact; other numbers keep all of their digits.
        pending = np.flatnonzero(np.abs(exponents) <= _EXACT_EXPONENT)
        for digits in _DIGITS:
            values = exact[pending]
            places = (digits - 1 - exponents[pending]).astype(np.intp)
            # Both are an integer times or divided by a power of ten: the number nearest to that
            # decimal.
            up, down = _POWERS[np.maximum(places, 0)], _POWERS[np.maximum(-places, 0)]
            rounded = np.rint(values * up / down) / up * down
            fits = rounded.astype(np.float32) == array[pending]
            shortened[pending[fits]] = rounded[fits]
            pending = pending[~fits]
            if not len(pending):
                break
    return cast("list[float]", shortened.tolist())


def _text_of(name: str, element: bytes | memoryview) -> str:
    try:
        return str(element, "utf-8")
    except UnicodeDecodeError:
        raise InvalidArgumentError(
            f"output {quoted(name)} has text that is not UTF-8 (expected a request for binary "
            "data: parameter 'binary_data' of the output, or 'binary_data_output')"
        ) from None


def _split_strings(data: bytes | memoryview, count: int) -> Iterator[bytes | memoryview]:
    position = 0
    for _ in range(count):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        yield data[start:position]


def _is_nested(name: str, shape: Sequence[int], structure: bytes) -> bool:
    """Return whether brackets and commas are those of a nested array, not of a flat one.

    Raises:
        InvalidArgumentError: They have another number of elements, or another shape.
    """
    count = math.prod(shape)
    commas = structure.count(b",")
    if structure == b"[" + b"," * commas + b"]":
        if commas + 1 != max(1, count):
            raise _count_error(name, commas + 1, shape)
        return False
    wide = [size for size in shape if size != 1]
    if any(structure == _structure_of(sizes) for sizes in (shape, wide, [1, *wide])):
        return True
    sizes = _sizes_of(structure)
    if not sizes or _structure_of(sizes) != structure:
        raise InvalidArgumentError(
            f"input {quoted(name)} has data that is nested unevenly (expected a flat array, or one "
            f"nested as shape {list(shape)})"
        )
    if math.prod(sizes) != count:
        raise _count_error(name, math.prod(sizes), shape)
    if [size for size in sizes if size != 1] != wide:
        raise InvalidArgumentError(
            f"input {quoted(name)} has data that is nested as {sizes} (expected a flat array, or "
            f"one nested as shape {list(shape)})"
        )
    return True


def _sizes_of(structure: bytes) -> list[int]:
    """Return the sizes that the first elements of a nested array have, the outermost first.

    Empty if there are more axes or elements of an axis than are worth the time.
    """
    depth = len(structure) - len(structure.lstrip(b"["))
    if depth > MAX_AXES:
        return []
    unit = structure[depth - 1 : structure.find(b"]") + 1]
    sizes = [len(unit) - 1]
    for level in range(depth - 2, -1, -1):
        # The array at this level repeats the unit of the one inside, with commas between.
        position, count = level + 1, 0
        while structure.startswith(unit, position):
            count += 1
            if count > _MAX_COMPARED:
                return []
            position += len(unit)
            if not structure.startswith(b",", position):
                break
            position += 1
        sizes.insert(0, count)
        unit = structure[level : position + 1]
    return sizes


def _structure_of(sizes: Sequence[int]) -> bytes:
    structure = b""
    for size in reversed(sizes):
        structure = b"[" + b",".join([structure] * size) + b"]"
    return structure


def _blocks(text: bytes) -> Iterator[bytes]:
    """Split a flat JSON array into arrays of about BLOCK bytes."""
    if len(text) <= BLOCK:
        yield text
        return
    start, end = 1, text.rindex(b"]")
    while start < end:
        stop = text.find(b",", start + BLOCK, end)
        stop = end if stop < 0 else stop
        yield b"[" + text[start:stop] + b"]"
        start = stop + 1


def _decode_block(name: str, datatype: DataType, block: bytes) -> Array | list[Any]:
    dtype = NUMPY_DTYPES[datatype]
    try:
        if dtype.kind == "f":
            return _decode_floats(name, datatype, block)
        if dtype.kind == "b":
            return _decode_boolean_block(block)
        return _check_range(name, datatype, _decode_integer_block(block))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _kind_error(name, datatype, block) from None


def _decode_floats(name: str, datatype: DataType, block: bytes) -> Array:
    try:
        values = np.array(_decode_float_block(block), np.float64)
    except msgspec.ValidationError:
        if b'"' not in block:
            raise
        mixed = _decode_mixed_block(block)
        values = np.array(
            [one if isinstance(one, float) else _not_finite(name, datatype, one) for one in mixed]
        )
    else:
        if datatype == DataType.DATA_TYPE_DOUBLE:
            return values
    if datatype == DataType.DATA_TYPE_DOUBLE:
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    overflown = np.isinf(narrow) & np.isfinite(values)
    if overflown.any():
        value = values[np.argmax(overflown)]
        raise InvalidArgumentError(
            f"input {quoted(name)} has the element {value:g}, which is out of range (expected "
            "-3.4028235e38 to 3.4028235e38 for FP32)"
        )
    return narrow


def _not_finite(name: str, datatype: DataType, text: str) -> float:
    value = NOT_FINITE.get(text)
    if value is None:
        raise InvalidArgumentError(
            f"input {quoted(name)} has the text {quoted(text)} (expected numbers for "
            f'{DATATYPE_NAMES[datatype]}, or "NaN", "Infinity" or "-Infinity")'
        )
    return value


def _check_range(name: str, datatype: DataType, values: list[int]) -> list[int]:
    limits = np.iinfo(NUMPY_DTYPES[datatype])
    lowest, highest = min(values, default=0), max(values, default=0)
    if lowest < limits.min or highest > limits.max:
        value = lowest if lowest < limits.min else highest
        raise InvalidArgumentError(
            f"input {quoted(name)} has the element {value}, which is out of range (expected "
            f"{limits.min} to {limits.max} for {DATATYPE_NAMES[datatype]})"
        )
    return values


def _count_error(name: str, actual: int, shape: Sequence[int]) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"input {quoted(name)} has {actual} elements in 'data' (expected {math.prod(shape)} for "
        f"shape {list(shape)})"
    )


def _no_array_error(name: str, datatype: DataType) -> InvalidArgumentError:
    kind = _KINDS[NUMPY_DTYPES[datatype].kind]
    return InvalidArgumentError(
        f"input {quoted(name)} has 'data' that is no array (expected an array of {kind} for "
        f"{DATATYPE_NAMES[datatype]})"
    )


_KINDS = {"f": "numbers", "b": "true or false", "i": "integers", "u": "integers", "O": "texts"}


def _kind_error(name: str, datatype: DataType, block: bytes) -> InvalidArgumentError:
    """Return the error of JSON that is no array of a datatype's elements; it names the first."""
    kind = NUMPY_DTYPES[datatype].kind
    wrong = "a number that is out of range" if _DIGIT.search(block) else "an empty array"
    if len(block) <= 2 * BLOCK:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            for element in _flatten(_decode_any(block)):
                if not _is_of_kind(element, kind):
                    wrong = msgspec.json.encode(element).decode()[:40]
                    break
    return InvalidArgumentError(
        f"input {quoted(name)} has {wrong} in 'data' (expected an array of {_KINDS[kind]} for "
        f"{DATATYPE_NAMES[datatype]})"
    )


def _is_of_kind(element: Any, kind: str) -> bool:
    if kind == "O":
        return isinstance(element, str)
    if isinstance(element, bool):
        return kind == "b"
    if kind == "f":
        return isinstance(element, int | float) or str(element) in NOT_FINITE
    return isinstance(element, int) and kind in "iu"


def _flatten(value: Any) -> Iterator[Any]:
    if not isinstance(value, list):
        yield value
        return
    for element in value:
        yield from _flatten(element)


def _read_texts(name: str, shape: Sequence[int], text: bytes, *, is_base64: bool) -> Array:
    if not text.startswith(b"["):
        raise _no_array_error(name, DataType.DATA_TYPE_STRING)
    quotes = text.count(b'"')
    if quotes > 2 * MAX_STRINGS:  # or there are many of them in the texts
        texts = itertools.islice(_STRING.finditer(text), MAX_STRINGS + 1)
        if sum(1 for _ in texts) > MAX_STRINGS:
            raise _too_many_strings()
    structure = _STRING.sub(b"", text)
    if structure.translate(None, b"[], \t\r\n"):
        raise _kind_error(name, DataType.DATA_TYPE_STRING, text)
    _is_nested(name, shape, structure.translate(None, _NOT_STRUCTURE))
    encoded = _STRING.findall(text)
    if len(encoded) != math.prod(shape):  # "[]" and "['']" have the same brackets and commas
        raise _count_error(name, len(encoded), shape)
    try:
        values = _decode_texts(b"[" + b",".join(encoded) + b"]")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise InvalidArgumentError(
            f"input {quoted(name)} has text that is not UTF-8 (expected binary data for other "
            "bytes: parameter 'binary_data_size')"
        ) from None
    if is_base64:
        values = [_decode_base64(name, value) for value in values]
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _decode_base64(name: str, text: str) -> str:
    try:
        return decode_text(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(
            f"input {quoted(name)} has the text {quoted(text)} (expected base64, by its parameter "
            "'content_type')"
        ) from None
