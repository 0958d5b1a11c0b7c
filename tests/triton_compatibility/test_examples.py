"""The example programs of Triton's clients in Python, C++, Java, JavaScript and Go.

Those in Python are run over gRPC and over HTTP.

The server has the models of Triton's example repository, those of sequences rebuilt with ONNX, and
one of another kind.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models, stateful_models, triton_clients, triton_models
from support.server_process import free_addresses
from support.triton_calls import expect_error, make_request

from neurona_protos import open_inference_pb2 as pb

DRIVER = Path(__file__).with_name("examples_driver.py")
HTTP_DRIVER = Path(__file__).with_name("http_examples_driver.py")
JAVASCRIPT = Path(__file__).with_name("examples_driver.js")
PROTOS = Path(__file__).parents[2] / "protos"

EXAMPLES = [
    "simple_grpc_infer_client",
    "simple_grpc_async_infer_client",
    "simple_grpc_string_infer_client",
    "simple_grpc_health_metadata",
    "simple_grpc_custom_args_client",
    "simple_grpc_keepalive_client",
    "simple_grpc_shm_client",
    "simple_grpc_shm_string_client",
    "reuse_infer_objects_client",
    "memory_growth_test",
    "grpc_client",
    "grpc_explicit_int_content_client",
    "grpc_explicit_int8_content_client",
    "grpc_explicit_byte_content_client",
    "image_client",
    "grpc_image_client",
    "simple_grpc_aio_infer_client",
    "simple_grpc_aio_health_metadata",
    "simple_grpc_aio_string_infer_client",
    "simple_grpc_sequence_sync_infer_client",
    "simple_grpc_sequence_stream_infer_client",
    "simple_grpc_aio_sequence_stream_infer_client",
]
HTTP_EXAMPLES = [
    "simple_http_infer_client",
    "simple_http_async_infer_client",
    "simple_http_string_infer_client",
    "simple_http_shm_client",
    "simple_http_shm_string_client",
    "simple_http_sequence_sync_infer_client",
    "simple_http_aio_infer_client",
    "simple_http_aio_string_infer_client",
    "simple_http_aio_shm_client",
    "simple_http_aio_shm_string_client",
    "simple_http_aio_sequence_sync_infer_client",
    "reuse_infer_objects_client",
    "memory_growth_test",
    "image_client",
]
HTTP_CONTROL = ["simple_http_model_control", "simple_http_aio_model_control"]
HTTP_HEALTH = ["simple_http_health_metadata", "simple_http_aio_health_metadata"]
HTTP_UNSUPPORTED = {
    "simple_http_cudashm_client": "CUDA shared memory",
    "simple_http_aio_cudashm_client": "CUDA shared memory",
    "ensemble_image_client": "models that do not load",
}
CONTROL = ["simple_grpc_model_control", "simple_grpc_aio_model_control"]
UNSUPPORTED = {
    "simple_grpc_custom_repeat": "models that do not load",
    "simple_grpc_cudashm_client": "CUDA shared memory",
}


def save_densenet(folder):
    """Save a model of pictures whose config is that of densenet_onnx."""
    kind = TensorProto.FLOAT
    onnx_models.save(
        folder / "1" / "model.onnx",
        [
            helper.make_node("GlobalAveragePool", ["data_0"], ["mean"]),
            helper.make_node("Conv", ["mean", "weights"], ["fc6_1"]),
        ],
        {"data_0": (kind, [1, 3, 224, 224])},
        {"fc6_1": (kind, [1, 10, 1, 1])},
        {"weights": np.arange(30, dtype=np.float32).reshape(10, 3, 1, 1)},
    )
    folder.joinpath("densenet_labels.txt").write_text("".join(f"LABEL {i}\n" for i in range(10)))
    image = "format: FORMAT_NCHW reshape { shape: [ 1, 3, 224, 224 ] }"
    classes = 'reshape { shape: [ 1, 10, 1, 1 ] } label_filename: "densenet_labels.txt"'
    triton_models.write_config(
        folder,
        'name: "densenet_onnx"\nplatform: "onnxruntime_onnx"\nmax_batch_size : 0\n'
        + triton_models.tensor_text("input", "data_0", "FP32", [3, 224, 224], image)
        + triton_models.tensor_text("output", "fc6_1", "FP32", [10], classes),
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    for name, kind in (("simple", "INT32"), ("simple_int8", "INT8"), ("simple_string", "BYTES")):
        triton_models.save_add_sub(root / name / "1" / "model.onnx", kind, (kind, kind))
        triton_models.write_config(root / name, triton_models.add_sub_config(kind, (kind, kind)))
    triton_models.save_identities(
        root / "simple_identity" / "1" / "model.onnx", "BYTES", [["batch", "n"]]
    )
    triton_models.write_config(
        root / "simple_identity", triton_models.identities_config("BYTES", [[-1]])
    )
    save_densenet(root / "densenet_onnx")
    stateful_models.save_simple_sequence(root / "simple_sequence")
    stateful_models.save_simple_dyna_sequence(root / "simple_dyna_sequence")
    stateful_models.save_simple_string_dyna_sequence(root / "simple_string_dyna_sequence")
    (root / "inception_graphdef" / "1").mkdir(parents=True)
    triton_models.write_config(root / "inception_graphdef", 'platform: "tensorflow_graphdef"')
    return root


@pytest.fixture(scope="module")
def server(serve, repository):
    flags = ("--http-address", free_addresses(1)[0], "--shared-memory", "true", "--threads", "1")
    return serve(repository, *flags)


@pytest.fixture(scope="module")
def results(server):
    output = triton_clients.run(DRIVER, server.address, *EXAMPLES, *UNSUPPORTED)
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def control_results(serve, repository):
    flags = ("--http-address", free_addresses(1)[0], "--model-control", "explicit")
    server = serve(repository, *flags)
    output = triton_clients.run(DRIVER, server.address, *CONTROL)
    http_output = triton_clients.run(HTTP_DRIVER, server.http_address, *HTTP_CONTROL)
    return json.loads(output.splitlines()[-1]) | json.loads(http_output.splitlines()[-1])


@pytest.mark.triton("examples: Python", cause="examples")
@pytest.mark.parametrize("name", EXAMPLES)
def test_python(results, name):
    assert results[name] is None, results[name]


@pytest.fixture(scope="module")
def http_results(server):
    names = [*HTTP_EXAMPLES, *HTTP_HEALTH, *HTTP_UNSUPPORTED]
    output = triton_clients.run(HTTP_DRIVER, server.http_address, *names)
    return json.loads(output.splitlines()[-1])


@pytest.mark.triton("examples: Python, HTTP", cause="examples")
@pytest.mark.parametrize("name", HTTP_EXAMPLES)
def test_python_over_http(http_results, name):
    assert http_results[name] is None, http_results[name]


@pytest.mark.triton("examples: Python, HTTP", declared="server metadata")
@pytest.mark.parametrize("name", HTTP_HEALTH)
def test_python_health_over_http(http_results, name):
    assert "named neurona" in http_results[name]  # all checks before pass


@pytest.mark.triton("examples: Python, HTTP")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.triton(declared=row))
        for n, row in HTTP_UNSUPPORTED.items()
    ],
)
def test_python_of_other_kinds_over_http(http_results, name):
    assert http_results[name] is None, http_results[name]


@pytest.mark.triton("examples: Python, HTTP", cause="overrides at load")
@pytest.mark.parametrize("name", HTTP_CONTROL)
def test_python_model_control_over_http(control_results, name):
    assert control_results[name] is None, control_results[name]


@pytest.mark.triton("examples: Python", cause="overrides at load")
@pytest.mark.parametrize("name", CONTROL)
def test_python_model_control(control_results, name):
    assert control_results[name] is None, control_results[name]


@pytest.mark.triton("examples: Python")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.triton(declared=row)) for n, row in UNSUPPORTED.items()],
)
def test_python_of_other_kinds(results, name):
    assert results[name] is None, results[name]


LEFT = np.arange(16, dtype=np.int32).reshape(1, 16)
RIGHT = np.ones((1, 16), np.int32)
SIMPLE = {"INPUT0": ("INT32", LEFT), "INPUT1": ("INT32", RIGHT)}


def check_raw(response):
    sums, differences = (np.frombuffer(c, "<i4") for c in response.raw_output_contents)
    assert (sums == LEFT[0] + RIGHT[0]).all()
    assert (differences == LEFT[0] - RIGHT[0]).all()


@pytest.mark.triton("examples: C++", declared="server metadata")
def test_cpp_health_metadata(server):
    triton = server.triton
    assert triton.is_live()
    assert triton.is_ready()
    assert triton.is_model_ready("simple")
    assert triton.metadata("simple").name == "simple"
    assert triton.config("simple").name == "simple"
    assert triton.server_metadata().name == "neurona"  # the example stops here
    expect_error(
        lambda: triton.metadata("wrong_model_name"), "NOT_FOUND", "Request for unknown model"
    )


@pytest.mark.triton("examples: C++")
@pytest.mark.parametrize("outputs", [["OUTPUT0", "OUTPUT1"], []], ids=["named", "all"])
def test_cpp_infer(server, outputs):
    """simple_grpc_infer_client, async_infer_client, keepalive and custom_args: InferMulti too."""
    calls = [
        server.triton.start("simple", SIMPLE, outputs=outputs, request_id=str(n)) for n in range(3)
    ]
    for number, call in enumerate(calls):
        assert call.result().id == str(number)
        check_raw(call.result())
    (statistics,) = server.triton.statistics("simple")
    assert statistics.inference_stats.success.count >= 3


@pytest.mark.triton("examples: C++", declared="trace settings")
def test_cpp_trace(server):
    request = pb.TraceSettingRequest(model_name="simple")
    assert server.triton.stub.TraceSetting(request, timeout=30).settings
    request.settings["trace_rate"].value.append("1")
    expect_error(lambda: server.triton.stub.TraceSetting(request, timeout=30), "UNIMPLEMENTED", "")


@pytest.mark.triton("examples: Java")
def test_java_simple_client(server):
    """SimpleJavaClient: typed contents, no requested outputs, raw output contents."""
    assert server.triton.is_live()
    message = make_request("simple", SIMPLE, typed=True)
    check_raw(server.triton.stub.ModelInfer(message, timeout=30))


@pytest.mark.triton("examples: Java")
def test_java_stream_client(server):
    """StreamJavaClient: typed contents in a stream."""
    messages = [make_request("simple", SIMPLE, typed=True, request_id=str(n)) for n in range(5)]
    responses = list(server.triton.stream(messages))
    assert [r.infer_response.id for r in responses] == ["0", "1", "2", "3", "4"]
    for response in responses:
        check_raw(response.infer_response)


@pytest.mark.triton("examples: Go")
def test_go_simple_client(server):
    assert server.triton.is_live()
    assert server.triton.is_ready()
    metadata = server.triton.metadata("simple")
    assert [i.datatype for i in metadata.inputs] == ["INT32"] * 2
    message = make_request("simple", SIMPLE, outputs=["OUTPUT0", "OUTPUT1"])
    check_raw(server.triton.stub.ModelInfer(message, timeout=30))


@pytest.mark.triton("examples: Go", cause="error texts")
def test_go_text(server):
    """The example's second request, which sends texts to the model of numbers."""
    texts = np.array([[b"hello", b"world!"]], object)
    expect_error(
        lambda: server.triton.infer("simple", {"INPUT0": ("BYTES", texts)}, outputs=["OUTPUT0"]),
        "INVALID_ARGUMENT",
        "expected 2 inputs but got 1 inputs for model 'simple'",
        "'simple' expects 'INT32'",
    )


@pytest.fixture(scope="module")
def javascript(server, tmp_path_factory):
    node, modules = shutil.which("node"), node_modules()
    if node is None or modules is None:
        pytest.skip("no node with @grpc/grpc-js; name its folder: NODE_MODULES")
    protos = tmp_path_factory.mktemp("protos")
    shutil.copytree(PROTOS, protos / "neurona_protos")
    done = subprocess.run(
        [node, JAVASCRIPT, server.address, protos, modules],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def node_modules():
    """Return the folder of node's packages that NODE_MODULES names, if it has those of gRPC."""
    folder = Path(os.environ.get("NODE_MODULES", "none")).absolute()
    return folder if (folder / "@grpc" / "proto-loader").is_dir() else None


@pytest.mark.triton("examples: JavaScript")
def test_javascript(javascript):
    assert (javascript["live"], javascript["ready"]) == (True, True)
    assert javascript["metadata"]["name"] == "simple"
    assert [i["shape"] for i in javascript["metadata"]["inputs"]] == [["-1", "16"]] * 2
    assert javascript["outputs"] == [(LEFT[0] * 2).tolist(), [0] * 16]
