import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.errors import InvalidArgumentError
from neurona_server.http.open_inference import json_tensors
from neurona_server.http.open_inference.json_tensors import (
    count_fields,
    quote_words,
    read_json_tensor,
    write_json_tensor,
)

FLOAT, STRING = DataType.DATA_TYPE_FLOAT, DataType.DATA_TYPE_STRING


def read(text, shape, datatype=FLOAT, **options):
    return bytes(read_json_tensor("x", datatype, shape, text.encode(), **options))


def floats(*values):
    return np.array(values, "<f4").tobytes()


def texts(*values):
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("[1,2,3,4]", [2, 2]),
        (" [ 1, 2 ,3,\n4 ] ".strip(), [4]),
        ("[[1,2],[3,4]]", [2, 2]),
        ("[[1,2],[3,4]]", [2, 1, 2]),
        ("[[[1,2]],[[3,4]]]", [2, 2]),
        ("[[1,2,3,4]]", [4]),
        ("[1,2,3,4]", [1, 4]),
    ],
)
def test_numbers_are_flat_or_nested(text, shape):
    assert read(text, shape) == floats(1, 2, 3, 4)


def test_a_scalar_and_an_empty_tensor():
    assert read("[5]", []) == floats(5)
    assert read("[]", [0]) == b""
    assert read("[]", [0, 3]) == b""


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        ("[1,2,3]", [2, 2], "has 3 elements in 'data' (expected 4 for shape [2, 2])"),
        ("[]", [1], "has 0 elements in 'data' (expected 1 for shape [1])"),
        ("[1]", [0], "has 1 elements in 'data' (expected 0 for shape [0])"),
        ("[[1,2],[3]]", [2, 2], "nested unevenly"),
        ("[1,[2],3]", [3], "nested unevenly"),
        ("[[1,2,3],[4,5,6]]", [3, 2], "nested as [2, 3]"),
        ("[[1,2],[3,4]]", [2], "has 4 elements"),
        ("[" * 40 + "1" + "]" * 40, [1], "nested unevenly"),
        ("1", [1], "no array (expected an array of numbers for FP32)"),
        ("[1,null]", [2], "has null in 'data' (expected an array of numbers for FP32)"),
        ("[1,true]", [2], "has true in 'data'"),
        ('[1,{"a":2}]', [2], "in 'data'"),
        ('[1,"one"]', [2], "has the text 'one'"),
        ("[1,1e39]", [2], "element 1e+39, which is out of range"),
        ("[1,1e999]", [2], "has a number that is out of range in 'data'"),
        ("[[],1]", [2], "nested unevenly"),
    ],
)
def test_errors_of_numbers(text, shape, reason):
    with pytest.raises(InvalidArgumentError) as raised:
        read(text, shape)
    assert str(raised.value).startswith("input 'x' ")
    assert reason in str(raised.value)


def test_numbers_that_json_has_not():
    words = quote_words(b'[NaN, -Infinity, Infinity, "NaN", "-Infinity"]').decode()
    values = np.frombuffer(read(words, [5]), "<f4").tolist()
    assert np.isnan([values[0], values[3]]).all()
    assert values[1:3] == [-math.inf, math.inf]
    assert values[4] == -math.inf
    assert quote_words(b'{"a NaN \\" NaN": NaN}') == b'{"a NaN \\" NaN": "NaN"}'


def test_a_text_that_does_not_end_is_read_once():
    text = b":" * 10 + b'"' + b'\\"' * 1_000_000  # for each of its quotes, it took hours
    assert count_fields(text, 5) == 10
    assert quote_words(b"NaN" + text) == b'"NaN"' + text


def test_words_have_a_limit_of_texts(monkeypatch):
    monkeypatch.setattr(json_tensors, "MAX_STRINGS", 10)
    assert quote_words(b'["",NaN]') == b'["","NaN"]'
    with pytest.raises(InvalidArgumentError, match="more than 10 strings"):
        quote_words(b'["",NaN]' * 21)


def test_fields_in_texts_do_not_count():
    assert count_fields(b'{"a:b": ":::", "c": ":"}', 2) == 2
    assert count_fields(b'{"a:b": ":::", "c": ":"}', 1) == 2


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        (DataType.DATA_TYPE_INT8, [-128, 127]),
        (DataType.DATA_TYPE_UINT8, [0, 255]),
        (DataType.DATA_TYPE_INT16, [-(2**15), 2**15 - 1]),
        (DataType.DATA_TYPE_UINT16, [0, 2**16 - 1]),
        (DataType.DATA_TYPE_INT32, [-(2**31), 2**31 - 1]),
        (DataType.DATA_TYPE_UINT32, [0, 2**32 - 1]),
        (DataType.DATA_TYPE_INT64, [-(2**63), 2**63 - 1]),
        (DataType.DATA_TYPE_UINT64, [0, 2**64 - 1]),
    ],
)
def test_integers_are_exact(datatype, values):
    data = read(str(values), [2], datatype)
    assert data == np.array(values, NUMPY_DTYPES[datatype]).tobytes()
    assert write_json_tensor("y", datatype, 2, data) == values
    for value in (values[0] - 1, values[1] + 1):
        with pytest.raises(InvalidArgumentError, match=f"element {value}, which is out of range"):
            read(str([value]), [1], datatype)
    with pytest.raises(InvalidArgumentError, match=r"has 1\.5 in 'data' .* integers"):
        read("[1.5]", [1], datatype)


