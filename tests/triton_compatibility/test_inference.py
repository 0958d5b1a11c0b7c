"""L0_infer, L0_infer_variable, L0_nan_inf, L0_large_payload, L0_parameters, L0_grpc: requests."""

import threading

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from onnx import TensorProto, helper
from support import onnx_models, triton_models
from support.triton_calls import TritonCaller, expect_error, make_request, values_of

from neurona_protos import open_inference_pb2 as pb

LETTERS = {
    "b": "INT8",
    "s": "INT16",
    "i": "INT32",
    "l": "INT64",
    "u": "UINT8",
    "h": "FP16",
    "f": "FP32",
    "o": "BYTES",
}
NAMES = ["TOKEN/_add:0", "ä name", "x" * 300]
QUICK = ["iii", "fff", "ooo"]
SLOW = [
    *("bbb", "sss", "lll", "uuu", "hhh", "hff", "bii", "ibb", "ibs", "fuu", "uff", "fuh", "iff"),
    *("fii", "ihs", "oii", "oio", "ooi", "ioo", "iio", "ioi"),
]
TRIPLES = [*QUICK, *[pytest.param(triple, marks=pytest.mark.slow) for triple in SLOW]]


def types_of(triple):
    kinds = [LETTERS[letter] for letter in triple]
    return kinds[0], (kinds[1], kinds[2])


def save_triple(root, triple):
    """Save three versions, of which 2 and 3 swap the outputs, and a model without batches."""
    input_type, outputs = types_of(triple)
    for version in (1, 2, 3):
        path = root / triple / str(version) / "model.onnx"
        triton_models.save_add_sub(path, input_type, outputs, swap=version > 1)
    policy = {
        "iii": "version_policy { all {} }",
        "fff": "version_policy { specific { versions: [ 1, 3 ] } }",
        "ooo": "version_policy { specific { versions: [ 1 ] } }",
        "sss": "version_policy { latest { num_versions: 2 } }",
    }.get(triple, "")
    triton_models.write_config(
        root / triple, triton_models.add_sub_config(input_type, outputs, more=policy)
    )
    name = f"{triple}_nobatch"
    triton_models.save_add_sub(root / name / "1" / "model.onnx", input_type, outputs, batched=False)
    config = triton_models.add_sub_config(input_type, outputs, max_batch_size=0)
    triton_models.write_config(root / name, config)


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    for triple in QUICK:
        save_triple(root, triple)
    onnx_models.save_echo(root / "echo" / "1" / "model.onnx", "FP32")
    triton_models.save_add_sub(
        root / "variable" / "1" / "model.onnx", "FP32", ("FP32", "FP32"), size="n"
    )
    config = triton_models.add_sub_config("FP32", ("FP32", "FP32"), size=-1)
    triton_models.write_config(root / "variable", config)
    triton_models.save_slow_identity(root / "slow" / "1" / "model.onnx")
    kind = TensorProto.FLOAT
    onnx_models.save(
        root / "named" / "1" / "model.onnx",
        [helper.make_node("Neg", ["x/" + name], [name]) for name in NAMES],
        {"x/" + name: (kind, ["batch", 2]) for name in NAMES},
        {name: (kind, ["batch", 2]) for name in NAMES},
    )
    return serve(root, "--threads", "1").triton


