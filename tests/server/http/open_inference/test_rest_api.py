"""The protocol over REST, against a real server."""

import http.client
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from support import onnx_models
from support.in_process_server import run_app
from support.server_process import free_addresses

from neurona_protos.open_inference_pb2 import RepositoryIndexRequest
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub

MANUAL = Path(__file__).parents[4] / "server" / "docs" / "http.md"
LENGTH = "Inference-Header-Content-Length"
ROWS = np.array([[1, 2, 3, 4], [-4, -3, -2, -1]], np.float32)

VALUES = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.5, -65504.0]], np.float16),
    "FP32": np.array([[0.1, -3e38]], np.float32),
    "FP64": np.array([[0.1, -1e308]], np.float64),
    "BF16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = onnx_models.save_echoes(tmp_path_factory.mktemp("rest"))
    onnx_models.save_classifier(root / "classifier" / "1" / "model.onnx")
    onnx_models.save_classifier(root / "classifier" / "2" / "model.onnx", offset=1.0)
    onnx_models.save_picker(root / "picker" / "1" / "model.onnx")
    onnx_models.save_sum(root / "sum" / "1" / "model.onnx")
    onnx_models.save_slow(root / "slow" / "1" / "model.onnx")
    (address,) = free_addresses(1)
    loads = [word for folder in root.iterdir() for word in ("--load-model", folder.name)]
    flags = ["--repository", str(root), "--versions", "all", "--model-control", "explicit"]
    flags += ["--max-message-bytes", str(1 << 20)]
    with run_app([*flags, *loads], {}, http_address=address) as app:
        yield SimpleNamespace(address=address, app=app)


@pytest.fixture
def send(server):
    """Sends a request, and returns its status, its body and its headers."""
    connection = http.client.HTTPConnection(server.address, timeout=60)

    def send(method, path, body=None, headers=None):
        if isinstance(body, dict):
            body = json.dumps(body)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers

    yield send
    connection.close()


@pytest.fixture
def infer(send):
    """Runs a model, and returns the JSON of its response."""

    def infer(model, *tensors, status=200, **more):
        path = f"/v2/models/{model}/infer"
        actual, body, _ = send("POST", path, {"inputs": tensors, **more})
        assert actual == status, body
        return json.loads(body)

    return infer


def typed(array, name="x", datatype="FP32", **parameters):
    tensor = {"name": name, "datatype": datatype, "shape": array.shape, "data": array.tolist()}
    return tensor | ({"parameters": parameters} if parameters else {})


def binary(array, name="x", datatype="FP32"):
    parameters = {"binary_data_size": array.nbytes}
    return {
        "name": name,
        "datatype": datatype,
        "shape": array.shape,
        "parameters": parameters,
    }


def send_binary(send, model, tensors, data, **more):
    text = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}, **more})
    body = text.encode() + data
    status, body, headers = send(
        "POST", f"/v2/models/{model}/infer", body, {LENGTH: str(len(text))}
    )
    assert status == 200, body
    assert headers["Content-Type"] == "application/octet-stream"
    length = int(headers[LENGTH])
    return json.loads(body[:length]), body[length:]


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype_as_binary_data(send, datatype):
    array = VALUES[datatype]
    for _ in range(3):  # the later ones are like the first one
        parsed, data = send_binary(
            send, f"echo_{datatype}", [binary(array, datatype=datatype)], array.tobytes()
        )
        (output,) = parsed["outputs"]
        assert (output["datatype"], output["shape"]) == (datatype, [1, 2])
        assert output["parameters"] == {"binary_data_size": len(data)}
        assert data == array.tobytes()


