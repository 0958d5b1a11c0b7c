"""Takes strings that are not UTF-8 into ONNX Runtime and out of it.

Inside ONNX Runtime a string is any sequence of bytes. Its Python API converts strings from and to
str, and so takes and returns UTF-8 only; here they go in and out as OrtValues instead. Elsewhere in
the server such a string is a str with lone surrogates in place of bytes (`decode_text`).

In: the API makes no OrtValue of strings, but a model whose output is a constant returns one. It has
their bytes as they are, and takes a third of a millisecond to load and run.

Out: the API returns the address of a tensor's elements, which are std::string objects. They are
read as the C++ library of Linux (libstdc++) lays them out, a pointer and a length first; whether
that is so here is tested once, with known strings.
"""

import ctypes
import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import Array, decode_text, encode_text
from neurona_protos.wire_format import VARINT, length_delimited, varint

_ELEMENT_BYTES = 32
"""Size of a std::string of libstdc++: a pointer, a length, and 16 bytes for a short text."""

_MAX_INT = 2**31 - 1
"""What `ctypes.string_at` takes as a size: it cuts off the upper bits of greater ones."""

_IN_PLACE = 16
"""Offset in a std::string at which it holds a text of up to 15 bytes itself."""

# Numbers of fields in onnx.proto.
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET, _OPSET_VERSION = 1, 7, 8, 2
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_TENSOR_SIZES, _TENSOR_TYPE, _TENSOR_STRINGS, _TENSOR_NAME = 1, 2, 6, 8
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TENSOR_ELEMENT_TYPE = 1, 2, 1, 1
_STRING = int(DataType.DATA_TYPE_STRING)  # the number is onnx.proto's

_IR_VERSION, _OPSET = 8, 17
_SAMPLES = (b"short", b"\xff\x00", b"more bytes than the object itself has room for: \xfe", b"")


def strings_to_value(array: Array) -> onnxruntime.OrtValue:
    """Return strings, with surrogates for bytes that are not UTF-8, as an OrtValue."""
    return _make_value([encode_text(text) for text in array.flat], array.shape)


def value_to_strings(value: onnxruntime.OrtValue) -> Array:
    """Return the strings of an OrtValue, with surrogates for bytes that are not UTF-8.

    Only if `can_read_strings`.
    """
    shape = value.shape()
    array = np.empty(math.prod(shape), object)
    for index, content in enumerate(_read_contents(value, len(array))):
        array[index] = decode_text(content)
    return array.reshape(shape)


def strings_to_fixed_bytes(array: Array) -> Array | None:
    """Return strings as an array of bytes of one length, which ONNX Runtime takes from numpy too.

    It ends each at its first NUL byte, so all have one; None if one has such a byte itself, or if
    this version of ONNX Runtime takes them in another way.
    """
    contents = [encode_text(text) for text in array.flat]
    if any(b"\0" in content for content in contents) or not _takes_fixed_bytes():
        return None
    return _fixed_bytes(contents).reshape(array.shape)


def _fixed_bytes(contents: Sequence[bytes]) -> Array:
    longest = max(map(len, contents), default=0)
    return np.array(contents, np.dtype((np.bytes_, longest + 1)))


@cache
def _takes_fixed_bytes() -> bool:
    samples = ["a", "longer", ""]
    session = _open(_model(input_name=b"x"))
    (returned,) = session.run(None, {"x": _fixed_bytes([sample.encode() for sample in samples])})
    return bool(returned.tolist() == samples)


@cache
def can_read_strings() -> bool:
    """Return whether `value_to_strings` works on this platform."""
    value = _make_value(_SAMPLES, (len(_SAMPLES),))
    if value.tensor_size_in_bytes() != _ELEMENT_BYTES * len(_SAMPLES):
        return False
    start = value.data_ptr()
    for index, (sample, (address, length)) in enumerate(
        zip(_SAMPLES, _read_table(start, len(_SAMPLES)), strict=True)
    ):
        # In this order, so that no address is read that need not be one.
        if length != len(sample):
            return False
        own = start + index * _ELEMENT_BYTES
        if (address == own + _IN_PLACE) != (length < _IN_PLACE):
            return False
        if read_memory(address, length) != sample:
            return False
    return True


def _read_contents(value: onnxruntime.OrtValue, count: int) -> Iterable[bytes]:
    if count:  # otherwise there is no address
        for address, length in _read_table(value.data_ptr(), count):
            yield read_memory(address, length)


def read_memory(address: int, size: int) -> bytes:
    """Return the bytes at an address."""
    if size <= _MAX_INT:
        return ctypes.string_at(address, size)
    starts = range(0, size, _MAX_INT)
    return b"".join(
        [ctypes.string_at(address + start, min(_MAX_INT, size - start)) for start in starts]
    )


def _read_table(start: int, count: int) -> Iterable[tuple[int, int]]:
    """Return address and length of each of `count` strings that are stored from `start` on."""
    words = np.frombuffer(read_memory(start, count * _ELEMENT_BYTES), np.uint64)
    addresses, lengths, *_ = words.reshape(count, -1).T.tolist()
    return zip(addresses, lengths, strict=True)


def _make_value(contents: Sequence[bytes], shape: Sequence[int]) -> onnxruntime.OrtValue:
    fields = [_number(_TENSOR_SIZES, size) for size in shape]
    fields.append(_number(_TENSOR_TYPE, _STRING))
    fields += [length_delimited(_TENSOR_STRINGS, content) for content in contents]
    session = _open(_model(constant=b"".join(fields)))
    value: Any = session.run_with_ort_values(None, {})[0]
    return value


def _open(model: bytes) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, settings, ["CPUExecutionProvider"])


def _model(*, constant: bytes = b"", input_name: bytes = b"") -> bytes:
    """Return an ONNX model that returns the strings of a constant, or those of its input."""
    source, output = input_name or b"c", b"y"
    strings = _message((_TYPE_TENSOR, _number(_TENSOR_ELEMENT_TYPE, _STRING)))
    node = _message((_NODE_INPUT, source), (_NODE_OUTPUT, output), (_NODE_OPERATOR, b"Identity"))
    graph = _message(
        (_GRAPH_NODE, node),
        (_GRAPH_NAME, b"strings"),
        (_GRAPH_OUTPUT, _message((_VALUE_NAME, output), (_VALUE_TYPE, strings))),
    )
    if input_name:
        graph += _message((_GRAPH_INPUT, _message((_VALUE_NAME, source), (_VALUE_TYPE, strings))))
    else:
        tensor = constant + length_delimited(_TENSOR_NAME, source)
        graph += length_delimited(_GRAPH_INITIALIZER, tensor)
    opset = _number(_OPSET_VERSION, _OPSET)
    return _number(_MODEL_IR_VERSION, _IR_VERSION) + _message(
        (_MODEL_GRAPH, graph), (_MODEL_OPSET, opset)
    )


def _message(*fields: tuple[int, bytes]) -> bytes:
    return b"".join([length_delimited(number, content) for number, content in fields])


def _number(field: int, number: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(number)
