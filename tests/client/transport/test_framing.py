"""Messages of PredictStream: what the client writes and reads is what protobuf does."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from neurona_client import ServerError
from neurona_client.transport.framing import (
    END_OF_IDS,
    FIRST_ID,
    IDS,
    frame_for,
    parse_responses,
)
from neurona_protos.frames_pb2 import PredictStreamRequest as Frames
from neurona_protos.prediction_pb2 import (
    Error,
    PredictResponse,
    PredictStreamResponse,
    StreamedResponse,
)
from neurona_protos.wire_format import fields, read_varint, varint


@given(st.lists(st.tuples(st.integers(0, END_OF_IDS - 1), st.binary(max_size=300)), max_size=20))
def test_responses_are_parsed_as_protobuf_parses_them(responses):
    message = PredictStreamResponse(
        responses=[
            StreamedResponse(id=request_id, response=PredictResponse(model=repr(content)))
            for request_id, content in responses
        ]
    )
    outcomes = parse_responses(message.SerializeToString())
    assert [request_id for request_id, _ in outcomes] == [request_id for request_id, _ in responses]
    for (_, outcome), (_, content) in zip(outcomes, responses, strict=True):
        assert PredictResponse.FromString(outcome).model == repr(content)


def test_an_error_keeps_its_code_and_retry_hint():
    error = Error(code=8, message="full", retry_after_ms=20)
    message = PredictStreamResponse(responses=[StreamedResponse(id=200, error=error)])
    ((request_id, outcome),) = parse_responses(message.SerializeToString())
    assert request_id == 200
    assert (type(outcome).__name__, str(outcome)) == ("OverloadedError", "full")
    assert outcome.retry_after == 0.02


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_rejected(message):
    with contextlib.suppress(ServerError):
        for request_id, _ in parse_responses(message):
            assert request_id >= 0


@given(st.integers(FIRST_ID, END_OF_IDS - 1), st.binary(max_size=40000))
def test_protobuf_parses_a_framed_request(request_id, request):
    frame = frame_for(len(request))
    message = frame.before_id + IDS[request_id] + frame.after_id + request
    (parsed,) = Frames.FromString(message).requests
    assert (parsed.id, parsed.request) == (request_id, request)


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_read_as_it_was_written(number):
    assert read_varint(varint(number), 0) == (number, len(varint(number)))
    assert list(fields(b"\x08" + varint(number), 0, 1 + len(varint(number)))) == [
        (1, 1, 1 + len(varint(number)))
    ]