@pytest.fixture(scope="module")
def all_types(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("all_types")
    for triple in SLOW:
        save_triple(root, triple)
    return serve(root, "--threads", "1").triton


@pytest.fixture
def triton(request, server):
    triple = request.node.callspec.params.get("triple") if hasattr(request.node, "callspec") else ""
    return request.getfixturevalue("all_types") if triple in SLOW else server


def as_numbers(array):
    if array.dtype == object:
        return np.array([int(text) for text in array.ravel()]).reshape(array.shape)
    return array.astype(np.int64)


def check(triton, model, triple, shape, *, swap, **options):
    """Send a request and check both outputs, and the version if the request names one."""
    input_type, output_types = types_of(triple)
    left, right = values_of(input_type, shape, 12), values_of(input_type, shape, count=12)
    inputs = {"INPUT0": (input_type, left), "INPUT1": (input_type, right)}
    response = triton.infer(model, inputs, **options)
    expected = [as_numbers(left) + as_numbers(right), as_numbers(left) - as_numbers(right)]
    if swap:
        expected.reverse()
    names = ("OUTPUT0", "OUTPUT1")
    for name, kind, result in zip(names, output_types, expected, strict=True):
        tensor = next(t for t in response.message.outputs if t.name == name)
        assert (tensor.datatype, [*tensor.shape]) == (kind, [*shape])
        assert (as_numbers(response.arrays[name]) == result).all()
    if "version" in options:
        assert response.message.model_version == options["version"]
    return response


@pytest.mark.triton("L0_infer")
@pytest.mark.parametrize("triple", TRIPLES)
def test_raw(triton, triple):
    for shape in ((1, 16), (8, 16)):
        check(triton, triple, triple, shape, swap=triple != "ooo")
    check(triton, f"{triple}_nobatch", triple, (16,), swap=False)


@pytest.mark.triton("L0_infer")
@pytest.mark.parametrize("triple", TRIPLES)
def test_stream(triton, triple):
    input_type, _ = types_of(triple)
    values = values_of(input_type, (2, 16))
    inputs = {"INPUT0": (input_type, values), "INPUT1": (input_type, values)}
    requests = [make_request(triple, inputs, request_id=str(n)) for n in range(3)]
    responses = list(triton.stream(requests))
    assert [r.infer_response.id for r in responses] == ["0", "1", "2"]
    assert not any(r.error_message for r in responses)


@pytest.mark.triton("L0_infer")
@pytest.mark.parametrize("triple", [t for t in TRIPLES if "h" not in str(t)])
def test_typed_contents(triton, triple):
    if "h" not in triple[:1]:
        check(triton, triple, triple, (2, 16), swap=triple != "ooo", typed=True)


@pytest.mark.triton("L0_infer")
@pytest.mark.parametrize(
    ("triple", "served"),
    [
        ("iii", {"1", "2", "3"}),
        ("fff", {"1", "3"}),
        ("ooo", {"1"}),
        pytest.param("sss", {"2", "3"}, marks=pytest.mark.slow),
        pytest.param("bbb", {"3"}, marks=pytest.mark.slow),
    ],
)
def test_version_policies(triton, triple, served):
    shape = (1, 16)
    for version in ("1", "2", "3"):
        if version in served:
            check(triton, triple, triple, shape, swap=version != "1", version=version)
            continue
        expect_error(
            lambda v=version: check(triton, triple, triple, shape, swap=True, version=v),
            "NOT_FOUND",
            "Request for unknown model",
        )


@pytest.mark.triton("L0_infer_variable")
@pytest.mark.parametrize("size", [16, 1, 5])
def test_variable_sizes(server, size):
    for rows in (1, 8):
        check(server, "variable", "fff", (rows, size), swap=False)


@pytest.mark.triton("L0_nan_inf")
def test_nan_and_infinity(server):
    values = np.array([[np.nan, np.inf, -np.inf, 0]], np.float32)
    echo = server.infer("echo", {"x": ("FP32", values)}).arrays["echo"]
    assert echo.tobytes() == values.tobytes()


@pytest.mark.slow
@pytest.mark.triton("L0_large_payload")
def test_large_payload(server):
    values = np.arange(12 << 20, dtype=np.float32).reshape(1, -1)
    request = make_request("echo", {"x": ("FP32", values)})
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as channel:
        response = TritonCaller(channel).stub.ModelInfer(request, timeout=60)
    assert response.raw_output_contents[0] == values.tobytes()


@pytest.mark.triton("L0_large_payload", declared="size of a message")
def test_larger_than_a_message(server):
    values = np.zeros((1, 17 << 20), np.float32)
    expect_error(
        lambda: server.infer("echo", {"x": ("FP32", values)}), "RESOURCE_EXHAUSTED", "larger"
    )


def ones(model, **options):
    inputs = {f"INPUT{i}": ("INT32", np.ones((1, 16), np.int32)) for i in range(2)}
    return make_request(model, inputs, **options)


@pytest.mark.triton("L0_parameters")
@pytest.mark.parametrize(
    "parameters",
    [
        {"key1": "value1", "key2": "value2"},
        {"key1": 1, "key2": 2},
        {"key1": 123.123, "key2": 321.321},
        {"key1": True, "key2": "value2"},
    ],
    ids=["texts", "integers", "doubles", "mixed"],
)
def test_own_parameters_are_accepted(server, parameters):
    server.stub.ModelInfer(ones("iii", parameters=parameters), timeout=30)


@pytest.mark.triton("L0_parameters")
def test_reserved_parameters(server):
    request = ones("iii", parameters={"triton_": True})
    expect_error(
        lambda: server.stub.ModelInfer(request, timeout=30),
        "INVALID_ARGUMENT",
        "parameter keys starting with 'triton_' are reserved for Triton usage and should not be "
        "specified",
    )


@pytest.mark.triton("L0_grpc")
@pytest.mark.parametrize("request_id", ["", "7", "ünïcode", "x" * 200])
def test_ids_come_back(server, request_id):
    assert server.stub.ModelInfer(ones("iii", request_id=request_id), timeout=30).id == request_id


@pytest.mark.triton("L0_grpc")
@pytest.mark.parametrize("outputs", [["OUTPUT0"], ["OUTPUT1"], ["OUTPUT1", "OUTPUT0"]])
def test_requested_outputs_in_their_order(server, outputs):
    response = server.stub.ModelInfer(ones("iii", outputs=outputs), timeout=30)
    assert [output.name for output in response.outputs] == outputs


@pytest.mark.triton("L0_grpc")
def test_outputs_of_a_request_without_any(server):
    response = server.stub.ModelInfer(ones("iii"), timeout=30)
    assert [output.name for output in response.outputs] == ["OUTPUT0", "OUTPUT1"]


@pytest.mark.triton("L0_grpc")
@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(server, algorithm):
    response = server.stub.ModelInfer(ones("iii"), timeout=30, compression=algorithm)
    assert len(response.outputs) == 2


@pytest.mark.triton("L0_grpc")
def test_errors_in_a_stream(server):
    responses = list(server.stream([ones("iii"), ones("nobody", request_id="x"), ones("iii")]))
    assert [bool(r.error_message) for r in responses] == [False, True, False]
    assert "Request for unknown model: 'nobody' is not found" in responses[1].error_message
    assert responses[1].infer_response.id == "x"


@pytest.mark.triton("L0_grpc")
def test_statuses_in_a_stream_on_request(server):
    responses = server.stub.ModelStreamInfer(
        iter([ones("nobody")]), timeout=30, metadata=[("triton_grpc_error", "true")]
    )
    expect_error(lambda: next(responses), "NOT_FOUND", "Request for unknown model: 'nobody'")


@pytest.mark.triton("L0_grpc")
def test_empty_final_response(server):
    request = ones("iii", parameters={"triton_enable_empty_final_response": True})
    (response,) = server.stream([request])
    assert response.infer_response.parameters["triton_final_response"].bool_param


@pytest.mark.triton("L0_output_name")
@pytest.mark.parametrize("name", NAMES)
def test_names_of_tensors(server, name):
    values = np.ones((1, 2), np.float32)
    inputs = {"x/" + one: ("FP32", values) for one in NAMES}
    response = server.infer("named", inputs, outputs=[name])
    assert (response.arrays[name] == -values).all()


@pytest.mark.triton("L0_health")
def test_health_service(server):
    for service in ("", "inference.GRPCInferenceService"):
        response = server.health.Check(HealthCheckRequest(service=service), timeout=30)
        assert response.status == HealthCheckResponse.SERVING


@pytest.mark.triton("L0_client_timeout")
def test_deadlines(server):
    inputs = {"INPUT0": ("FP32", np.ones((1, 1), np.float32))}
    late = ("DEADLINE_EXCEEDED", "Deadline Exceeded")
    expect_error(lambda: server.infer("slow", inputs, timeout=0.02), *late)
    expect_error(lambda: list(server.stream([make_request("slow", inputs)], timeout=0.02)), *late)


@pytest.mark.triton("L0_client_timeout")
@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("ServerLive", pb.ServerLiveRequest()),
        ("ServerReady", pb.ServerReadyRequest()),
        ("ServerMetadata", pb.ServerMetadataRequest()),
        ("ModelMetadata", pb.ModelMetadataRequest(name="iii")),
        ("ModelConfig", pb.ModelConfigRequest(name="iii")),
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
        ("ModelStatistics", pb.ModelStatisticsRequest()),
    ],
)
def test_deadlines_that_are_over(server, method, request_message):
    expect_error(
        lambda: getattr(server.stub, method)(request_message, timeout=-1),
        "DEADLINE_EXCEEDED",
        "Deadline Exceeded",
    )


@pytest.mark.triton("L0_request_cancellation")
def test_cancelled_calls(server):
    inputs = {"INPUT0": ("FP32", np.ones((1, 1), np.float32))}
    calls = [server.start("slow", inputs) for _ in range(4)]
    for call in calls:
        call.cancel()
        assert call.code() == grpc.StatusCode.CANCELLED
    assert server.infer("slow", inputs).arrays["OUTPUT0"] == 1


@pytest.mark.triton("L0_request_cancellation")
def test_a_cancelled_stream(server):
    inputs = {"INPUT0": ("FP32", np.ones((1, 1), np.float32))}
    stop = threading.Event()

    def requests():
        yield make_request("slow", inputs)
        stop.wait(60)

    responses = server.stub.ModelStreamInfer(requests(), timeout=60)
    next(responses)
    responses.cancel()
    stop.set()
    expect_error(lambda: next(responses), "CANCELLED", "")
