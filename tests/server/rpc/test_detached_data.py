"""The data of a message are found as the parser would, whatever the message looks like."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.prediction_pb2 import PredictRequest, Tensor
from neurona_protos.wire_format import length_delimited, varint
from neurona_server.rpc.detached_data import detach_data, read_bytes_index
from neurona_server.rpc.v1.prediction import PREDICT_DATA

GROUP = b"\x7b\x7c"  # of field 15
UNKNOWN = [b"\x50\x01", b"\x5d1234", b"\x5912345678", b"\x5a\x03abc", b"\xf2\x7d\x00"]

PIECES = st.one_of(
    st.builds(lambda name: length_delimited(1, name.encode()), st.text(max_size=3)),
    st.builds(lambda dtype: b"\x10" + varint(dtype), st.integers(0, 300)),
    st.builds(lambda size: b"\x18" + varint(size), st.integers(0, 300)),
    st.builds(lambda data: length_delimited(4, data), st.binary(max_size=9)),
    # A length in more bytes than it needs.
    st.builds(lambda data: b"\x22" + bytes([len(data) | 0x80, 0]) + data, st.binary(max_size=9)),
    st.sampled_from(UNKNOWN),
)
TENSORS = st.lists(PIECES, max_size=6).map(b"".join)
MESSAGES = st.lists(
    st.one_of(
        TENSORS.map(lambda tensor: length_delimited(4, tensor)),
        st.just(length_delimited(1, b"model")),
        st.sampled_from(UNKNOWN),
    ),
    max_size=6,
).map(b"".join)


def detach(message, max_fields=1000, max_rest_bytes=10_000):
    return detach_data(
        message, PREDICT_DATA.paths, max_fields=max_fields, max_rest_bytes=max_rest_bytes
    )


@settings(max_examples=150, deadline=None)
@given(MESSAGES)
def test_the_rest_and_the_data_are_what_the_parser_reads(message):
    expected = PredictRequest.FromString(message)
    rest, spans = detach(message)
    request = PredictRequest.FromString(rest)
    for tensor in request.inputs:
        index = read_bytes_index(tensor.data)
        tensor.data = b"" if index is None else message[slice(*spans[index])]
    assert request.SerializeToString() == expected.SerializeToString()


@settings(max_examples=100, deadline=None)
@given(MESSAGES, st.integers(0, 80), st.binary(max_size=4))
def test_damaged_messages_are_read_as_the_parser_would_or_rejected(message, place, damage):
    place %= len(message) + 1
    message = message[:place] + damage + message[place + len(damage) :]
    try:
        rest, spans = detach(message)
        request = PredictRequest.FromString(rest)
    except Exception:
        return
    for tensor in request.inputs:
        index = read_bytes_index(tensor.data)
        tensor.data = b"" if index is None else message[slice(*spans[index])]
    expected = PredictRequest.FromString(message)
    assert request.SerializeToString() == expected.SerializeToString()


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (GROUP + b"\x50\x01", "wire type 3"),
        (length_delimited(4, GROUP), "wire type 3"),
        (b"\x57", "wire type 7"),
        (b"\x50\x01" * 11, "more than 10 fields"),
        (length_delimited(4, b"") * 11, "more than 10 fields"),
        (length_delimited(4, b"\x50\x01" * 10), "more than 10 fields"),
        (length_delimited(1, bytes(101)), "more than 100 bytes besides the data"),
        (length_delimited(4, length_delimited(1, bytes(101))), "more than 100 bytes besides"),
        (b"\x22\x7f", "ends inside a field"),
        (length_delimited(4, b"\x22\x05abcd") + b"x", "ends inside a field"),
        (b"\x22\xff\xff\xff\xff\xff\x01", "a length of more than 32 bits"),
        (b"\x50" + b"\xff" * 11, "inside a number"),
        (b"\x50", "inside a number"),
    ],
)
def test_what_is_no_message_or_beyond_a_limit_is_rejected(message, error):
    with pytest.raises(ValueError, match=error):
        detach(message, 10, 100)


def test_data_do_not_count_against_the_limits():
    tensor = Tensor(name="x", data=bytes(1 << 20)).SerializeToString()
    rest, spans = detach(length_delimited(4, tensor), 10, 100)
    assert len(rest) < 20
    assert [stop - start for start, stop in spans] == [1 << 20]
