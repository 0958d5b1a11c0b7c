"""Typed contents are decoded from their bytes as the parser would decode them."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.open_inference_pb2 import InferTensorContents
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_protos.wire_format import length_delimited, signed_varint
from neurona_server.errors import InvalidArgumentError
from neurona_server.rpc.open_inference import typed_contents
from neurona_server.rpc.open_inference.typed_contents import EncodedContents, decode_contents

FIELDS = {
    DataType.DATA_TYPE_BOOL: ("bool_contents", st.booleans()),
    DataType.DATA_TYPE_INT8: ("int_contents", st.integers(-128, 127)),
    DataType.DATA_TYPE_INT32: ("int_contents", st.integers(-(2**31), 2**31 - 1)),
    DataType.DATA_TYPE_INT64: ("int64_contents", st.integers(-(2**63), 2**63 - 1)),
    DataType.DATA_TYPE_UINT16: ("uint_contents", st.integers(0, 65535)),
    DataType.DATA_TYPE_UINT32: ("uint_contents", st.integers(0, 2**32 - 1)),
    DataType.DATA_TYPE_UINT64: ("uint64_contents", st.integers(0, 2**64 - 1)),
    DataType.DATA_TYPE_FLOAT: ("fp32_contents", st.floats(width=32, allow_nan=False)),
    DataType.DATA_TYPE_DOUBLE: ("fp64_contents", st.floats(allow_nan=False)),
    DataType.DATA_TYPE_STRING: ("bytes_contents", st.text(max_size=3).map(str.encode)),
}


def decode(datatype, shape, *messages, max_bytes=1 << 30):
    parts = [EncodedContents(b"12" + message, 2, 2 + len(message)) for message in messages]
    return decode_contents("x", datatype, shape, parts, max_bytes)


@pytest.mark.parametrize("block", [3, 1 << 18])
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(FIELDS)), st.data())
def test_elements_are_those_of_the_parser(block, datatype, data):
    field, elements = FIELDS[datatype]
    values = data.draw(st.lists(elements, max_size=40))
    middle = data.draw(st.integers(0, len(values)))
    messages = [
        InferTensorContents(**{field: part}).SerializeToString()
        for part in (values[:middle], values[middle:])
    ]
    typed_contents.BLOCK, kept = max(block, 10), typed_contents.BLOCK
    try:
        array = decode(datatype, (len(values),), *messages)
        joined = decode(datatype, (len(values),), b"".join(messages))
    finally:
        typed_contents.BLOCK = kept
    parsed = getattr(InferTensorContents.FromString(b"".join(messages)), field)
    if datatype == DataType.DATA_TYPE_STRING:
        parsed = [each.decode() for each in parsed]
    assert array.dtype == NUMPY_DTYPES[datatype]
    assert array.tolist() == list(parsed) == joined.tolist()


def test_elements_that_are_not_packed_count_too():
    message = b"".join(b"\x18" + signed_varint(value) for value in (1, -1, 300))
    message += length_delimited(3, signed_varint(7))
    assert decode(DataType.DATA_TYPE_INT64, (2, 2), message).tolist() == [[1, -1], [300, 7]]
    floats = b"".join(b"\x35" + np.float32(value).tobytes() for value in (1, 2))
    assert decode(DataType.DATA_TYPE_FLOAT, (2,), floats).tolist() == [1, 2]


def test_integers_of_a_field_of_32_bits_are_cut_as_the_parser_does():
    long = length_delimited(2, signed_varint(2**32 + 5) + signed_varint(-1))
    parsed = InferTensorContents.FromString(long).int_contents
    assert decode(DataType.DATA_TYPE_INT32, (2,), long).tolist() == list(parsed) == [5, -1]


@pytest.mark.parametrize(
    ("datatype", "message", "error"),
    [
        (DataType.DATA_TYPE_INT64, length_delimited(3, b"\x80"), "ends inside a number|0 elements"),
        (DataType.DATA_TYPE_INT64, length_delimited(3, b"\x01\x80"), "ends inside a number"),
        (DataType.DATA_TYPE_INT64, length_delimited(3, b"\x80" * 10 + b"\x01"), "has 11 bytes"),
        (DataType.DATA_TYPE_INT64, b"\x1a\x7f", "ends inside a field"),
        (DataType.DATA_TYPE_INT64, b"\x1b\x1c", "wire type 3"),
        (DataType.DATA_TYPE_FLOAT, length_delimited(6, bytes(5)), "5 bytes|invalid contents"),
        (DataType.DATA_TYPE_INT8, length_delimited(2, b"\x80\x01"), "from 128 to 128"),
        (DataType.DATA_TYPE_INT8, length_delimited(3, b"\x01"), "has int64_contents"),
    ],
)
def test_invalid_contents_are_rejected(datatype, message, error):
    with pytest.raises(InvalidArgumentError, match=error):
        decode(datatype, (1,), message)


def test_contents_may_not_become_larger_than_a_message():
    packed = length_delimited(3, b"\x01" * 1000)
    assert decode(DataType.DATA_TYPE_INT64, (1000,), packed, max_bytes=8000).sum() == 1000
    with pytest.raises(InvalidArgumentError, match="8000 bytes \\(expected at most 7999"):
        decode(DataType.DATA_TYPE_INT64, (1000,), packed, max_bytes=7999)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_many_numbers_take_little_time_and_memory(size):
    count = (8 << 20) // size
    number = b"\x81" * (size - 1) + b"\x01"
    message = length_delimited(3, number * count)
    started = time.perf_counter()
    tracemalloc.start()
    array = decode(DataType.DATA_TYPE_INT64, (count,), message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - started < 4  # 0.1 s; with numbers of Python 2 s and more
    assert len(array) == count
    assert peak < array.nbytes + 5 * len(message)
