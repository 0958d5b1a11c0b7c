import json

import numpy as np
import pytest

from neurona_protos.open_inference_pb2 import ModelInferResponse
from neurona_server.errors import InvalidArgumentError
from neurona_server.http.open_inference.infer_responses import ResponseForm

VALUES = np.array([[0.1, 2]], np.float32)


def response(values=VALUES, datatype="FP32", outputs=("a", "b"), **fields):
    message = ModelInferResponse(model_name="net", model_version="3", **fields)
    for name in outputs:
        message.outputs.add(name=name, datatype=datatype, shape=values.shape)
        message.raw_output_contents.append(values.tobytes())
    return message.SerializeToString()


def test_outputs_as_json():
    body = ResponseForm().write(response(id="one"))
    assert body.json_bytes is None
    assert json.loads(body.content) == {
        "model_name": "net",
        "model_version": "3",
        "id": "one",
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [1, 2], "data": [0.1, 2.0]} for name in "ab"
        ],
    }


def test_outputs_as_binary_data():
    body = ResponseForm(is_binary=True).write(response())
    parsed = json.loads(body.content[: body.json_bytes])
    assert [one["parameters"] for one in parsed["outputs"]] == [{"binary_data_size": 8}] * 2
    assert body.content[body.json_bytes :] == VALUES.tobytes() * 2


def test_each_output_as_it_is_wanted():
    body = ResponseForm(is_binary=True, by_name={"a": False}).write(response())
    first, second = json.loads(body.content[: body.json_bytes])["outputs"]
    assert first["data"] == [0.1, 2.0]
    assert second["parameters"] == {"binary_data_size": 8}
    assert body.content[body.json_bytes :] == VALUES.tobytes()


@pytest.mark.parametrize("outputs", [("a",), ("a", "b")])
def test_responses_like_an_earlier_one_have_the_same_body(outputs):
    form = ResponseForm(is_binary=True)
    assert form.write_like_earlier(response(outputs=outputs)) is None
    form.write(response(outputs=outputs))
    other = response(VALUES * 3, outputs=outputs)
    assert form.write_like_earlier(other) == ResponseForm(is_binary=True).write(other)
    for different in (
        response(VALUES.T.copy(), outputs=outputs),
        response(np.ones((1, 3), np.float32), outputs=outputs),
        response(VALUES, "INT32", outputs=outputs),
        response(outputs=outputs, id="x"),
    ):
        assert form.write_like_earlier(different) is None


def test_only_binary_data_are_kept():
    for form, message in (
        (ResponseForm(), response()),
        (ResponseForm(is_binary=True), response(id="one")),
        (ResponseForm(by_name={"a": True}), response()),
    ):
        form.write(message)
        assert form.write_like_earlier(message) is None


def test_outputs_in_shared_memory_have_no_data():
    message = ModelInferResponse.FromString(response(outputs=("a",)))
    message.raw_output_contents[0] = b""
    message.outputs[0].parameters["shared_memory_region"].string_param = "here"
    message.outputs[0].parameters["shared_memory_byte_size"].int64_param = 8
    for is_binary in (True, False):
        body = ResponseForm(is_binary=is_binary).write(message.SerializeToString())
        (output,) = json.loads(body.content)["outputs"]
        assert body.json_bytes is None
        assert "data" not in output
        parameters = {"shared_memory_region": "here", "shared_memory_byte_size": 8}
        assert output["parameters"] == parameters


def test_halves_are_no_json():
    halves = response(VALUES.astype(np.float16), "FP16")
    with pytest.raises(InvalidArgumentError, match="FP16 data via JSON is not supported"):
        ResponseForm().write(halves)
    assert ResponseForm(is_binary=True).write(halves).json_bytes


def test_an_empty_output():
    empty = response(np.empty((0, 2), np.float32), outputs=("a",))
    (output,) = json.loads(ResponseForm().write(empty).content)["outputs"]
    assert output["data"] == []
    form = ResponseForm(is_binary=True)
    body = form.write(empty)
    assert json.loads(body.content)["outputs"][0]["parameters"] == {"binary_data_size": 0}
    assert body.json_bytes == len(body.content)
