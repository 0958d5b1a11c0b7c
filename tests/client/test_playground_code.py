"""The code that the playground copies: run in each language, it makes the call of the page."""

import contextlib
import io
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from PIL import Image
from support import onnx_models
from support.image_models import save_image_models
from support.server_process import ServerProcess, free_addresses

from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse
from neurona_protos.prediction_pb2_grpc import PredictionStub

PAGE = Path(__file__).parents[2] / "server" / "neurona_server" / "http" / "playground" / "static"
LANGUAGES = ("python", "curl", "grpcurl", "node")
NAMES = {"INT8": "int8", "INT16": "int16", "INT32": "int32", "UINT8": "uint8", "UINT16": "uint16"}

WRITE_SNIPPETS = """
import { readFileSync } from "node:fs";
import { requestOf, snippet } from "./snippets.js";
import { toElement } from "./tensors.js";
const { calls, server } = JSON.parse(readFileSync("calls.json", "utf8"));
const result = calls.map((call) => {
  const tensors = call.tensors.map((one) => ({ ...one, values: one.values.map((value) =>
    (value?.bytes ? Uint8Array.from(value.bytes) : toElement(value, one.dtype))) }));
  const filled = { ...call, tensors };
  const code = Object.fromEntries(["python", "curl", "grpcurl", "node"].map((language) =>
    [language, snippet(language, filled, server)]));
  return { request: requestOf(filled), ...code };
});
console.log(JSON.stringify(result));
"""


def tensor(name, dtype, shape, values):
    return {"name": name, "dtype": f"DATA_TYPE_{dtype}", "shape": shape, "values": values}


def call(model, *tensors, task="TENSORS", **more):
    return {"model": model, "task": f"TASK_{task}", "topK": 0, "tensors": tensors, **more}


GENERATOR = np.random.default_rng(0)


def png(width, height):
    """Return noise as the bytes of a PNG file, in a list."""
    file = io.BytesIO()
    Image.fromarray(GENERATOR.integers(0, 256, (height, width), np.uint8)).save(file, "PNG")
    return list(file.getvalue())


