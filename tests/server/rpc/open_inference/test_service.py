import grpc
import numpy as np
import pytest
from support import onnx_models
from support.triton_requests import DTYPES, arrays, raw, request

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy

ROWS = np.array([[1, 2, 3, 4], [-4, -3, -2, -1], [0, 0, 0, 0]], np.float32)
VALUES = {
    "BOOL": [[True, False], [False, True]],
    "UINT8": [[0, 255], [1, 2]],
    "UINT16": [[0, 65535], [1, 2]],
    "UINT32": [[0, 2**32 - 1], [1, 2]],
    "UINT64": [[0, 2**64 - 1], [1, 2]],
    "INT8": [[-128, 127], [0, 1]],
    "INT16": [[-(2**15), 2**15 - 1], [0, 1]],
    "INT32": [[-(2**31), 2**31 - 1], [0, 1]],
    "INT64": [[-(2**63), 2**63 - 1], [0, 1]],
    "FP16": [[0.5, -65504], [np.inf, 6e-8]],
    "FP32": [[0.1, -3e38], [np.inf, 1e-45]],
    "FP64": [[0.1, -1e308], [np.inf, 5e-324]],
    "BF16": [[0x3F80, 0xC000], [0x7F80, 1]],
    "BYTES": [[b"", b"one"], ["über".encode(), b"a\0b"]],
}
CONTENTS_FIELDS = {
    "BOOL": "bool",
    "UINT8": "uint",
    "UINT16": "uint",
    "UINT32": "uint",
    "UINT64": "uint64",
    "INT8": "int",
    "INT16": "int",
    "INT32": "int",
    "INT64": "int64",
    "FP32": "fp32",
    "FP64": "fp64",
    "BYTES": "bytes",
}


def classify(rows=ROWS, version="1"):
    return request("classifier", version, x=("FP32", rows))


def typed(kind, values, shape=(2, 2)):
    message = ModelInferRequest(model_name=f"echo_{kind}")
    tensor = message.inputs.add(name="x", datatype=kind, shape=shape)
    getattr(tensor.contents, CONTENTS_FIELDS[kind] + "_contents").extend(values)
    return message


def with_strings(data):
    message = request("echo_BYTES", x=("BYTES", [[b"a", b"b"]]))
    message.raw_input_contents[0] = data
    return message


@pytest.mark.parametrize("kind", DTYPES)
def test_every_datatype_is_returned_raw_as_it_was_sent(echo_server, kind):
    response = echo_server.triton.ModelInfer(
        request(f"echo_{kind}", x=(kind, VALUES[kind])), timeout=10
    )
    assert [tensor.datatype for tensor in response.outputs] == [kind]
    expected = np.array(VALUES[kind], DTYPES[kind])
    assert arrays(response)["echo"].tobytes() == expected.tobytes()


def test_strings_are_returned_raw(echo_server):
    response = echo_server.triton.ModelInfer(
        request("echo_BYTES", x=("BYTES", VALUES["BYTES"])), timeout=10
    )
    assert arrays(response)["echo"].tolist() == VALUES["BYTES"]


@pytest.mark.parametrize("kind", CONTENTS_FIELDS)
def test_typed_contents_equal_raw_contents(echo_server, kind):
    flat = [value for row in VALUES[kind] for value in row]
    sent_typed = echo_server.triton.ModelInfer(typed(kind, flat), timeout=10)
    sent_raw = echo_server.triton.ModelInfer(
        request(f"echo_{kind}", x=(kind, VALUES[kind])), timeout=10
    )
    assert sent_typed == sent_raw
    assert sent_typed.raw_output_contents


def test_a_response_has_model_version_and_id(server):
    message = request("classifier", x=("FP32", ROWS))
    message.id = "mine 🦖"
    response = server.triton.ModelInfer(message, timeout=10)
    assert (response.model_name, response.model_version) == ("classifier", "2")
    assert response.id == "mine 🦖"
    assert arrays(response)["probabilities"].shape == (3, 3)


@pytest.mark.parametrize(
    ("version", "answered"), [("", "2"), ("1", "1"), ("01", "1"), ("2", "2"), ("latest", "2")]
)
def test_a_version_is_a_number_a_label_or_the_servers_choice(server, version, answered):
    response = server.triton.ModelInfer(classify(version=version), timeout=10)
    assert response.model_version == answered


