"""split_request_id takes the id out of a serialized message and changes nothing else.

Alone, because it needs no server.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_server.rpc.open_inference.inference import split_request_id

NAMES = st.text(max_size=150)


@settings(max_examples=100, deadline=None)
@given(NAMES, NAMES, NAMES, st.binary(max_size=8))
def test_the_rest_is_the_message_without_its_id(name, version, message_id, data):
    message = ModelInferRequest(
        model_name=name, model_version=version, id=message_id, raw_input_contents=[data]
    )
    request_id, rest = split_request_id(message.SerializeToString())
    if request_id:
        assert request_id == message_id
        message.id = ""
    else:
        assert not message_id or any(len(x.encode()) > 127 for x in (name, version, message_id))
    assert ModelInferRequest.FromString(rest) == message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30))
def test_invalid_messages_lose_at_most_an_id(noise):
    request_id, rest = split_request_id(noise)
    if request_id:
        assert len(rest) == len(noise) - len(request_id.encode()) - 2
    else:
        assert rest in (noise, noise.replace(b"\x1a\x00", b"", 1))