PNG, LARGE_PNG = png(12, 12), png(200, 200)
ECHOES = {
    "FP32": ("FLOAT", [0.1, -3.25, "nan"]), "FP64": ("DOUBLE", [0.1, 1e300, "-inf"]),
    "FP16": ("FLOAT16", [0.5, -2, 0]), "BF16": ("BFLOAT16", [0.5, -2, 1]),
    "INT8": ("INT8", [-128, 0, 127]), "INT16": ("INT16", [-5, 0, 5]),
    "INT32": ("INT32", [-5, 0, 2147483647]), "INT64": ("INT64", ["-9223372036854775808", 0, 1]),
    "UINT8": ("UINT8", [0, 1, 255]), "UINT16": ("UINT16", [0, 1, 65535]),
    "UINT32": ("UINT32", [0, 1, 4294967295]), "UINT64": ("UINT64", ["18446744073709551615", 0, 1]),
    "BOOL": ("BOOL", [True, False, True]),
}  # fmt: skip
CALLS = {
    "classification": call(
        "classifier",
        tensor("x", "FLOAT", [1, 4], [0.1, -2.5, 1 / 3, 1e-7]),
        task="CLASSIFICATION",
        topK=3,
        version="1",
        rawOutputs=True,
    ),
    "series": call(
        "regressor", tensor("series", "FLOAT", [1, 5], [1, 2, 3, 4.5, -1]), task="REGRESSION"
    ),
    "two inputs": call(
        "sum",
        tensor("a", "FLOAT", [1, 2], [1, 2]),
        tensor("b", "FLOAT", [1, 2], [0.5, 0.25]),
    ),
    "written as base64": call(
        "regressor",
        tensor("series", "FLOAT", [1, 1000], GENERATOR.normal(size=1000).tolist()),
        task="REGRESSION",
    ),
    "in a file": call(
        "regressor",
        tensor("series", "FLOAT", [1, 30000], GENERATOR.normal(size=30000).tolist()),
        task="REGRESSION",
    ),
    "texts": call(
        "upper", tensor("x", "STRING", [3], ["it's", 'a "quoted" $HOME \\ `x`', "Zürich\n🎈"])
    ),
    **{
        f"{kind}": call(f"echo_{kind}", tensor("x", dtype, [1, 3], values))
        for kind, (dtype, values) in ECHOES.items()
    },
    "image": call("grey", {**tensor("image", "STRING", [1], [{"bytes": PNG}]), "isImage": True}),
    "large image": call(
        "grey", {**tensor("image", "STRING", [1], [{"bytes": LARGE_PNG}]), "isImage": True}
    ),
    "bytes": call("echo_BYTES", tensor("x", "STRING", [1, 2], ["a", {"bytes": [255, 0, 65]}])),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_echoes(root)
    save_image_models(root)
    onnx_models.save_classifier(root / "classifier" / "1" / "model.onnx")
    onnx_models.save_regressor(root / "regressor" / "1" / "model.onnx")
    onnx_models.save_sum(root / "sum" / "1" / "model.onnx")
    onnx_models.save_upper(root / "upper" / "1" / "model.onnx")
    (http_address,) = free_addresses(1)
    flags = ("--http-address", http_address, "--load-check", "false", "--cache", "off")
    with ServerProcess(root, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def snippets(server, tmp_path_factory):
    """The code of each call by language, with its request."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("playground")
    for path in PAGE.glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    page = f"http://{server.http_address}/"
    facts = {"grpc": server.address, "http": page, "tls": False, "tokens": False}
    calls = {"calls": list(CALLS.values()), "server": facts}
    (folder / "calls.json").write_text(json.dumps(calls))
    command = [shutil.which("node"), "--input-type=module", "-e", WRITE_SNIPPETS]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(CALLS, json.loads(done.stdout), strict=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected_answer(server, snippet, folder):
    (folder / "request.json").write_text(json.dumps(snippet["request"]))
    request = json_format.ParseDict(snippet["request"], PredictRequest())
    return request, PredictionStub(server.channel).Predict(request, timeout=20)


@pytest.mark.parametrize("name", CALLS)
def test_python_code_gets_the_answer_of_the_page(server, snippets, name, folder):
    _, expected = expected_answer(server, snippets[name], folder)
    namespace = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(snippets[name]["python"], name, "exec"), namespace)  # noqa: S102
    assert namespace["result"].message.SerializeToString() == expected.SerializeToString()
    assert printed.getvalue().strip()
    for label in [one for row in expected.classification.rows for one in row.labels]:
        assert label in printed.getvalue()


@pytest.mark.parametrize("name", CALLS)
def test_curl_gets_the_answer_of_the_page(server, snippets, name, folder):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    _, expected = expected_answer(server, snippets[name], folder)
    command = snippets[name]["curl"].replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(["/bin/sh", "-c", command], check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json_format.Parse(done.stdout, PredictResponse())
    assert answer.SerializeToString() == expected.SerializeToString()


@pytest.mark.parametrize("name", CALLS)
def test_grpcurl_is_given_the_same_request(server, snippets, name, folder):
    request, _ = expected_answer(server, snippets[name], folder)
    words = shlex.split(snippets[name]["grpcurl"].replace(" \\\n", " "))
    assert words[:3] == ["grpcurl", "-plaintext", "-d"]
    address = words.index(server.address)
    assert words[address + 1] == "neurona.v1.Prediction/Predict"
    if words[3] == "@":
        assert words[address + 2 :] == ["<", "request.json"]
        message = (folder / "request.json").read_text()
    else:
        message = words[3]
    assert json_format.Parse(message, PredictRequest()) == request


SHOW = """
const show = (one) => (typeof one === "bigint" || Number.isNaN(one) ? String(one) :
  one instanceof Uint8Array ? [...one] : one === -Infinity ? "-inf" : one);
console.log(`answer ${JSON.stringify([result.rows?.map((row) => row.label ?? row.value) ?? [],
  Object.values(result.outputs).map(({ data }) => Array.from(data, show))])}`);
client.close();
"""


def test_node_gets_the_answers_of_the_page(server, snippets, node_package, tmp_path):
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "neurona").symlink_to(node_package)
    expected = {}
    for index, (name, snippet) in enumerate(snippets.items()):
        assert snippet["node"].endswith("client.close();\n")
        code = snippet["node"].removesuffix("client.close();\n") + SHOW
        (tmp_path / f"{index}.mjs").write_text(code)
        _, expected[name] = expected_answer(server, snippet, tmp_path)
        if "request.json" in snippet["node"]:  # each has a file of its own here
            (tmp_path / f"{index}.json").write_text(json.dumps(snippet["request"]))
            (tmp_path / f"{index}.mjs").write_text(code.replace("request.json", f"{index}.json"))
    lines = [f'await import("./{index}.mjs");' for index in range(len(snippets))]
    (tmp_path / "all.mjs").write_text("\n".join(lines))
    command = [shutil.which("node"), "all.mjs"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    for line, (name, answer) in zip(printed, expected.items(), strict=True):
        rows, outputs = json.loads(line.removeprefix("answer "))
        labels = [row.labels[0] for row in answer.classification.rows]
        values = [row.values[0] for row in answer.regression.rows]
        assert rows == (labels or pytest.approx(values)), name
        assert len(outputs) == len(answer.outputs), name
        if name in ECHOES and name not in ("FP16", "BF16"):  # their bits
            sent = [float(one) for one in ECHOES[name][1]]
            np.testing.assert_allclose([float(one) for one in outputs[0]], sent, rtol=1e-6)
    assert json.loads(printed[list(expected).index("bytes")][7:])[1] == [["a", [255, 0, 65]]]
