"""PNG files over HTTP, as binary tensors and as base64 in JSON, and from the command line."""

import base64
import http.client
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow")

from PIL import Image
from support.cli import environment
from support.image_models import DESCRIBED, save_image_models
from support.in_process_server import run_app
from support.pictures import GREY, encode
from support.server_process import free_addresses

from neurona_client import TensorSpec
from neurona_client.images import image_to_array

PNG = encode(Image.fromarray(GREY), "PNG")
PACKED = struct.pack("<I", len(PNG)) + PNG
SPEC = TensorSpec("image", "FLOAT", (-1, 8, 8), image=DESCRIBED["grey"])


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """The addresses of gRPC and of HTTP."""
    root = save_image_models(tmp_path_factory.mktemp("images"))
    (http_address,) = free_addresses(1)
    with run_app(["--repository", str(root)], {}, http_address=http_address) as app:
        yield app.address, http_address


def post(address, path, body, **headers):
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.loads(response.read())
    finally:
        connection.close()


def infer(address, data, **parameters):
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": parameters}
    if data is None:
        head = json.dumps({"inputs": [tensor]}).encode()
        size = {"Inference-Header-Content-Length": str(len(head))}
        answer = post(address, "/v2/models/grey/infer", head + PACKED, **size)
    else:
        body = json.dumps({"inputs": [{**tensor, "data": data}]})
        answer = post(address, "/v2/models/grey/infer", body)
    return np.array(answer["outputs"][0]["data"], np.float32).reshape(8, 8)


def test_a_png_over_http_is_the_array_of_the_client(addresses):
    expected = image_to_array(PNG, SPEC)
    _, address = addresses
    text = base64.b64encode(PNG).decode()
    assert np.array_equal(infer(address, [text], content_type="base64"), expected)
    assert np.array_equal(infer(address, None, binary_data_size=len(PACKED)), expected)
    request = {
        "model": "grey",
        "rawOutputs": True,
        "inputs": [
            {
                "name": "image",
                "dtype": "DATA_TYPE_STRING",
                "shape": [1],
                "data": base64.b64encode(PACKED).decode(),
            }
        ],
    }
    path, kind = "/neurona.v1.Prediction/Predict", {"Content-Type": "application/json"}
    answer = post(address, path, json.dumps(request), **kind)
    data = base64.b64decode(answer["outputs"][0]["data"])
    assert np.array_equal(np.frombuffer(data, np.float32).reshape(8, 8), expected)


def test_the_command_line_sends_a_file_as_it_is(addresses, tmp_path):
    (tmp_path / "grey.png").write_bytes(PNG)
    command = [sys.executable, "-m", "neurona_client", "predict", "grey", "grey.png", "--json"]
    outputs = []
    for flags in ([], ["--encoded"]):
        done = subprocess.run(
            [*command, *flags, "--address", addresses[0]],
            cwd=tmp_path,
            env=environment(),
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout)["outputs"])
    assert outputs[0] == outputs[1]
