"""Any ModelInferRequest gets a response or an error of the caller, never an internal error."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.onnx_models import ECHOED
from support.triton_requests import DTYPES, arrays, raw

from neurona_protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.wire_format import header
from neurona_server.errors import NeuronaError
from neurona_server.rpc.open_inference.outputs import rank_classes
from neurona_server.rpc.security.access import UNRESTRICTED

PATH = "/inference.GRPCInferenceService/ModelInfer"
KINDS = sorted(ECHOED)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 9)


class Call:
    """A call without a transport."""

    arrived, deadline = 0.0, math.inf
    grant = UNRESTRICTED

    trace = None
    request_id = trace_id = ""

    def __init__(self, request):
        self.request = request
        self.outcomes = []
        self.ended = threading.Event()

    def reply(self, response):
        self._record(response)

    def fail(self, error):
        self._record(error)

    def _record(self, outcome):
        self.outcomes.append(outcome)
        self.ended.set()

    def on_cancel(self, callback):
        pass

    def defer(self, callback):
        while callback():
            pass

    @property
    def outcome(self):
        assert self.ended.wait(10)
        (outcome,) = self.outcomes
        return outcome


@pytest.fixture(scope="module")
def ask(echo_server):
    start = echo_server.open_inference.methods()[PATH].start

    def ask(message):
        call = Call(message if isinstance(message, bytes) else message.SerializeToString())
        start(call)
        return call.outcome

    return ask


@st.composite
def parameters(draw, names):
    """A function that sets some parameters of a message or a tensor, of any kind and value."""
    output_names = draw(st.lists(st.sampled_from(names) | st.text(max_size=5), max_size=2))

    def apply(target):
        for name in output_names:
            kind = draw(st.sampled_from(["bool", "int64", "string", "double", "uint64", "none"]))
            value = {
                "bool": st.booleans(),
                "int64": NUMBERS,
                "string": st.text(max_size=5),
                "double": st.floats(),
                "uint64": st.integers(0, 2**64 - 1),
                "none": st.none(),
            }[kind]
            parameter = target.parameters[name]
            if kind != "none":
                setattr(parameter, kind + "_param", draw(value))

    return apply


OF_REQUESTS = ["priority", "timeout", "sequence_id", "sequence_start", "triton_x"]
OF_TENSORS = [
    "classification",
    "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size",
]


@st.composite
def messages(draw):
    message = ModelInferRequest(
        model_name=draw(st.sampled_from([f"echo_{kind}" for kind in KINDS]) | st.text(max_size=5)),
        model_version=draw(st.sampled_from(["", "1", "2", "latest"]) | st.text(max_size=5)),
        id=draw(st.text(max_size=5)),
    )
    draw(parameters(OF_REQUESTS))(message)
    for _ in range(draw(st.integers(0, 2))):
        tensor = message.inputs.add(
            name=draw(st.sampled_from(["x", "y"])),
            datatype=draw(st.sampled_from(KINDS) | st.text(max_size=4)),
            shape=draw(st.lists(NUMBERS, max_size=3)),
        )
        draw(parameters(OF_TENSORS))(tensor)
        if draw(st.booleans()):
            tensor.contents.int_contents.extend(draw(st.lists(st.integers(-300, 300), max_size=4)))
        if draw(st.booleans()):
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=4), max_size=4)))
    for _ in range(draw(st.integers(0, 2))):
        output = message.outputs.add(name=draw(st.sampled_from(["echo", "other"])))
        draw(parameters(OF_TENSORS))(output)
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=40), max_size=2)))
    return message


@settings(max_examples=300, deadline=None)
@given(message=messages())
def test_any_request_gets_a_response_or_an_error(ask, message):
    outcome = ask(message)
    if isinstance(outcome, bytes):
        ModelInferResponse.FromString(outcome)
    else:
        assert isinstance(outcome, NeuronaError), repr(outcome)
        assert outcome.outcome != "failed", outcome
        str(outcome).encode()


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_get_an_error(ask, data):
    outcome = ask(data)
    assert isinstance(outcome, NeuronaError)
    assert outcome.outcome != "failed"


@st.composite
def valid_arrays(draw):
    kind = draw(st.sampled_from(KINDS))
    shape = draw(st.tuples(st.integers(1, 100), st.integers(1, 5)))
    count = math.prod(shape)
    if kind == "BYTES":
        texts = draw(st.lists(st.text(max_size=5), min_size=1, max_size=9))
        flat = np.array([texts[i % len(texts)].encode() for i in range(count)], object)
    elif kind == "BOOL":
        flat = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), "u1") % 2 == 1
    else:
        dtype = np.dtype(DTYPES[kind])
        size = count * dtype.itemsize
        flat = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype)
    return kind, flat.reshape(shape)


@settings(max_examples=100, deadline=None)
@given(typed_array=valid_arrays())
def test_any_valid_array_is_returned_bit_by_bit(ask, typed_array):
    kind, array = typed_array
    message = ModelInferRequest(model_name=f"echo_{kind}")
    message.inputs.add(name="x", datatype=kind, shape=array.shape)
    message.raw_input_contents.append(raw(array))
    response = ModelInferResponse.FromString(ask(message))
    assert raw(arrays(response)["echo"]) == raw(array)


@settings(max_examples=100, deadline=None)
@given(
    array=st.lists(
        st.lists(st.floats(width=32), min_size=4, max_size=4), min_size=1, max_size=5
    ).map(lambda rows: np.array(rows, np.float32)),
    count=st.integers(1, 6),
)
def test_classes_are_the_greatest_values_exactly(array, count):
    ranked = rank_classes("y", array, DataType.DATA_TYPE_FLOAT, count, (), has_batch_axis=True)
    assert ranked.shape == (len(array), min(count, 4))
    for row, texts in zip(array, ranked, strict=True):
        values = [np.float32(text.rpartition(":")[0]) for text in texts]
        indices = [int(text.rpartition(":")[2]) for text in texts]
        np.testing.assert_array_equal(values, row[indices])
        assert len(set(indices)) == len(indices)
        rest = np.delete(row, indices)
        real = [value for value in values if not math.isnan(value)]
        assert real == sorted(real, reverse=True)
        if len(rest) and real and not np.isnan(rest).all():
            assert min(real) >= np.nanmax(rest) or len(real) < len(values)


@given(field=st.integers(1, 15), length=st.integers(0, 2**31 - 1))
def test_a_header_is_a_tag_and_a_varint(field, length):
    tag, *octets = header(field, length)
    assert tag == field << 3 | 2
    assert all(octet & 0x80 for octet in octets[:-1])
    assert sum((octet & 0x7F) << 7 * i for i, octet in enumerate(octets)) == length
    assert octets[-1] < 0x80
