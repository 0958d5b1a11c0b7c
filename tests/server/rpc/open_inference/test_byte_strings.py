"""BYTES that are not UTF-8 come back as they were sent, however they are sent."""

import os
import uuid

import numpy as np
import pytest
from support.triton_requests import arrays, raw, request

from neurona_client import Client
from neurona_protos import open_inference_pb2 as pb
from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.rpc.open_inference.shared_memory import FOLDER

ANY = np.array([[b"\xff\xfe\0", "über".encode()], [b"", b"\x80" * 300]], object)


@pytest.fixture
def shared(echo_server):
    """The key of a memory object, registered as 'bytes'."""
    key = f"neurona-test-{uuid.uuid4().hex}"
    path = os.path.join(FOLDER, key)
    with open(path, "wb") as file:
        file.truncate(4096)
    echo_server.triton.SystemSharedMemoryRegister(
        pb.SystemSharedMemoryRegisterRequest(name="bytes", key=key, byte_size=4096), timeout=10
    )
    yield path
    echo_server.triton.SystemSharedMemoryUnregister(
        pb.SystemSharedMemoryUnregisterRequest(name="bytes"), timeout=10
    )
    os.unlink(path)


def test_raw_contents_twice(echo_server):
    for _ in range(2):
        response = echo_server.triton.ModelInfer(
            request("echo_BYTES", x=("BYTES", ANY)), timeout=10
        )
        assert arrays(response)["echo"].tolist() == ANY.tolist()


def test_typed_contents(echo_server):
    message = pb.ModelInferRequest(model_name="echo_BYTES")
    tensor = message.inputs.add(name="x", datatype="BYTES", shape=ANY.shape)
    tensor.contents.bytes_contents.extend(ANY.ravel())
    response = echo_server.triton.ModelInfer(message, timeout=10)
    assert arrays(response)["echo"].tolist() == ANY.tolist()


def test_a_stream(echo_server):
    messages = [request("echo_BYTES", x=("BYTES", rows)) for rows in (ANY, ANY[:1], [[b"plain"]])]
    responses = list(echo_server.triton.ModelStreamInfer(iter(messages), timeout=10))
    assert [arrays(one.infer_response)["echo"].tolist() for one in responses] == [
        ANY.tolist(),
        ANY[:1].tolist(),
        [[b"plain"]],
    ]


@pytest.mark.skipif(not os.path.isdir(FOLDER), reason=f"no {FOLDER} here")
def test_shared_memory(echo_server, shared):
    data = raw(ANY)
    with open(shared, "r+b") as file:
        file.write(data)
    message = pb.ModelInferRequest(model_name="echo_BYTES")
    tensors = (
        message.inputs.add(name="x", datatype="BYTES", shape=ANY.shape),
        message.outputs.add(name="echo"),
    )
    for tensor, offset in zip(tensors, (0, 2048), strict=True):
        tensor.parameters["shared_memory_region"].string_param = "bytes"
        tensor.parameters["shared_memory_byte_size"].int64_param = len(data)
        tensor.parameters["shared_memory_offset"].int64_param = offset
    echo_server.triton.ModelInfer(message, timeout=10)
    with open(shared, "rb") as file:
        file.seek(2048)
        assert file.read(len(data)) == data


def test_neurona_v1(echo_server):
    message = PredictRequest(model="echo_BYTES", inputs=[to_tensor("x", ANY)])
    response = echo_server.prediction.Predict(message, timeout=10)
    assert response.outputs[0].data == raw(ANY)
    (streamed,) = echo_server.prediction.PredictStream(
        iter([PredictStreamRequest(requests=[{"id": 1, "request": message}])]), timeout=10
    )
    assert to_array(streamed.responses[0].response.outputs[0]).tolist()[0] == [
        b"\xff\xfe\0",
        "über",
    ]


def test_the_client(echo_server):
    with Client(f"127.0.0.1:{echo_server.port}") as client:
        echo = client.predict("echo_BYTES", ANY).outputs["echo"]
    assert echo.tolist() == [[b"\xff\xfe\0", "über"], ["", b"\x80" * 300]]


def test_requests_of_a_batch_get_their_own(make_server, echoes, wait_until):
    server = make_server(root=echoes, start_models=False)
    values = [b"text", b"\xff", "ü".encode(), b"\xfe\0"]
    calls = [
        server.triton.ModelInfer.future(request("echo_BYTES", x=("BYTES", [[value]])), timeout=20)
        for value in values
    ]
    model = server.registry.resolve("echo_BYTES")
    wait_until(lambda: model.batcher.queue.rows == len(values))
    model.start()
    assert [arrays(call.result())["echo"].tolist() for call in calls] == [[[v]] for v in values]


def test_a_model_that_needs_utf8_says_so(echo_server, rejection):
    code, text = rejection(echo_server.triton.ModelInfer, request("upper", x=("BYTES", [b"\xff"])))
    assert code == "INVALID_ARGUMENT"
    assert "the model failed on strings that are not UTF-8, of 'x'" in text
    assert arrays(echo_server.triton.ModelInfer(request("upper", x=("BYTES", [b"a"])), timeout=10))[
        "y"
    ].tolist() == [b"A"]
