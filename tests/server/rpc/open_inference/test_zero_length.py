"""Tensors of zero size in the Open Inference Protocol: sent and returned in every way."""

import os
import uuid

import numpy as np
import pytest
from support.triton_requests import DTYPES, arrays, request

from neurona_protos import open_inference_pb2 as pb
from neurona_server.rpc.open_inference.shared_memory import FOLDER

KINDS = [*DTYPES, "BYTES"]
TYPED = [kind for kind in KINDS if kind not in ("FP16", "BF16")]


def empty(kind, rows=2):
    return request(
        f"echo_{kind}", x=(kind, np.empty((rows, 0), object if kind == "BYTES" else None))
    )


def check(response, kind, rows=2):
    (tensor,) = response.outputs
    assert (tensor.datatype, [*tensor.shape]) == (kind, [rows, 0])
    assert arrays(response)["echo"].size == 0


@pytest.mark.parametrize("kind", KINDS)
def test_raw_contents(echo_server, kind):
    for rows in (1, 2, 2):  # the last one takes the fast path
        check(echo_server.triton.ModelInfer(empty(kind, rows), timeout=10), kind, rows)


@pytest.mark.parametrize("kind", TYPED)
@pytest.mark.parametrize("with_contents", [True, False])
def test_typed_contents(echo_server, kind, with_contents):
    message = empty(kind)
    message.ClearField("raw_input_contents")
    if with_contents:
        message.inputs[0].contents.SetInParent()
    check(echo_server.triton.ModelInfer(message, timeout=10), kind)


def test_a_stream(echo_server):
    full = request("echo_FP32", x=("FP32", np.ones((2, 1))))
    messages = [empty("FP32"), full, empty("FP32", 1)]
    responses = list(echo_server.triton.ModelStreamInfer(iter(messages), timeout=10))
    assert [[*one.infer_response.outputs[0].shape] for one in responses] == [[2, 0], [2, 1], [1, 0]]


@pytest.mark.skipif(not os.path.isdir(FOLDER), reason=f"no {FOLDER} here")
@pytest.mark.parametrize("kind", ["FP32", "BYTES"])
def test_shared_memory(echo_server, kind):
    key = f"neurona-test-{uuid.uuid4().hex}"
    path = os.path.join(FOLDER, key)
    with open(path, "wb") as file:
        file.truncate(64)
    register = pb.SystemSharedMemoryRegisterRequest(name="empty", key=key, byte_size=64)
    echo_server.triton.SystemSharedMemoryRegister(register, timeout=10)
    try:
        message = empty(kind)
        message.ClearField("raw_input_contents")
        for tensor in (message.inputs[0], message.outputs.add(name="echo")):
            tensor.parameters["shared_memory_region"].string_param = "empty"
            tensor.parameters["shared_memory_byte_size"].int64_param = 0
        (output,) = echo_server.triton.ModelInfer(message, timeout=10).outputs
        assert [*output.shape] == [2, 0]
        assert output.parameters["shared_memory_byte_size"].int64_param == 0
    finally:
        echo_server.triton.SystemSharedMemoryUnregister(
            pb.SystemSharedMemoryUnregisterRequest(name="empty"), timeout=10
        )
        os.unlink(path)


def test_data_for_an_empty_tensor(echo_server, rejection):
    message = empty("FP32")
    message.raw_input_contents[0] = b"1234"
    code, text = rejection(echo_server.triton.ModelInfer, message)
    assert code == "INVALID_ARGUMENT"
    assert "input byte size mismatch for input 'x' for model 'echo_FP32'. Expected 0, got 4" in text
    message = empty("BYTES")
    message.raw_input_contents[0] = b"\1\0\0\0a"
    code, text = rejection(echo_server.triton.ModelInfer, message)
    assert code == "INVALID_ARGUMENT"
    assert "unexpected number of string elements 1 for inference input 'x'" in text


def test_a_batch_needs_a_row(echo_server, rejection):
    code, text = rejection(echo_server.triton.ModelInfer, empty("FP32", rows=0))
    assert code == "INVALID_ARGUMENT"
    assert "FP32 of shape [0, 0]: it has no row (expected 1 row or more along axis 0)" in text
