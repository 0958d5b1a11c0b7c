"""A message like one that was read before says what that one said, with its own data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.prediction_pb2 import PredictRequest, Tensor
from neurona_protos.tensors import to_tensor
from neurona_protos.wire_format import length_delimited
from neurona_server.rpc import fast_path
from neurona_server.rpc.fast_path import TemplateCache
from neurona_server.rpc.v1.prediction import PREDICT_DATA

PATH = (PredictRequest.INPUTS_FIELD_NUMBER, Tensor.DATA_FIELD_NUMBER)
DATA = st.binary(min_size=1, max_size=12)
TENSORS = st.builds(
    Tensor,
    name=st.text(max_size=4),
    dtype=st.integers(0, 16),
    shape=st.lists(st.integers(-1, 300), max_size=3),
    data=DATA,
)
REQUESTS = st.builds(
    PredictRequest,
    model=st.sampled_from(["m", "model", "\0\0\0\0"]),
    version=st.integers(0, 3),
    inputs=st.lists(TENSORS, min_size=1, max_size=3),
    top_k=st.integers(0, 2),
    raw_outputs=st.booleans(),
)


def learn(one, message):
    return one.remember(message, len(PredictRequest.FromString(message).inputs))


def make():
    return TemplateCache(PREDICT_DATA)


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.data())
def test_messages_that_differ_in_data_only_match_a_template(request, data):
    one = make()
    message = request.SerializeToString()
    shape = learn(one, message)
    assert shape is not None
    assert one.lookup(message) is shape
    other = PredictRequest.FromString(message)
    for tensor in other.inputs:
        size = len(tensor.data)
        tensor.data = data.draw(st.binary(min_size=size, max_size=size))
    changed = other.SerializeToString()
    assert one.lookup(changed) is shape
    assert [changed[a:b] for a, b in shape.spans] == [tensor.data for tensor in other.inputs]


@settings(max_examples=100, deadline=None)
@given(REQUESTS, REQUESTS)
def test_messages_that_match_a_template_differ_in_data_only(first, second):
    one = make()
    shape = learn(one, first.SerializeToString())
    message = second.SerializeToString()
    if one.lookup(message) is None:
        return
    data = [message[a:b] for a, b in shape.spans]
    assert [tensor.data for tensor in second.inputs] == data
    for request in (first, second):
        for tensor in request.inputs:
            tensor.data = b""
    assert first == second


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.integers(0, 200), st.integers(1, 255))
def test_a_byte_that_differs_outside_the_data_is_noticed(request, place, change):
    one = make()
    message = bytearray(request.SerializeToString())
    shape = learn(one, bytes(message))
    place %= len(message)
    message[place] ^= change
    inside = any(a <= place < b for a, b in shape.spans)
    assert (one.lookup(bytes(message)) is shape) == inside


def tensor_field(*pieces):
    return length_delimited(PATH[0], b"".join(pieces))


X = to_tensor("x", np.ones(3, np.float32)).SerializeToString()
MODEL = PredictRequest(model="m").SerializeToString()


@pytest.mark.parametrize(
    "message",
    [
        # The last of two datas counts, and an empty one is none.
        MODEL + tensor_field(length_delimited(4, b"first"), X),
        MODEL + tensor_field(X, length_delimited(4, b"last one of 12")),
        MODEL + tensor_field(X) + tensor_field(X, length_delimited(4, b"")),
        # Data in a field that is none of the message's.
        MODEL + length_delimited(99, tensor_field(X)),
        MODEL,
    ],
)
def test_an_odd_message_is_not_learned(message):
    assert learn(make(), message) is None


@pytest.mark.parametrize(
    "message",
    [
        tensor_field(X) + MODEL,  # in another order
        MODEL + tensor_field(X) + length_delimited(99, b"of a newer version"),
        MODEL + tensor_field(X, length_delimited(77, b"unknown field")),
        MODEL + MODEL + tensor_field(X),
    ],
)
def test_an_unusual_message_is_learned_all_the_same(message):
    one = make()
    shape = learn(one, message)
    ((start, stop),) = shape.spans
    other = message[:start] + bytes(stop - start) + message[stop:]
    assert one.lookup(other) is shape
    assert PredictRequest.FromString(other).inputs[0].data == bytes(stop - start)


def test_messages_that_all_differ_are_not_learned_for_ever():
    one = make()
    shapes = [
        learn(
            one, PredictRequest(model=f"m{number}", inputs=[Tensor(data=b"x")]).SerializeToString()
        )
        for number in range(2 * fast_path.MAX_CREDIT)
    ]
    assert all(shapes[: fast_path.MAX_CREDIT])
    assert not any(shapes[fast_path.MAX_CREDIT :])


def test_the_number_of_shapes_is_bounded(monkeypatch):
    monkeypatch.setattr(fast_path, "MAX_TEMPLATES", 10)
    one = make()
    for number in range(100):
        request = PredictRequest(model=f"m{number:03}", inputs=[Tensor(data=b"x")])
        assert learn(one, request.SerializeToString()) is not None
        assert sum(len(shapes) for shapes in one._templates.values()) <= 10


def test_a_message_with_much_besides_its_data_is_not_learned():
    padding = length_delimited(99, bytes(fast_path.MAX_TEMPLATE_BYTES))
    assert learn(make(), MODEL + tensor_field(X) + padding) is None


def test_of_equally_long_messages_the_last_are_known(monkeypatch):
    monkeypatch.setattr(fast_path, "MAX_TEMPLATES_PER_LENGTH", 2)
    one = make()
    messages = [PredictRequest(model=name).SerializeToString() + tensor_field(X) for name in "abc"]
    shapes = [learn(one, message) for message in messages]
    assert [one.lookup(message) for message in messages] == [None, *shapes[1:]]
