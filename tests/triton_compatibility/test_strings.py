"""L0_string_io, L0_io: elements of BYTES are any bytes."""

import os
import struct

import numpy as np
import pytest
from support import triton_models
from support.triton_calls import expect_error, make_request

pytestmark = pytest.mark.triton("L0_string_io", cause="BYTES that are no UTF-8")
BAD = "INVALID_ARGUMENT"


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    triton_models.save_identities(root / "identity" / "1" / "model.onnx", "BYTES", [["batch", "n"]])
    triton_models.write_config(root / "identity", triton_models.identities_config("BYTES", [[-1]]))
    triton_models.save_identities(root / "nobatch" / "1" / "model.onnx", "BYTES", [["n"]])
    config = triton_models.identities_config("BYTES", [[-1]], max_batch_size=0)
    triton_models.write_config(root / "nobatch", config)
    return serve(root).triton


ELEMENTS = {
    "numbers": [str(n).encode() for n in range(10000, 10008)],
    "unicode": ["ü".encode(), "日本語".encode(), "🎺".encode()],
    "not_unicode": [b"\xff\xfe\xfa", b"\x80", b"a\xc3", bytes(range(256))],
    "serialized_messages": [b"\nF\n'\n\x01a\x12\"\x1a\xfa\x03\x94\x01\x0f\xd7", b"\x9a\xb7I\n"],
    "zeros": [b"\0", b"a\0b", b"\0\0", b"tail\0\0"],
    "empty": [b"", b"", b"x"],
    "surrogates": [b"\xed\xa0\x80", b"\xed\xb3\xbf"],
    "random": [os.urandom(n) for n in (1, 10, 1000, 100000)],
}


@pytest.mark.parametrize("elements", ELEMENTS.values(), ids=ELEMENTS)
@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_round_trip(server, elements, typed):
    values = np.array([elements], object)
    result = server.infer("identity", {"INPUT0": ("BYTES", values)}, typed=typed)
    assert result.arrays["OUTPUT0"].tolist() == values.tolist()
    result = server.infer("nobatch", {"INPUT0": ("BYTES", values[0])}, typed=typed)
    assert result.arrays["OUTPUT0"].tolist() == elements


def test_rows_of_several_requests_do_not_mix(server):
    calls = [
        server.start("identity", {"INPUT0": ("BYTES", np.array([[bytes([n]), b"\xff"]], object))})
        for n in range(100)
    ]
    for n, call in enumerate(calls):
        content = call.result().raw_output_contents[0]
        assert content == struct.pack("<I", 1) + bytes([n]) + struct.pack("<I", 1) + b"\xff"


def send(server, content, count):
    request = make_request("nobatch", {})
    request.inputs.add(name="INPUT0", datatype="BYTES", shape=[count])
    request.raw_input_contents.append(content)
    return server.stub.ModelInfer(request, timeout=30)


@pytest.mark.parametrize(
    ("content", "count", "text"),
    [
        (
            struct.pack("<I", 3) + b"abc",
            2,
            "unexpected number of string elements 1 for inference input 'INPUT0' for model "
            "'nobatch', expecting 2",
        ),
        (
            (struct.pack("<I", 1) + b"a") * 3,
            2,
            "unexpected number of string elements 3 for inference input 'INPUT0' for model "
            "'nobatch', expecting 2",
        ),
        (
            b"\x01\x00",
            1,
            "incomplete string length indicator for inference input 'INPUT0' for model 'nobatch', "
            "expecting 4 bytes but only 2 bytes available",
        ),
        (
            struct.pack("<I", 9) + b"abc",
            1,
            "incomplete string data for inference input 'INPUT0' for model 'nobatch', expecting "
            "string of length 9 but only 3 bytes available",
        ),
    ],
    ids=["too_few", "too_many", "cut_length", "cut_text"],
)
def test_invalid_content(server, content, count, text):
    expect_error(lambda: send(server, content, count), BAD, text)
