import json

import numpy as np
import pytest

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_server.errors import InvalidArgumentError, TooLargeError
from neurona_server.http.open_inference.infer_requests import InferRequestReader
from neurona_server.rpc.limits import MAX_FIELDS

ROWS = np.array([[1, 2], [3, 4]], np.float32)
BINARY = {
    "name": "x",
    "datatype": "FP32",
    "shape": [2, 2],
    "parameters": {"binary_data_size": 16},
}
TYPED = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": ROWS.tolist()}


@pytest.fixture
def reader():
    return InferRequestReader(max_bytes=1 << 20, max_tensors=4)


def read(reader, body, data=b"", model="net", version=""):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    infer = reader.read(model, version, text + data, len(text))
    return ModelInferRequest.FromString(infer.message), infer.form


def error_of(reader, body, data=b""):
    with pytest.raises((InvalidArgumentError, TooLargeError)) as raised:
        read(reader, body, data)
    return str(raised.value)


def test_json_and_binary_data_make_the_same_message(reader):
    typed, _ = read(reader, {"inputs": [TYPED]})
    binary, _ = read(reader, {"inputs": [BINARY]}, ROWS.tobytes())
    expected = ModelInferRequest(model_name="net", raw_input_contents=[ROWS.tobytes()])
    expected.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    assert typed == binary == expected


def test_several_inputs_of_both_kinds(reader):
    other = {**BINARY, "name": "z"}
    message, _ = read(
        reader, {"inputs": [BINARY, TYPED, other]}, ROWS.tobytes() + (ROWS * 2).tobytes()
    )
    contents = [np.frombuffer(one, np.float32).tolist() for one in message.raw_input_contents]
    assert contents == [[1, 2, 3, 4], [1, 2, 3, 4], [2, 4, 6, 8]]


def test_parameters_have_their_types(reader):
    parameters = {"priority": 1, "on": True, "text": "a", "real": 0.5, "large": 2**64 - 1}
    message, _ = read(
        reader,
        {
            "id": "one",
            "parameters": {**parameters, "binary_data_output": True},
            "inputs": [{**TYPED, "parameters": parameters}],
        },
        version="3",
    )
    assert (message.id, message.model_version) == ("one", "3")
    for target in (message.parameters, message.inputs[0].parameters):
        assert {name: target[name].WhichOneof("parameter_choice") for name in target} == {
            "priority": "int64_param",
            "on": "bool_param",
            "text": "string_param",
            "real": "double_param",
            "large": "uint64_param",
        }


def test_outputs_say_how_they_are_wanted(reader):
    _, form = read(
        reader,
        {
            "parameters": {"binary_data_output": True},
            "inputs": [TYPED],
            "outputs": [
                {"name": "a", "parameters": {"binary_data": False, "classification": 2}},
                {"name": "b"},
            ],
        },
    )
    assert form.is_binary
    assert form.by_name == {"a": False}


def test_inputs_in_shared_memory_have_no_contents(reader):
    parameters = {"shared_memory_region": "a", "shared_memory_byte_size": 16}
    shared = {**TYPED, "parameters": parameters}
    del shared["data"]
    message, _ = read(reader, {"inputs": [shared, BINARY]}, ROWS.tobytes())
    assert message.inputs[0].parameters["shared_memory_byte_size"].int64_param == 16
    assert len(message.raw_input_contents) == 1


@pytest.mark.parametrize("version", ["", "2"])
def test_requests_like_an_earlier_one_have_the_same_message(reader, version):
    text = json.dumps({"inputs": [BINARY, {**BINARY, "name": "z"}]}).encode()
    bodies = [text + np.arange(8, dtype=np.float32).tobytes(), text + bytes(32)]
    length = len(text)
    assert reader.read_like_earlier("net", version, bodies[0], length) is None
    first = reader.read("net", version, bodies[0], length)
    for body in bodies:
        again = reader.read_like_earlier("net", version, body, length)
        assert again.message == reader.read("net", version, body, length).message
    assert reader.read_like_earlier("net", version, bodies[0], length).message == first.message
    assert reader.read_like_earlier("other", version, bodies[0], length) is None
    assert reader.read_like_earlier("net", version, bodies[0] + b"0", length) is None


