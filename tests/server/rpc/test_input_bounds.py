"""Values that a model does not take are INVALID_ARGUMENT, in every protocol and for their row."""

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models, triton_requests
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import (
    InputDescription,
    ModelMetadata,
    PredictRequest,
    PredictStreamRequest,
    StreamedRequest,
    Task,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
FLOAT, INT32, STRING = TensorProto.FLOAT, TensorProto.INT32, TensorProto.STRING
NAN, INFINITY = float("nan"), float("inf")
STEPS = 5


def save_patients(path, **described):
    """probabilities = softmax(x @ WEIGHTS) of four named columns; missing ones may become 0."""
    fill = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "x"], ["filled"]),
    ]
    fills = described.get("allow_nan", False)
    onnx_models.save(
        path,
        [
            *(fill if fills else []),
            helper.make_node("MatMul", ["filled" if fills else "x", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        {"x": (FLOAT, ["batch", 4])},
        {"probabilities": (FLOAT, ["batch", 3])},
        {"weights": onnx_models.WEIGHTS, "zero": np.float32(0)},
        ModelMetadata(
            task=Task.TASK_CLASSIFICATION,
            answer="probabilities",
            labels=onnx_models.LABELS,
            inputs=[
                InputDescription(
                    name="x", columns=["age", "pulse", "height", "weight"], **described
                )
            ],
        ),
    )


RESHAPED = """
max_batch_size: 8
input [
 { name: "sequence" data_type: TYPE_FP32 dims: [ 1, -1, 3 ] reshape { shape: [ -1, 3 ] } },
 { name: "lengths" data_type: TYPE_INT32 dims: [ 1 ] reshape { shape: [ ] } }
]
"""


def save_lstm(path, *, described=False, nodes=(), sequence="sequence", lengths="lengths"):
    """last = the last state of an LSTM over sequences (batch, time, 3), of which lengths tell."""
    metadata = ModelMetadata(
        inputs=[InputDescription(name="lengths", lengths_of="sequence", lengths_axis=1)]
    )
    onnx_models.save(
        path,
        [
            *nodes,
            helper.make_node("Transpose", [sequence], ["steps"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["steps", "w", "r", "", lengths], ["", "h"], hidden_size=2),
            helper.make_node("Squeeze", ["h", "direction"], ["last"]),
        ],
        {"sequence": (FLOAT, ["batch", "time", 3]), "lengths": (INT32, ["batch"])},
        {"last": (FLOAT, ["batch", 2])},
        {
            "w": np.ones((1, 8, 3), np.float32),
            "r": np.ones((1, 8, 2), np.float32),
            "direction": np.array([0]),
            "mean": np.float32(0.5),
            "longest": np.array(STEPS, np.int32),
        },
        metadata if described else None,
    )


def save_logarithms(path):
    """probabilities = log(relu(x)), which is -inf for what cannot be; its file says nothing."""
    onnx_models.save(
        path,
        [
            helper.make_node("Relu", ["x"], ["positive"]),
            helper.make_node("Log", ["positive"], ["probabilities"]),
        ],
        {"x": (FLOAT, ["batch", 3])},
        {"probabilities": (FLOAT, ["batch", 3])},
        metadata=ModelMetadata(task=Task.TASK_CLASSIFICATION, labels=onnx_models.LABELS),
    )


def save_towns(path):
    onnx_models.save(
        path,
        [helper.make_node("Identity", ["town"], ["same"])],
        {"town": (STRING, ["batch"])},
        {"same": (STRING, ["batch"])},
        metadata=ModelMetadata(
            inputs=[
                InputDescription(name="town", categories=["Bern", "Genf"], only_categories=True)
            ]
        ),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory, transport):
    root = tmp_path_factory.mktemp("bounds")
    save_patients(root / "patients" / "1" / "model.onnx", finite=True)
    save_patients(root / "filled" / "1" / "model.onnx", finite=True, allow_nan=True)
    for name, setting in (("lenient", "true"), ("strict", "false")):
        save_patients(root / name / "1" / "model.onnx", finite=name == "lenient")
        (root / name / "model.toml").write_text(f"[inputs.x]\nallow_nan = {setting}\n")
    save_lstm(root / "lstm" / "1" / "model.onnx", described=True)
    scaled = [helper.make_node("Sub", ["sequence", "mean"], ["scaled"])]
    save_lstm(root / "foreign" / "1" / "model.onnx", nodes=scaled, sequence="scaled")
    # A node whose axes are not followed: only ONNX Runtime finds the wrong length.
    hidden = [helper.make_node("CumSum", ["sequence", "direction"], ["sums"])]
    save_lstm(root / "opaque" / "1" / "model.onnx", nodes=hidden, sequence="sums")
    limited = [helper.make_node("Min", ["lengths", "longest"], ["own"])]
    save_lstm(root / "limited" / "1" / "model.onnx", nodes=limited, lengths="own")
    for name in ("reshaped", "described-reshaped"):
        save_lstm(root / name / "1" / "model.onnx", described=name != "reshaped")
        (root / name / "config.pbtxt").write_text(RESHAPED)
    save_logarithms(root / "logarithms" / "1" / "model.onnx")
    (root / "logarithms" / "model.toml").write_text("[inputs.x]\nallow_nan = false\n")
    save_towns(root / "towns" / "1" / "model.onnx")
    save_towns(root / "any-town" / "1" / "model.onnx")
    (root / "any-town" / "model.toml").write_text("[inputs.town]\nallow_unknown = true\n")
    server = InProcessServer(root, BatchPolicy(max_rows=8))
    yield server
    server.stop()


def patients(*rows, model="patients"):
    return PredictRequest(model=model, inputs=[to_tensor("x", np.array(rows, np.float32))])


def sequences(lengths, model):
    lengths = np.array(lengths, np.int32)
    steps = np.ones((len(lengths), STEPS, 3), np.float32)
    inputs = [to_tensor("sequence", steps), to_tensor("lengths", lengths)]
    return PredictRequest(model=model, inputs=inputs)


GOOD, LACKING = [1, 2, 3, 4], [1, NAN, 3, 4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, LACKING], "input 'x' row 1, column 'pulse': nan (expected a finite number)"),
        ([[0, 0, 0, -INFINITY]], "input 'x' row 0, column 'weight': -inf (expected a finite numb"),
        # In the second of three parts of a request that is larger than a batch.
        ([GOOD] * 9 + [LACKING] + [GOOD] * 8, "input 'x' row 9, column 'pulse': nan (expected"),
    ],
)
def test_a_number_that_is_not_finite_is_named_with_row_and_column(server, rejection, rows, message):
    for _ in range(2):  # the second one does not match a template that the first has left
        code, details = rejection(server.prediction.Predict, patients(*rows))
        assert (code, details[: len(message)]) == ("INVALID_ARGUMENT", message)
    assert server.prediction.Predict(patients(GOOD)).classification.rows[0].labels


def test_the_fast_path_and_modelinfer_check_values_too(server, rejection):
    for _ in range(3):
        server.prediction.Predict(patients(GOOD))
        server.triton.ModelInfer(triton_requests.request("patients", x=("FP32", [GOOD])))
    before = server.count("requests_total", model="patients", version="1", outcome="invalid")
    lacking = triton_requests.request("patients", x=("FP32", [LACKING]))
    for method, request in (
        (server.prediction.Predict, patients(LACKING)),
        (server.prediction.Classify, patients(LACKING)),
        (server.triton.ModelInfer, lacking),
    ):
        code, details = rejection(method, request)
        assert code == "INVALID_ARGUMENT"
        assert details.startswith("input 'x' row 0, column 'pulse': nan")
    after = server.count("requests_total", model="patients", version="1", outcome="invalid")
    assert after == before + 3
    (streamed,) = server.triton.ModelStreamInfer(iter([lacking]), timeout=30)
    assert "column 'pulse': nan" in streamed.error_message


def test_no_neighbour_in_a_batch_or_a_stream_suffers(server):
    server.prediction.Predict(patients(GOOD))  # leaves a template: alike requests are coalesced
    requests = [patients(LACKING if number % 5 == 3 else GOOD) for number in range(40)]
    calls = [server.prediction.Predict.future(request, timeout=30) for request in requests]
    codes = [call.code() for call in calls]
    expected = [
        grpc.StatusCode.INVALID_ARGUMENT if number % 5 == 3 else grpc.StatusCode.OK
        for number in range(40)
    ]
    assert codes == expected
    message = PredictStreamRequest(
        requests=[StreamedRequest(id=n, request=one) for n, one in enumerate(requests)]
    )
    responses = {
        one.id: one
        for response in server.prediction.PredictStream(iter([message]), timeout=30)
        for one in response.responses
    }
    assert {n for n, one in responses.items() if one.error.code == INVALID} == {*range(3, 40, 5)}
    assert all(responses[n].response.classification.rows for n in range(40) if n % 5 != 3)
    assert responses[3].error.message.startswith("input 'x' row 0, column 'pulse': nan")


def test_missing_values_are_taken_where_the_model_fills_them_in(server, rejection):
    for model in ("filled", "lenient"):  # by its metadata, by its settings
        assert server.prediction.Predict(patients(LACKING, model=model)).classification.rows
        code, details = rejection(server.prediction.Predict, patients([INFINITY] * 4, model=model))
        assert (code, "or NaN for a missing one" in details) == ("INVALID_ARGUMENT", True)
    code, _ = rejection(server.prediction.Predict, patients(LACKING, model="strict"))
    assert code == "INVALID_ARGUMENT"  # a file that says nothing, with allow_nan = false


@pytest.mark.parametrize("model", ["lstm", "foreign", "opaque"])
@pytest.mark.parametrize("wrong", [-1, STEPS + 1, 2**31 - 1])
def test_a_length_that_no_sequence_has_is_named(server, rejection, model, wrong):
    assert server.prediction.Predict(sequences([1, STEPS], model)).outputs
    good = server.prediction.Predict.future(sequences([2, 3], model), timeout=30)
    code, details = rejection(server.prediction.Predict, sequences([STEPS, wrong, 1], model))
    assert code == "INVALID_ARGUMENT"
    if model == "opaque" and wrong > 0:
        assert "the lengths of sequences" in details
    else:
        assert details.startswith(f"input 'lengths' row 1: length {wrong} (expected ")
    if model != "opaque":
        assert details.endswith(f"to {STEPS}, the steps of 'sequence')")
    assert good.result().outputs


@pytest.mark.parametrize("model", ["foreign", "lstm"])
def test_an_empty_sequence_is_rejected(server, rejection, model):
    code, details = rejection(server.prediction.Predict, sequences([0, 1], model))
    assert code == "INVALID_ARGUMENT"
    assert "row 0: length 0 (expected 1 to 5" in details


def test_lengths_that_the_graph_limits_itself_are_taken(server):
    expected = server.prediction.Predict(sequences([STEPS, 2], "limited")).outputs
    assert server.prediction.Predict(sequences([1000, 2], "limited")).outputs == expected


@pytest.mark.parametrize("model", ["reshaped", "described-reshaped"])
def test_lengths_are_those_of_the_shape_in_the_graph(server, rejection, model):
    def request(*lengths):
        steps = np.ones((len(lengths), 1, STEPS, 3), np.float32)
        own = np.array(lengths, np.int32)[:, None]
        inputs = [to_tensor("sequence", steps), to_tensor("lengths", own)]
        return PredictRequest(model=model, inputs=inputs)

    assert server.prediction.Predict(request(2, STEPS)).outputs
    code, details = rejection(server.prediction.Predict, request(2, STEPS + 1))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("input 'lengths' row 1: length 6 (expected ")


def test_settings_of_an_input_say_nothing_about_the_answer(server, rejection):
    row = patients([1, -1, 2], model="logarithms")
    row.raw_outputs = True
    probabilities = to_array(server.prediction.Predict(row).outputs[0])
    np.testing.assert_allclose(probabilities, [[0, -INFINITY, np.log(2)]])
    code, _ = rejection(server.prediction.Predict, patients([1, NAN, 2], model="logarithms"))
    assert code == "INVALID_ARGUMENT"


def test_an_unknown_category_is_named_with_the_known_ones(server, rejection):
    def towns(model, *names):
        return PredictRequest(model=model, inputs=[to_tensor("town", np.array(names, object))])

    code, details = rejection(server.prediction.Predict, towns("towns", "Bern", "Genv"))
    assert code == "INVALID_ARGUMENT"
    assert details == (
        "input 'town' row 1: 'Genv' (expected one of 'Bern', 'Genf'; did you mean 'Genf'?)"
    )
    assert server.prediction.Predict(towns("any-town", "Genv")).outputs


def test_an_answer_that_is_not_finite_is_an_error_of_its_row_alone(server, rejection):
    huge = [3.4e38, 3.4e38, -3.4e38, -3.4e38]  # finite, and their products are not
    server.prediction.Predict(patients(GOOD))
    code, details = rejection(server.prediction.Predict, patients(*[GOOD] * 9, huge))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("row 9: the answer is not finite (expected inputs closer")
    requests = [patients(huge if number in (3, 20) else GOOD) for number in range(40)]
    labels = {"model": "patients", "version": "1"}
    before = server.count("rows_total", **labels)
    message = PredictStreamRequest(
        requests=[StreamedRequest(id=n, request=one) for n, one in enumerate(requests)]
    )
    responses = {
        one.id: one
        for response in server.prediction.PredictStream(iter([message]), timeout=30)
        for one in response.responses
    }
    assert {n for n, one in responses.items() if one.error.code == INVALID} == {3, 20}
    assert all(responses[n].response.classification.rows for n in range(40) if n not in (3, 20))
    assert server.count("rows_total", **labels) == before + 40  # none of them ran twice
    assert server.count("requests_total", **labels, outcome="invalid") >= 3
