"""An id is cut out of a message exactly where the message has it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_server.rpc.open_inference.inference import without_id

NAMES = st.text(max_size=150)


@settings(max_examples=300, deadline=None)
@given(NAMES, NAMES, NAMES, st.binary(max_size=8))
def test_the_rest_is_the_same_message_without_its_id(name, version, message_id, data):
    message = ModelInferRequest(
        model_name=name, model_version=version, id=message_id, raw_input_contents=[data]
    )
    found, rest = without_id(message.SerializeToString())
    if found:
        assert found == message_id
        message.id = ""
    else:
        assert not message_id or any(len(x.encode()) > 127 for x in (name, version, message_id))
    assert ModelInferRequest.FromString(rest) == message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=30))
def test_nothing_is_cut_out_of_what_is_no_request(noise):
    found, rest = without_id(noise)
    if found:
        assert len(rest) == len(noise) - len(found.encode()) - 2
    else:
        assert rest in (noise, noise.replace(b"\x1a\x00", b"", 1))