def test_outputs_equal_those_of_neurona_v1(server):
    theirs = arrays(server.triton.ModelInfer(classify(), timeout=10))["probabilities"]
    logits = ROWS @ onnx_models.WEIGHTS
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(theirs, exponents / exponents.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_model_without_a_batch_axis(server):
    response = server.triton.ModelInfer(request("fixed", x=("FP32", [[1, 2]])), timeout=10)
    assert arrays(response)["twice"].tolist() == [[2, 4]]


def test_an_optional_input_may_be_absent(echo_server):
    def ask(**more):
        message = request("adjustable", x=("FP32", [[1, 2], [3, 4]]), **more)
        return arrays(echo_server.triton.ModelInfer(message, timeout=10))["y"].tolist()

    assert ask() == [[2, 4], [6, 8]]
    assert ask(scale=("FP32", [10])) == [[10, 20], [30, 40]]


def test_outputs_are_the_requested_ones(server):
    message = classify()
    message.outputs.add(name="probabilities")
    response = server.triton.ModelInfer(message, timeout=10)
    assert [tensor.name for tensor in response.outputs] == ["probabilities"]


def with_output(*names, **parameters):
    message = classify()
    for name in names:
        output = message.outputs.add(name=name)
        for key, value in parameters.items():
            output.parameters[key].int64_param = value
    return message


def with_parameter(key, field, value, message=None):
    message = message or classify()
    setattr(message.parameters[key], field, value)
    return message


def changed(change, message=None):
    message = message or classify()
    change(message)
    return message


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (
            ModelInferRequest(model_name="nobody"),
            "NOT_FOUND",
            "Request for unknown model: 'nobody' is not found",
        ),
        (ModelInferRequest(), "NOT_FOUND", "Request for unknown model: '' is not found"),
        (
            classify(version="7"),
            "NOT_FOUND",
            "Request for unknown model: 'classifier' version 7 is not found",
        ),
        (classify(version="0"), "NOT_FOUND", "version 0 is not found: versions are counted"),
        (classify(version="-1"), "NOT_FOUND", "has no label '-1'; its labels: latest"),
        (classify(version="9" * 5000), "NOT_FOUND", "has no label"),
        (classify(version="²"), "NOT_FOUND", "has no label '²'"),
        (
            request("classifier", x=("FP64", ROWS)),
            "INVALID_ARGUMENT",
            "inference input 'x' data-type is 'FP64', but model 'classifier' expects 'FP32'",
        ),
        (
            request("classifier", x=("FP32", ROWS[:, :2])),
            "INVALID_ARGUMENT",
            "unexpected shape for input 'x' for model 'classifier'. Expected [-1,4], got [3,2]: "
            "input 'x' is FP32 of shape [3, 2] (expected FP32 of shape [batch, 4])",
        ),
        (request("classifier", x=("FP32", ROWS[:0])), "INVALID_ARGUMENT", "shape [0, 4]"),
        (
            request("classifier", y=("FP32", ROWS)),
            "INVALID_ARGUMENT",
            "unexpected inference input 'y' for model 'classifier': the request has inputs 'y' "
            "(expected 'x' (FP32 of shape [batch, 4]))",
        ),
        (
            request("classifier"),
            "INVALID_ARGUMENT",
            "Got input(s) [], but missing required input(s)",
        ),
        (
            request("classifier", x=("FP32", ROWS), y=("FP32", ROWS)),
            "INVALID_ARGUMENT",
            "unexpected inference input 'y' for model 'classifier': the request has "
            "inputs 'x', 'y'",
        ),
        (
            changed(lambda m: m.inputs.append(m.inputs[0])),
            "INVALID_ARGUMENT",
            "duplicate input 'x'",
        ),
        (
            changed(lambda m: setattr(m.inputs[0], "datatype", "FLOAT")),
            "INVALID_ARGUMENT",
            "input 'x' has datatype 'FLOAT' (expected one of BOOL, UINT8",
        ),
        (
            changed(lambda m: m.raw_input_contents.append(b"")),
            "INVALID_ARGUMENT",
            "the request has 2 raw_input_contents (expected 1",
        ),
        (
            changed(lambda m: m.ClearField("raw_input_contents")),
            "INVALID_ARGUMENT",
            "input 'x' has 0 elements in fp32_contents (expected 12 for shape [3, 4]",
        ),
        (
            changed(lambda m: m.raw_input_contents.__setitem__(0, b"123")),
            "INVALID_ARGUMENT",
            "input byte size mismatch for input 'x' for model 'classifier'. Expected 48, got 3 "
            "(FP32 of shape [3, 4])",
        ),
        (
            changed(lambda m: m.inputs[0].contents.fp32_contents.append(1)),
            "INVALID_ARGUMENT",
            "contents field must not be specified when using raw_input_contents for 'x'",
        ),
        (
            changed(lambda m: m.inputs[0].contents.SetInParent()),
            "INVALID_ARGUMENT",
            "contents field must not be specified",
        ),
        (
            with_output("nothing"),
            "INVALID_ARGUMENT",
            "unexpected inference output 'nothing' for model 'classifier' (expected 'probabilitie",
        ),
        (
            with_output("probabilities", "probabilities"),
            "INVALID_ARGUMENT",
            "duplicate output 'probabilities'",
        ),
        (
            with_output("probabilities", classification=0),
            "INVALID_ARGUMENT",
            "'classification' is 0 (expected 1 or more",
        ),
        (
            with_output("probabilities", classification=-1),
            "INVALID_ARGUMENT",
            "'classification' is -1 (expected 0 or more",
        ),
        (
            with_parameter("sequence_id", "int64_param", 5),
            "UNIMPLEMENTED",
            "parameter 'sequence_id': stateful sequences are not supported",
        ),
        (with_parameter("sequence_id", "string_param", "a"), "UNIMPLEMENTED", "'sequence_id'"),
        (
            with_parameter("sequence_start", "bool_param", True),
            "INVALID_ARGUMENT",
            "must specify a non-zero or non-empty correlation ID",
        ),
        (with_parameter("sequence_end", "bool_param", True), "INVALID_ARGUMENT", "is missing, 0"),
        (
            with_parameter("sequence_id", "bool_param", True),
            "INVALID_ARGUMENT",
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param",
        ),
        (
            with_parameter("triton_final_response", "bool_param", True),
            "INVALID_ARGUMENT",
            "parameter keys starting with 'triton_' are reserved for Triton usage",
        ),
        (
            with_parameter("priority", "string_param", "high"),
            "INVALID_ARGUMENT",
            "parameter 'priority' is a string_param (expected int64_param or uint64_param",
        ),
        (with_parameter("priority", "int64_param", -1), "INVALID_ARGUMENT", "-1 (expected 0"),
        (with_parameter("timeout", "int64_param", -1), "INVALID_ARGUMENT", "-1 (expected 0"),
        (with_parameter("timeout", "bool_param", True), "INVALID_ARGUMENT", "is a bool_param"),
    ],
)
def test_invalid_requests_are_rejected_with_value_and_expectation(
    server, rejection, message, code, text
):
    status, details = rejection(server.triton.ModelInfer, message)
    assert status == code
    assert text in details
    assert len(details) <= 2000


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            typed("INT8", [0, 1, 2, 128]),
            "'x' has elements from 0 to 128 (expected -128 to 127 for INT8",
        ),
        (typed("UINT16", [0, 1, 2, 65536]), "expected 0 to 65535 for UINT16"),
        (typed("FP32", [1, 2, 3]), "'x' has 3 elements in fp32_contents (expected 4 for shape"),
        (typed("FP32", [1], (2**40, 2**40)), "expected 1208925819614629174706176"),
        (
            changed(lambda m: m.inputs[0].contents.int_contents.append(1), typed("FP32", [1] * 4)),
            "input 'x' has int_contents (expected fp32_contents or raw_input_contents for FP32",
        ),
        (
            changed(
                lambda m: m.inputs[0].contents.fp32_contents.extend([1] * 4),
                changed(
                    lambda m: m.ClearField("raw_input_contents"),
                    request("echo_FP16", x=("FP16", [[1, 2], [3, 4]])),
                ),
            ),
            "input 'x' is FP16, which can be sent in raw_input_contents only",
        ),
        (
            changed(
                lambda m: m.raw_input_contents.__setitem__(0, raw(np.array([b"a"], object))),
                request("echo_BYTES", x=("BYTES", [[b"a", b"b"]])),
            ),
            "unexpected number of string elements 1 for inference input 'x' for model "
            "'echo_BYTES', expecting 2: tensor 'x' has 5 bytes of data: too few for 2 strings",
        ),
        (
            with_strings(b"\1\0\0\0a" * 3),
            "unexpected number of string elements 3 for inference input 'x' for model "
            "'echo_BYTES', expecting 2: tensor 'x' has 5 bytes after its 2 strings",
        ),
        (
            with_strings(b"\4\0\0\0four\1\0"),
            "incomplete string length indicator for inference input 'x' for model 'echo_BYTES', "
            "expecting 4 bytes but only 2 bytes available",
        ),
        (
            with_strings(b"\4\0\0\0four\4\0\0\0abc"),
            "incomplete string data for inference input 'x' for model 'echo_BYTES', expecting "
            "string of length 4 but only 3 bytes available",
        ),
        (
            request("adjustable", scale=("FP32", [1])),
            "expected number of inputs between 1 and 2 but got 1 inputs for model 'adjustable'. "
            "Got input(s) ['scale'], but missing required input(s) ['x']",
        ),
        (
            request("sum", a=("FP32", [[1, 2]])),
            "expected 2 inputs but got 1 inputs for model 'sum'. Got input(s) ['a'], but missing "
            "required input(s) ['b']. Please provide all required input(s).",
        ),
        (
            request("sum", a=("FP32", [[1, 2]]), b=("FP32", [[1, 2]] * 3)),
            "input 'b' batch size does not match other inputs for 'sum': input 'b' is "
            "FP32 of shape [3, 2]: its 'batch' is 3, that of another input 1",
        ),
        (
            request("sum", a=("FP32", [[1, 2]]), b=("FP32", [1, 2])),
            "unexpected shape for input 'b' for model 'sum'. Expected [-1,2], got [2]: "
            "input 'b' is FP32 of shape [2] (expected FP32 of shape [batch, 2])",
        ),
    ],
)
def test_contents_that_do_not_fit_are_rejected(echo_server, rejection, message, text):
    code, details = rejection(echo_server.triton.ModelInfer, message)
    assert code == "INVALID_ARGUMENT"
    assert text in details


