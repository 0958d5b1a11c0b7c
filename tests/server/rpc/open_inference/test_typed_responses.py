"""With the option typed_responses, requests with typed contents have typed responses."""

import pytest
from support.in_process_server import InProcessServer
from support.triton_requests import arrays, request

from neurona_protos import open_inference_pb2 as pb
from neurona_server.batching.policy import BatchPolicy

TYPED = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -3.0]),
    "FP64": ("fp64_contents", [0.1, -1e308]),
    "BYTES": ("bytes_contents", ["ü".encode(), b"\xff\0"]),
}


@pytest.fixture(scope="module")
def typed_server(echoes, transport):
    server = InProcessServer(echoes, BatchPolicy(inline=False), typed_responses=True)
    yield server
    server.stop()


def typed_request(kind):
    field, values = TYPED[kind]
    message = pb.ModelInferRequest(model_name=f"echo_{kind}", id="7")
    tensor = message.inputs.add(name="x", datatype=kind, shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    return message


@pytest.mark.parametrize("kind", TYPED)
def test_every_datatype_that_has_typed_contents(typed_server, echo_server, kind):
    message = typed_request(kind)
    field, values = TYPED[kind]
    response = typed_server.triton.ModelInfer(message, timeout=10)
    (tensor,) = response.outputs
    assert (tensor.name, tensor.datatype, [*tensor.shape]) == ("echo", kind, [1, 2])
    assert [*getattr(tensor.contents, field)] == values
    assert not response.raw_output_contents
    assert response.id == "7"
    (streamed,) = typed_server.triton.ModelStreamInfer(iter([message]), timeout=10)
    assert streamed.infer_response.outputs == response.outputs
    # Without the option, and for raw requests, responses are raw.
    raw = echo_server.triton.ModelInfer(message, timeout=10)
    message = request(f"echo_{kind}", x=(kind, [values]))
    assert (
        arrays(typed_server.triton.ModelInfer(message, timeout=10))["echo"].tolist()
        == arrays(raw)["echo"].tolist()
    )


def test_outputs_without_typed_contents_are_raw(typed_server):
    message = request("echo_FP16", x=("FP16", [[0.5, 1.0]]))
    response = typed_server.triton.ModelInfer(message, timeout=10)
    assert arrays(response)["echo"].tolist() == [[0.5, 1.0]]


def test_classes_are_typed(typed_server):
    message = typed_request("FP32")
    message.outputs.add(name="echo").parameters["classification"].int64_param = 2
    (tensor,) = typed_server.triton.ModelInfer(message, timeout=10).outputs
    assert [*tensor.contents.bytes_contents] == [b"0.5:0", b"-3.0:1"]