def test_booleans():
    data = read("[true,[false]]".replace("[false]", "false"), [2], DataType.DATA_TYPE_BOOL)
    assert data == b"\1\0"
    assert write_json_tensor("y", DataType.DATA_TYPE_BOOL, 2, data) == [True, False]
    with pytest.raises(InvalidArgumentError, match="has 1 in 'data' .* true or false for BOOL"):
        read("[1]", [1], DataType.DATA_TYPE_BOOL)


def test_texts():
    text = '["a,[b]", "\\u00fc\\"", ""]'
    data = read(text, [3], STRING)
    assert data == texts(b"a,[b]", 'ü"'.encode(), b"")
    assert write_json_tensor("y", STRING, 3, data) == ["a,[b]", 'ü"', ""]
    assert read('[["a"],["b"]]', [2, 1], STRING) == texts(b"a", b"b")
    assert read('["iVA="]', [1], STRING, is_base64=True) == texts(b"\x89P")


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        ('["a",1]', [2], "has 1 in 'data' (expected an array of texts for BYTES)"),
        ('["a",null]', [2], "has null in 'data'"),
        ('"a"', [1], "no array"),
        ("[]", [1], "has 0 elements"),
        ('["a"]', [0], "has 1 elements"),
        ('["a","b"]', [3], "has 2 elements"),
        ('[["a"],["b","c"]]', [3], "nested unevenly"),
    ],
)
def test_errors_of_texts(text, shape, reason):
    with pytest.raises(InvalidArgumentError) as raised:
        read(text, shape, STRING)
    assert reason in str(raised.value)


def test_text_has_to_be_utf8_and_base64():
    with pytest.raises(InvalidArgumentError, match="not UTF-8"):
        read_json_tensor("x", STRING, [1], b'["\xff"]')
    with pytest.raises(InvalidArgumentError, match="expected base64"):
        read('["?"]', [1], STRING, is_base64=True)
    with pytest.raises(InvalidArgumentError, match="output 'y' has text that is not UTF-8"):
        write_json_tensor("y", STRING, 1, texts(b"\xff"))


def test_there_are_not_more_texts_than_over_grpc(monkeypatch):
    monkeypatch.setattr(json_tensors, "MAX_STRINGS", 3)
    assert read('["a","b","\\"\\"\\"\\""]', [3], STRING)
    with pytest.raises(InvalidArgumentError, match="more than 3 strings"):
        read('["a","b","c","d"]', [4], STRING)


@pytest.mark.parametrize("datatype", json_tensors.BINARY_ONLY)
def test_halves_are_binary_only(datatype):
    with pytest.raises(InvalidArgumentError, match="via JSON is not supported: input 'x'"):
        read("[1]", [1], datatype)
    with pytest.raises(InvalidArgumentError, match="via JSON is not supported: output 'y'"):
        write_json_tensor("y", datatype, 1, b"\0\0")


def test_blocks_join(monkeypatch):
    monkeypatch.setattr(json_tensors, "BLOCK", 10)
    values = [round(number * 1.5, 1) for number in range(50)]
    assert read(str(values), [50]) == floats(*values)
    nested = np.reshape(values, (5, 2, 5)).tolist()
    assert read(str(nested), [5, 2, 5]) == floats(*values)


@given(st.lists(st.floats(width=32), min_size=1, max_size=200))
def test_floats_are_written_as_the_same_floats(values):
    array = np.array(values, np.float32)
    written = write_json_tensor("y", FLOAT, len(array), array.tobytes())
    assert np.array(written, np.float32).tobytes() == array.tobytes() or np.isnan(array).any()
    for one, value in zip(written, array, strict=True):
        assert isinstance(one, str) == (not np.isfinite(value))


@pytest.mark.parametrize("count", [3, 300])
def test_floats_have_no_more_digits_than_they_need(count):
    array = np.array([0.1, 16777216, -1e-5] * (count // 3), np.float32)
    written = write_json_tensor("y", FLOAT, count, array.tobytes())
    assert written == [0.1, 16777216.0, -1e-5] * (count // 3)
    array = np.array([math.nan, math.inf, -math.inf] * (count // 3), np.float64)
    written = write_json_tensor("y", DataType.DATA_TYPE_DOUBLE, count, array.tobytes())
    assert written == ["NaN", "Infinity", "-Infinity"] * (count // 3)