def test_invalid_messages_are_rejected(server, rejection):
    for name in ("ModelInfer", "ModelConfig"):
        method = server.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
        code, text = rejection(method, b"\xff\xff\xff")
        assert code == "INVALID_ARGUMENT"
        assert f"not an inference.{name}" in text


def test_a_failure_of_the_model_reveals_no_internals(server, rejection):
    error = rejection(server.triton.ModelInfer, request("picker", index=("INT64", [7])))
    assert error == ("INTERNAL", "the model failed on this request; the server's log says why")


@pytest.mark.parametrize("field", ["int64_param", "uint64_param"])
@pytest.mark.parametrize(
    ("priority", "level"), [(0, 1), (1, 0), (2, 1), (3, 2), (4, 2), (2**62, 2)]
)
def test_1_is_the_most_urgent_priority(make_server, wait_until, field, priority, level):
    server = make_server(start_models=False)
    call = server.triton.ModelInfer.future(with_parameter("priority", field, priority))
    queue = server.registry.resolve("classifier", 1).batcher.queue
    wait_until(lambda: queue.rows == 3)
    assert [len(level.lanes) for level in queue._levels] == [int(level == i) for i in range(3)]
    call.cancel()


def test_unknown_parameters_are_ignored(server):
    message = with_parameter("colour", "double_param", 1.5)
    with_parameter("triton_enable_empty_final_response", "bool_param", True, message)
    with_parameter("sequence_id", "int64_param", 0, message)
    with_parameter("timeout", "uint64_param", 0, message)
    assert server.triton.ModelInfer(message, timeout=10).outputs