def test_only_requests_that_differ_in_their_data_are_kept(reader):
    for body, data in (
        ({"inputs": [TYPED]}, b""),
        ({"inputs": [BINARY], "id": "one"}, ROWS.tobytes()),
    ):
        text = json.dumps(body).encode()
        reader.read("net", "", text + data, len(text))
        assert reader.read_like_earlier("net", "", text + data, len(text)) is None


def test_what_other_clients_write_is_accepted(reader):
    message, _ = read(
        reader,
        {"id": None, "model_name": "other", "parameters": None, "outputs": [], "inputs": [TYPED]},
    )
    assert message.model_name == "net"
    message, _ = read(
        reader,
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[NaN,-Infinity]}]}',
    )
    assert np.frombuffer(message.raw_input_contents[0], "<f4")[1] == -np.inf


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "invalid JSON"),
        (b"{", "invalid JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"inputs":[NaN}', "invalid JSON"),
        (b'{"inputs": "\xff"}', "invalid"),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":' + b"[" * 5000, "invalid JSON"),
        ({}, "missing required field `inputs`"),
        ({"inputs": [TYPED], "input": []}, "unknown field `input`"),
        ({"inputs": [{**TYPED, "type": 1}]}, "unknown field `type` - at `$.inputs[0]`"),
        ({"inputs": [{**TYPED, "name": 1}]}, "Expected `str`, got `int` - at `$.inputs[0].name`"),
        ({"inputs": [{**TYPED, "shape": 4}]}, "has shape 4 (expected a list of integers"),
        ({"inputs": [{**TYPED, "shape": [1.5]}]}, "has shape [1.5]"),
        ({"inputs": [{**TYPED, "shape": [2**63]}]}, "has shape [9223372036854775808]"),
        ({"inputs": [{**TYPED, "shape": [1] * 1000}]}, "expected at most 32 axes"),
        ({"inputs": [{**TYPED, "shape": [-2, -2]}]}, "expected no negative size"),
        ({"inputs": [{**TYPED, "shape": [2**40]}]}, "expected at most 1048576"),
        ({"inputs": [{**TYPED, "datatype": "FP33"}]}, "datatype 'FP33' (expected one of BOOL"),
        ({"inputs": [{**TYPED, **BINARY}]}, "input 'x' has data in several places"),
        ({"inputs": [{**BINARY, "parameters": {}}]}, "input 'x' has no data"),
        ({"inputs": [BINARY]}, "has 0 bytes of binary data behind the JSON (expected 16"),
        (
            {"inputs": [{**BINARY, "parameters": {"binary_data_size": "16"}}]},
            "'binary_data_size' of input 'x' is '16' (expected an integer)",
        ),
        ({"inputs": [TYPED], "parameters": {"binary_data_output": 1}}, "is 1 (expected true or"),
        (
            {"inputs": [TYPED], "outputs": [{"name": "a", "parameters": {"binary_data": "no"}}]},
            "'binary_data' of output 'a' is 'no'",
        ),
        (
            {"inputs": [TYPED], "parameters": {"a": 2**64}},
            "'a' of the request is 18446744073709551",
        ),
        ({"inputs": [TYPED], "parameters": {"a": None}}, "`$.parameters"),
        ({"inputs": [TYPED], "id": "a" * 100_000}, "the request's id has 100000 characters"),
    ],
)
def test_errors_say_what_is_wrong(reader, body, reason):
    assert reason in error_of(reader, body)


def test_bytes_that_belong_to_no_input_are_an_error(reader):
    assert "has 4 bytes behind" in error_of(reader, {"inputs": [BINARY]}, ROWS.tobytes() + b"more")


def test_many_fields_are_an_error_before_they_are_parsed(reader):
    parameters = {str(number): number for number in range(2 * MAX_FIELDS)}
    assert "fields (expected at most" in error_of(
        reader, {"inputs": [TYPED], "parameters": parameters}
    )
    texts = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [":" * 10_000]}
    message, _ = read(reader, {"inputs": [texts]})
    assert len(message.raw_input_contents[0]) == 10_004


def test_tensors_have_the_limit_of_messages(reader):
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1 << 18]}]}
    body["inputs"][0]["data"] = [0] * (1 << 18)
    assert "expected at most 1048576, the option max_message_bytes" in error_of(reader, body)
