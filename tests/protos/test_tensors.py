"""numpy arrays survive the round trip through a Tensor; invalid tensors are errors."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurona_protos.prediction_pb2 import DataType, Tensor
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, decode, encode, to_array, to_tensor

NUMERIC = [dtype for dtype in NUMPY_DTYPES.values() if dtype.kind != "O"]


@given(
    st.sampled_from(NUMERIC).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    )
)
def test_numbers_survive_the_round_trip(array):
    returned = to_array(Tensor.FromString(to_tensor("x", array).SerializeToString()))
    assert returned.dtype == array.dtype
    assert returned.shape == array.shape
    np.testing.assert_array_equal(returned, array)


@given(hnp.arrays(object, hnp.array_shapes(max_dims=3, min_side=0), elements=st.text()))
def test_strings_survive_the_round_trip(array):
    returned = to_array(to_tensor("x", array))
    assert returned.shape == array.shape
    assert returned.tolist() == array.tolist()


@given(st.lists(st.binary(max_size=40)))
def test_bytes_survive_the_round_trip_as_text_where_they_are_utf8(contents):
    tensor = to_tensor("x", np.array(contents, object))
    for content, returned in zip(contents, to_array(tensor), strict=True):
        try:
            assert returned == content.decode()
        except UnicodeDecodeError:
            assert returned == content
    # Between the two, a server has text for all of them.
    texts = decode("x", tensor.dtype, (len(contents),), tensor.data)
    assert all(isinstance(text, str) for text in texts)
    assert encode("x", texts, tensor.dtype) == tensor.data


def test_a_view_is_not_a_copy():
    tensor = to_tensor("x", np.arange(1000.0))
    assert not to_array(tensor).flags.owndata
    assert not to_array(tensor).flags.writeable


def test_big_endian_and_strided_arrays_keep_their_values():
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    np.testing.assert_array_equal(to_array(to_tensor("x", array)), array)


def test_numpy_text_is_sent_as_strings():
    assert to_array(to_tensor("x", np.array(["a", "çé"]))).tolist() == ["a", "çé"]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            Tensor(name="x", dtype=1, shape=[2, 2], data=b"123"),
            "3 bytes.*expected 16 for FLOAT of shape .2, 2.",
        ),
        (Tensor(name="x", dtype=1, shape=[-1], data=b"1234"), "shape .-1. .expected no negative"),
        (Tensor(name="x", dtype=1, shape=[2**62, 2**62]), "0 bytes.*expected 8507059173023461586"),
        (Tensor(name="x", dtype=1, shape=[0, 2**62, 2**62]), "shape .0, 4611686018427387904"),
        (Tensor(name="x", dtype=1, shape=[1] * 65, data=b"1234"), "65 axes .expected at most 64"),
        (Tensor(name="x", shape=[1], data=b"1"), "has unsupported dtype UNDEFINED"),
        (Tensor(name="x", dtype=14, shape=[1], data=b"12345678"), "unsupported dtype 14"),
        (Tensor(name="x", dtype=99, shape=[1], data=b"12"), "unsupported dtype 99"),
        (Tensor(name="x", dtype=8, shape=[2**40], data=b""), "0 bytes of data: too few"),
        (Tensor(name="x", dtype=8, shape=[1], data=struct.pack("<I", 9)), "ends inside string 0"),
        (Tensor(name="x", dtype=8, shape=[2], data=b"\4\0\0\0ABCD"), "ends inside string 1 of 2"),
        (Tensor(name="x", dtype=8, shape=[1], data=b"\1\0\0\0AB"), "1 bytes after its 1 strings"),
    ],
)
def test_an_invalid_tensor_is_named_in_the_error(tensor, message):
    with pytest.raises(TensorError, match=message) as caught:
        to_array(tensor)
    assert "tensor 'x'" in str(caught.value)


def test_an_array_that_cannot_be_sent_is_an_error():
    with pytest.raises(TensorError, match="complex64"):
        to_tensor("x", np.zeros(1, np.complex64))
    with pytest.raises(TensorError, match="lone surrogate at character 1 .expected text, or bytes"):
        to_tensor("x", np.array(["a\ud800"], dtype=object))
    with pytest.raises(TensorError, match="'x' has an element of type int"):
        to_tensor("x", np.array([1, "a"], dtype=object))


def test_bfloat16_is_sent_as_its_bits():
    bits = np.array([0x3FC0, 0xC000], np.uint16)  # 1.5 and -2
    tensor = to_tensor("x", bits, DataType.DATA_TYPE_BFLOAT16)
    assert (tensor.dtype, tensor.data) == (DataType.DATA_TYPE_BFLOAT16, b"\xc0\x3f\x00\xc0")
    np.testing.assert_array_equal(to_array(tensor), bits)
    assert to_tensor("x", bits).dtype == DataType.DATA_TYPE_UINT16


def test_any_byte_but_zero_is_true():
    tensor = Tensor(name="x", dtype=DataType.DATA_TYPE_BOOL, shape=[3], data=b"\0\1\7")
    assert to_array(tensor).view(np.uint8).tolist() == [0, 1, 1]