@pytest.mark.parametrize("datatype", [one for one in VALUES if one not in ("FP16", "BF16")])
def test_every_datatype_as_json(infer, datatype):
    array = VALUES[datatype]
    parsed = infer(f"echo_{datatype}", typed(array, datatype=datatype))
    (output,) = parsed["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, [1, 2])
    assert (np.array(output["data"], array.dtype) == array[0]).all()
    assert parsed["model_version"] == "1"


def test_texts_in_both_forms(infer, send):
    values = np.array([["one", "über"]])
    assert infer("echo_BYTES", typed(values, datatype="BYTES"))["outputs"][0]["data"] == [
        "one",
        "über",
    ]
    encoded = np.array([["b25l", "/w=="]])
    reply = infer("echo_BYTES", typed(encoded, datatype="BYTES", content_type="base64"), status=400)
    assert "output 'echo' has text that is not UTF-8" in reply["error"]
    data = b"\3\0\0\0one\1\0\0\0\xff"
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 2]}
    tensor["parameters"] = {"binary_data_size": len(data)}
    assert send_binary(send, "echo_BYTES", [tensor], data)[1] == data


def test_numbers_that_json_has_not(infer, send):
    values = np.array([[np.nan, np.inf, -np.inf, 0]], np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    tensor["data"] = ["NaN", "Infinity", "-Infinity", 0]
    (output,) = infer("echo_FP32", tensor)["outputs"]
    assert output["data"] == tensor["data"]
    # As Python's json writes them.
    (output,) = infer("echo_FP32", typed(values))["outputs"]
    assert output["data"] == tensor["data"]


def test_responses_are_those_over_grpc(server, infer, send):
    stub = GRPCInferenceServiceStub(server.app.channel)
    index = stub.RepositoryIndex(RepositoryIndexRequest(), timeout=30).models
    listed = json.loads(send("POST", "/v2/repository/index")[1])
    assert [(one["name"], one["version"], one["state"]) for one in listed] == [
        (one.name, one.version, one.state) for one in index
    ]


def test_the_models_that_are_ready_are_listed_by_their_names(server, send):
    status, content = send("GET", "/v2/models")[:2]
    stub = GRPCInferenceServiceStub(server.app.channel)
    index = stub.RepositoryIndex(RepositoryIndexRequest(ready=True), timeout=30).models
    assert status == 200
    assert json.loads(content) == {"models": sorted({one.name for one in index})}


def test_outputs_as_they_are_wanted(infer, send):
    wanted = [{"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}}]
    parsed = infer("classifier", typed(ROWS), outputs=wanted, id="mine")
    assert parsed["id"] == "mine"
    (output,) = parsed["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert re.fullmatch(r"0\.\d+:\d:(ant|bee|cat)", output["data"][0])
    parsed, data = send_binary(send, "classifier", [binary(ROWS)], ROWS.tobytes())
    assert np.frombuffer(data, np.float32).reshape(2, 3).sum(axis=1) == pytest.approx([1, 1])
    assert parsed["model_version"] == "2"


def test_versions_and_labels_in_the_path(send):
    for version, expected in (("1", "1"), ("2", "2"), ("latest", "2")):
        path = f"/v2/models/classifier/versions/{version}"
        status, body, _ = send("POST", path + "/infer", {"inputs": [typed(ROWS)]})
        assert (status, json.loads(body)["model_version"]) == (200, expected)
        assert send("GET", path)[0] == 200
        assert send("GET", path + "/ready")[0] == 200
        assert send("GET", path + "/config")[0] == 200
        assert send("GET", path + "/stats")[0] == 200
    assert send("GET", "/v2/models/classifier/versions/9/ready")[0] == 503


def test_a_request_that_is_nothing_but_data(send):
    headers = {LENGTH: "0", "Accept": "application/json"}
    status, body, _ = send("POST", "/v2/models/classifier/infer", ROWS.tobytes(), headers)
    assert status == 200
    assert json.loads(body)["outputs"][0]["shape"] == [2, 3]
    status, body, headers = send(
        "POST", "/v2/models/echo_FP32/infer", ROWS[:1].tobytes(), {LENGTH: "0"}
    )
    assert body[int(headers[LENGTH]) :] == ROWS[:1].tobytes()
    status, body, headers = send("POST", "/v2/models/echo_BYTES/infer", b"\xff\0", {LENGTH: "0"})
    assert body[int(headers[LENGTH]) :] == b"\2\0\0\0\xff\0"
    for model, data, reason in (
        ("sum", b"", "is for models with one input; 'sum' has 'a', 'b'"),
        ("classifier", b"\0" * 15, "has 15 bytes (expected a multiple of 16"),
        ("nobody", b"", "Request for unknown model: 'nobody'"),
    ):
        status, body, _ = send("POST", f"/v2/models/{model}/infer", data, {LENGTH: "0"})
        assert status in (400, 404)
        assert reason in json.loads(body)["error"]


def test_descriptions(send):
    body = send("GET", "/v2")[1]
    assert json.loads(body)["name"] == "neurona"
    assert "binary_tensor_data" in json.loads(body)["extensions"]
    metadata = json.loads(send("GET", "/v2/models/classifier")[1])
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["versions"] == ["1", "2"]
    config = json.loads(send("GET", "/v2/models/classifier/config")[1])
    assert config["input"][0]["dims"] == [4]
    assert config["dynamic_batching"]["priority_levels"] == 3
    assert json.loads(send("GET", "/v2/models/classifier/ready")[1]) == {
        "name": "classifier",
        "ready": True,
    }
    assert json.loads(send("GET", "/v2/health/live")[1]) == {"live": True}
    assert json.loads(send("GET", "/v2/health/ready")[1]) == {"ready": True}


def test_statistics(send, infer):
    def count():
        (one,) = json.loads(send("GET", "/v2/models/picker/stats")[1])["model_stats"]
        return one["inference_count"]

    before = count()
    index = typed(np.array([1, 2]), "index", "INT64")
    assert infer("picker", index)["outputs"][0]["data"] == [10, 20]
    assert count() == before + 2
    assert len(json.loads(send("GET", "/v2/models/stats")[1])["model_stats"]) > 10


def test_loading_and_unloading(send):
    assert send("POST", "/v2/repository/models/sum/unload")[0] == 200
    assert send("GET", "/v2/models/sum/ready")[0] == 503
    ready = json.loads(send("POST", "/v2/repository/index", {"ready": True})[1])
    assert "sum" not in {one["name"] for one in ready}
    assert send("POST", "/v2/repository/models/sum/load", {})[0] == 200
    assert send("GET", "/v2/models/sum/ready")[0] == 200
    status, body, _ = send("POST", "/v2/repository/models/nobody/load")
    assert status == 404
    assert "failed to load 'nobody'" in json.loads(body)["error"]


def test_settings(send):
    traces = json.loads(send("GET", "/v2/trace/setting")[1])
    assert traces["trace_level"] == ["OFF"]
    assert json.loads(send("POST", "/v2/models/sum/trace/setting", {})[1]) == traces
    status, body, _ = send("POST", "/v2/trace/setting", {"trace_rate": "5"})
    assert status == 501
    assert "'trace_rate' cannot be changed" in json.loads(body)["error"]
    logs = json.loads(send("GET", "/v2/logging")[1])
    assert logs["log_error"] is True
    assert json.loads(send("POST", "/v2/logging", {"log_error": True})[1]) == logs


def test_shared_memory_is_off(send):
    assert json.loads(send("GET", "/v2/systemsharedmemory/status")[1]) == []
    status, body, _ = send(
        "POST", "/v2/systemsharedmemory/region/a/register", {"key": "a", "byte_size": 8}
    )
    assert status == 400
    assert "shared_memory" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "reason"),
    [
        ("/v2/models/nobody/infer", {"inputs": [typed(ROWS)]}, {}, 404, "unknown model: 'nobody'"),
        ("/v2/models/classifier/infer", b"{", {}, 400, "invalid JSON"),
        ("/v2/models/classifier/infer", {"inputs": []}, {}, 400, "expected 1 inputs but got 0"),
        (
            "/v2/models/classifier/infer",
            {"inputs": [typed(ROWS), typed(ROWS)]},
            {},
            400,
            "duplicate input 'x'",
        ),
        (
            "/v2/models/classifier/infer",
            {"inputs": [typed(ROWS)], "outputs": [{"name": "y"}]},
            {},
            400,
            "unexpected inference output 'y'",
        ),
        (
            "/v2/models/classifier/infer",
            {"inputs": [typed(ROWS, datatype="FP64")]},
            {},
            400,
            "data-type is 'FP64'",
        ),
        (
            "/v2/models/classifier/infer",
            {"inputs": [typed(ROWS)], "parameters": {"priority": -1}},
            {},
            400,
            "'priority' is -1",
        ),
        (
            "/v2/models/classifier/infer",
            {"inputs": [typed(ROWS)], "parameters": {"sequence_id": 1, "sequence_start": True}},
            {},
            501,
            "sequence",
        ),
        ("/v2/models/classifier/infer", b"{}", {LENGTH: "3"}, 400, "is '3' (expected the bytes"),
        ("/v2/models/classifier/infer", b"{}", {LENGTH: "-1"}, 400, "is '-1'"),
        ("/v2/models/classifier/infer", b"{}", {LENGTH: "²"}, 400, "expected the bytes of JSON"),
        ("/v2/models/slow/infer", {"inputs": [typed(np.ones(1))], "parameters": {"timeout": 1}}, {},
         504, "deadline"),
        ("/v2/nothing", b"", {}, 404, "unknown path '/v2/nothing'"),
    ],
)  # fmt: skip
def test_errors_have_a_status_and_a_reason(send, path, body, headers, status, reason):
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    actual, content, received = send("POST", path, body, encoded)
    assert received["Content-Type"] == "application/json"
    assert reason in json.loads(content)["error"]
    assert actual == status


def test_bodies_have_the_limit_of_messages(send):
    status, content, _ = send("POST", "/v2/models/echo_FP32/infer", b"0" * (1 << 20) + b"0")
    assert status == 413
    assert "expected at most 1048576" in json.loads(content)["error"]


def test_large_tensors_are_converted_beside_the_thread_of_the_server(infer, send):
    array = np.arange(50_000, dtype=np.float32).reshape(1, -1)
    (output,) = infer("echo_FP32", typed(array))["outputs"]
    assert output["data"] == array[0].tolist()
    array = np.arange(200_000, dtype=np.float32).reshape(1, -1)
    _, data = send_binary(send, "echo_FP32", [binary(array)], array.tobytes())
    assert data == array.tobytes()


def test_many_callers_at_the_same_time(server):
    results = {}

    def call(number):
        connection = http.client.HTTPConnection(server.address, timeout=60)
        for step in range(20):
            index = np.array([(number + step) % 4])
            body = json.dumps({"inputs": [typed(index, "index", "INT64")], "id": f"{number}"})
            connection.request("POST", "/v2/models/picker/infer", body)
            parsed = json.loads(connection.getresponse().read())
            right = parsed["id"] == f"{number}" and parsed["outputs"][0]["data"] == [10 * index[0]]
            results[number, step] = right
        connection.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 160
    assert all(results.values())


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_of_the_manual(tmp_path):
    """Those of its section on REST; each is followed by what it prints."""
    text = MANUAL.read_text().partition("## Open Inference Protocol")[2]
    examples = re.findall(r"(?m)^    \$ ((?:.*\n)*?)    ([{].*)$", text)
    assert len(examples) == 6
    onnx_models.save_classifier(tmp_path / "flowers" / "1" / "model.onnx")
    (address,) = free_addresses(1)
    with run_app(["--repository", str(tmp_path)], {}, http_address=address):
        for command, expected in examples:
            done = subprocess.run(
                [shutil.which("bash"), "-c", command.replace("127.0.0.1:8000", address)],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stdout == expected, done.stderr
