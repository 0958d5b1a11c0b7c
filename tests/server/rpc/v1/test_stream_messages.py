"""A message of a stream is split into its requests as the parser would."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.frames_pb2 import PredictStreamRequest, StreamedRequest
from neurona_protos.wire_format import length_delimited
from neurona_server.errors import InvalidArgumentError
from neurona_server.rpc.v1 import stream_messages
from neurona_server.rpc.v1.stream_messages import MAX_REQUESTS, split_stream_message

REQUESTS = st.lists(
    st.builds(
        StreamedRequest,
        id=st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)),
        request=st.one_of(
            st.binary(max_size=5), st.sampled_from([bytes(n) for n in (120, 130, 20_000)])
        ),
    ),
    max_size=6,
)
UNKNOWN = st.sampled_from([b"", b"\x50\x01", b"\x5a\x03abc", b"\x5d1234", b"\x0a\x80\x00"])


@pytest.fixture(params=[0, 1 << 30], ids=["by hand", "parsed"])
def threshold(request, monkeypatch):
    """The bytes of a request from which on it is read by hand; 0: all, 1 << 30: none."""
    monkeypatch.setattr(stream_messages, "COUNTED_BYTES", 0)
    monkeypatch.setattr(stream_messages, "LARGE_REQUEST", request.param)


@pytest.mark.usefixtures("threshold")
@settings(max_examples=100, deadline=None)
@given(REQUESTS, UNKNOWN, UNKNOWN)
def test_requests_and_ids_are_what_the_parser_reads(requests, before, after):
    message = before + PredictStreamRequest(requests=requests).SerializeToString() + after
    parsed = PredictStreamRequest.FromString(message).requests
    assert list(split_stream_message(message)) == [(one.id, one.request) for one in parsed]


@pytest.mark.usefixtures("threshold")
@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.integers(0, 100), st.binary(min_size=1, max_size=3))
def test_damaged_messages_are_read_as_the_parser_would_or_rejected(requests, place, damage):
    message = PredictStreamRequest(requests=requests).SerializeToString()
    place %= len(message) + 1
    message = message[:place] + damage + message[place + len(damage) :]
    try:
        split = list(split_stream_message(message))
        parsed = PredictStreamRequest.FromString(message).requests
    except Exception:
        return
    assert split == [(one.id, one.request) for one in parsed]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (length_delimited(1, b"") * (MAX_REQUESTS + 1), "has 4097 requests"),
        (length_delimited(1, b"") * (1 << 20), "more than 4096 requests"),
        (b"\x7b\x7c" + length_delimited(1, b"") * (1 << 20), "wire type 3"),
        (b"\x50\x01" * (1 << 20), "more than 4096 requests"),
        (length_delimited(1, b"\x08\x01" * (1 << 20)), "a request has more than 16 fields"),
        (length_delimited(1, bytes(1 << 20))[:-1], "is not a neurona.v1.PredictStreamRequest"),
        (b"\x0a\x7f", "is not a neurona.v1.PredictStreamRequest"),
    ],
)
def test_what_is_no_message_or_beyond_a_limit_is_rejected(message, error):
    with pytest.raises(InvalidArgumentError, match=error):
        split_stream_message(message)