def test_the_earlier_of_timeout_and_deadline_counts(make_server, wait_until):
    server = make_server(start_models=False)
    counts = {"model": "classifier", "version": "1"}
    message = with_parameter("timeout", "int64_param", 1000)
    late = server.triton.ModelInfer.future(message, timeout=60)
    message = with_parameter("timeout", "int64_param", 60_000_000)
    later = server.triton.ModelInfer.future(message, timeout=0.05)
    assert later.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # On a slow machine, the first may have been rejected on arrival.
    wait_until(lambda: server.count("requests_total", outcome="expired", **counts) >= 1)
    server.registry.resolve("classifier", 1).start()
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "deadline" in late.details()
    assert server.count("batch_rows_count", **counts) == 0


def test_a_full_queue_rejects_immediately_with_retry_after(make_server, wait_until):
    server = make_server(BatchPolicy(max_queue_rows=4), start_models=False)
    waiting = server.triton.ModelInfer.future(classify())
    wait_until(lambda: server.count("queue_rows", model="classifier", version="1") == 3)
    with pytest.raises(grpc.RpcError) as caught:
        server.triton.ModelInfer(classify(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(caught.value.trailing_metadata())["retry-after-ms"]) >= 1
    server.registry.resolve("classifier", 1).start()
    assert arrays(waiting.result(timeout=10))["probabilities"].shape == (3, 3)


def test_both_protocols_share_batches(make_server, wait_until):
    server = make_server(start_models=False)
    ours = server.prediction.Predict.future(
        PredictRequest(model="classifier", version=1, inputs=[to_tensor("x", ROWS)])
    )
    theirs = server.triton.ModelInfer.future(classify())
    counts = {"model": "classifier", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) == 6)
    server.registry.resolve("classifier", 1).start()
    best = arrays(theirs.result(timeout=10))["probabilities"].argmax(axis=1).tolist()
    assert [row.indices[0] for row in ours.result(timeout=10).classification.rows] == best
    assert server.count("batch_rows_count", **counts) == 1
