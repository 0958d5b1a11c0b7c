import threading

import grpc
import numpy as np
import pytest
from support import onnx_models

from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse, Tensor
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy

ROWS = np.array([[1, 2, 3, 4], [-4, -3, -2, -1], [0, 0, 0, 0]], np.float32)


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


PROBABILITIES = softmax(ROWS @ onnx_models.WEIGHTS)


def classify(rows=ROWS, **options):
    return PredictRequest(model="classifier", inputs=[to_tensor("x", rows)], **options)


def regress(rows=ROWS, **options):
    return PredictRequest(model="regressor", inputs=[to_tensor("series", rows)], **options)


def pick(*index):
    return PredictRequest(model="picker", inputs=[to_tensor("index", np.array(index))])


def error_of(method, request, **options):
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10, **options)
    return caught.value


def test_a_classification_gives_the_best_classes_of_each_row(server):
    response = server.prediction.Predict(classify(version=1, top_k=2))
    assert (response.model, response.version) == ("classifier", 1)
    assert not response.outputs
    for row, probabilities in zip(response.classification.rows, PROBABILITIES, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:2]
        assert list(row.indices) == best.tolist()
        assert list(row.labels) == [onnx_models.LABELS[i] for i in best]
        np.testing.assert_allclose(row.probabilities, probabilities[best], rtol=1e-5)


@pytest.mark.parametrize(("top_k", "classes"), [(0, 1), (1, 1), (3, 3), (1000, 3)])
def test_top_k_is_one_by_default_and_all_at_the_most(server, top_k, classes):
    response = server.prediction.Predict(classify(top_k=top_k))
    assert [len(row.labels) for row in response.classification.rows] == [classes] * 3


def test_a_regression_gives_the_named_values_of_each_row(server):
    regression = server.prediction.Predict(regress()).regression
    assert [(value.name, value.unit) for value in regression.values] == [("total", "kg")]
    assert [list(row.values) for row in regression.rows] == [[10], [-10], [0]]


def test_raw_outputs_come_on_request_and_for_a_model_without_a_task(server):
    response = server.prediction.Predict(classify(version=1, raw_outputs=True))
    np.testing.assert_allclose(to_array(response.outputs[0]), PROBABILITIES, rtol=1e-5)
    assert response.outputs[0].name == "probabilities"
    assert response.WhichOneof("answer") == "classification"
    response = server.prediction.Predict(pick(3, 1))
    assert to_array(response.outputs[0]).tolist() == [30, 10]
    assert response.WhichOneof("answer") is None


def test_the_response_names_the_version(server):
    answers = [
        server.prediction.Predict(classify(**which))
        for which in ({}, {"version": 1}, {"version": 2}, {"label": "latest"})
    ]
    assert [answer.version for answer in answers] == [2, 1, 2, 2]
    assert answers[1].classification != answers[2].classification


def test_typed_responses_equal_untyped_ones(server):
    predicted = server.prediction.Predict(classify(top_k=3))
    classified = server.prediction.Classify(classify(top_k=3))
    assert PredictResponse.FromString(classified.SerializeToString()) == predicted
    predicted = server.prediction.Predict(regress(raw_outputs=True))
    regressed = server.prediction.Regress(regress(raw_outputs=True))
    assert PredictResponse.FromString(regressed.SerializeToString()) == predicted


def test_a_wrong_task_is_rejected_clearly(server):
    error = error_of(server.prediction.Classify, regress())
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "'regressor' has no classification output: its task is regre" in error.details()
    error = error_of(server.prediction.Regress, pick(1))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "tensors only (use Predict)" in error.details()


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (PredictRequest(model="nobody"), "NOT_FOUND", "served: classifier, fixed, picker"),
        (PredictRequest(), "NOT_FOUND", "no model ''"),
        (PredictRequest(model="n" * 5000), "NOT_FOUND", "served: classifier, fixed"),
        (PredictRequest(model="🦖" * 2000), "NOT_FOUND", "served: classifier, fixed"),
        (classify(version=3), "NOT_FOUND", "version 3 does not exist; served: 1, 2"),
        (classify(version=-1), "NOT_FOUND", "version -1 does not exist"),
        (classify(label="x"), "NOT_FOUND", "its labels: latest"),
        (classify(priority=3), "INVALID_ARGUMENT", "priority is 3 (expected 0, 1 or 2)"),
        (PredictRequest(model="fixed"), "INVALID_ARGUMENT", "inputs none (expected 'x' (FLOAT"),
        (
            PredictRequest(model="fixed", inputs=[to_tensor("y", ROWS)]),
            "INVALID_ARGUMENT",
            "inputs 'y' (expected 'x'",
        ),
        (
            PredictRequest(model="fixed", inputs=[to_tensor("x", ROWS)] * 2),
            "INVALID_ARGUMENT",
            "duplicate input 'x'",
        ),
        (classify(ROWS.astype(float)), "INVALID_ARGUMENT", "is DOUBLE of shape [3, 4] (expected F"),
        (classify(ROWS[:, :3]), "INVALID_ARGUMENT", "[3, 3] (expected FLOAT of shape [batch, 4]"),
        (classify(ROWS[:0]), "INVALID_ARGUMENT", "FLOAT of shape [0, 4]"),
        (
            PredictRequest(model="classifier", inputs=[Tensor(name="x", dtype=1, shape=[1, 4])]),
            "INVALID_ARGUMENT",
            "'x' has 0 bytes of data (expected 16 for FLOAT of shape [1, 4])",
        ),
        (
            PredictRequest(
                model="regressor", inputs=[Tensor(name="series", dtype=1, shape=[2**40, 2**40])]
            ),
            "INVALID_ARGUMENT",
            "'series' has 0 bytes of data",
        ),
        (
            PredictRequest(
                model="classifier", inputs=[Tensor(name="x", dtype=8, shape=[8_000_000])]
            ),
            "INVALID_ARGUMENT",
            "'x' is STRING of shape [8000000] (expected FLOAT",
        ),
        (
            PredictRequest(
                model="regressor",
                inputs=[Tensor(name="series", dtype=1, shape=[1, 2**62])],
            ),
            "INVALID_ARGUMENT",
            "'series' has 0 bytes of data",
        ),
        (
            PredictRequest(model="classifier", inputs=[Tensor(name="x", shape=[-1, 4])]),
            "INVALID_ARGUMENT",
            "'x' is UNDEFINED of shape [-1, 4] (expected FLOAT",
        ),
    ],
)
def test_invalid_input_is_rejected_with_the_actual_and_the_expected_type(
    server, request_, code, message
):
    error = error_of(server.prediction.Predict, request_)
    assert error.code().name == code
    assert message in error.details()
    assert len(error.details()) <= 2000


def test_bytes_that_are_no_request_are_rejected(server):
    method = server.channel.unary_unary("/neurona.v1.Prediction/Predict")
    error = error_of(method, b"\xff\xff\xff")
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not a neurona.v1.PredictRequest" in error.details()


def test_a_message_that_is_too_large_is_rejected(server):
    error = error_of(server.prediction.Predict, regress(np.zeros((1, 1 << 19), np.float32)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("inline", [True, False])
def test_an_internal_failure_has_a_fixed_text_and_the_log_has_the_detail(
    make_server, caplog, inline
):
    server = make_server(BatchPolicy(inline=inline))  # its first failure: later ones are counted
    error = error_of(server.prediction.Predict, pick(7))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert error.details() == "the model failed on this request; the server's log says why"
    assert "indices element out of data bounds" in caplog.text
    assert list(to_array(server.prediction.Predict(pick(2)).outputs[0])) == [20]


def test_a_model_with_a_fixed_batch_of_one_is_served_one_by_one(server):
    request = PredictRequest(model="fixed", inputs=[to_tensor("x", ROWS[:1, :2])])
    calls = [server.prediction.Predict.future(request) for _ in range(20)]
    for call in calls:
        assert to_array(call.result().outputs[0]).tolist() == [[2, 4]]


def test_a_full_queue_rejects_immediately_with_a_retry_delay(make_server, wait_until):
    server = make_server(BatchPolicy(max_queue_rows=4), start_models=False)
    waiting = server.prediction.Predict.future(classify(version=1))
    wait_until(lambda: server.count("queue_rows", model="classifier", version="1") == 3)
    error = error_of(server.prediction.Predict, classify(version=1))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "3 of 4 rows" in error.details()
    assert "no room for 3 rows" in error.details()
    assert int(dict(error.trailing_metadata())["retry-after-ms"]) >= 1
    server.registry.resolve("classifier", 1).start()
    assert len(waiting.result(timeout=10).classification.rows) == 3


def test_a_deadline_that_passes_in_the_queue_is_counted_and_nothing_runs(make_server, wait_until):
    server = make_server(start_models=False)
    with pytest.raises(grpc.RpcError) as caught:
        server.prediction.Predict(classify(version=1), timeout=1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    counts = {"model": "classifier", "version": "1"}
    wait_until(lambda: server.count("requests_total", outcome="expired", **counts) == 1)
    server.registry.resolve("classifier", 1).start()
    wait_until(lambda: server.count("queue_rows", **counts) == 0)
    assert server.count("batch_rows_count", **counts) == 0


def test_a_cancelled_call_leaves_its_neighbours_alone(make_server, wait_until):
    server = make_server(start_models=False)
    calls = [server.prediction.Predict.future(classify(version=1)) for _ in range(3)]
    counts = {"model": "classifier", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) == 9)
    calls[1].cancel()
    wait_until(lambda: server.count("requests_total", outcome="cancelled", **counts) == 1)
    server.registry.resolve("classifier", 1).start()
    assert [len(calls[i].result(timeout=10).classification.rows) for i in (0, 2)] == [3, 3]
    assert server.count("batch_rows_sum", **counts) == 6


def test_waiting_requests_are_batched_and_each_gets_its_own_outputs(make_server, wait_until):
    server = make_server(start_models=False)
    rows = np.random.default_rng(0).normal(size=(30, 1, 4)).astype(np.float32)
    calls = [server.prediction.Predict.future(classify(row, version=1, top_k=3)) for row in rows]
    counts = {"model": "classifier", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) == 30)
    server.registry.resolve("classifier", 1).start()
    for call, row in zip(calls, rows, strict=True):
        expected = -np.sort(-softmax(row @ onnx_models.WEIGHTS))[0]
        answered = call.result(timeout=10).classification.rows[0]
        np.testing.assert_allclose(answered.probabilities, expected, rtol=1e-5)
    assert server.count("batch_rows_count", **counts) == 1
    assert server.count("requests_total", outcome="ok", **counts) == 30
    assert server.count("request_duration_seconds_count", **counts) == 30


def test_many_concurrent_callers_get_their_own_outputs(server):
    def call(number, answers):
        for step in range(50):
            length = 1 + (number + step) % 5
            series = np.full((1, length), number, np.float32)
            answers.append(
                server.prediction.Predict(regress(series)).regression.rows[0].values[0]
                == number * length
            )

    answers = []
    threads = [threading.Thread(target=call, args=(number, answers)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 800


def test_a_guilty_request_fails_alone(make_server, wait_until):
    server = make_server(start_models=False)
    index = [0, 1, 2, 9, 3, 0]
    picks = [pick(i) for i in index]
    for request in picks:
        request.version = 1
    calls = [server.prediction.Predict.future(request) for request in picks]
    counts = {"model": "picker", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) == len(index))
    server.registry.resolve("picker", 1).start()
    for i, call in zip(index, calls, strict=True):
        if i == 9:
            assert call.exception().code() == grpc.StatusCode.INTERNAL
        else:
            assert to_array(call.result().outputs[0]).tolist() == [10 * i]
    assert server.count("requests_total", outcome="failed", **counts) == 1
    assert server.count("requests_total", outcome="ok", **counts) == 5


def test_a_deadline_that_cannot_be_met_is_rejected_immediately(make_server):
    server = make_server(BatchPolicy(inline=False))
    model = server.registry.resolve("classifier", 1)
    model.batcher.cost_model.measure(lambda rows: 30.0, ((4,),), budget=1e9)
    server.prediction.Predict(classify(version=1))  # has just run: estimates hold
    error = error_of(server.prediction.Predict, classify(version=1))  # within 10 s
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "deadline too short" in error.details()


def test_a_request_with_more_rows_than_a_batch_gets_one_response(make_server):
    server = make_server(BatchPolicy(max_rows=4))
    series = np.arange(22, dtype=np.float32).reshape(11, 2)
    rows = server.prediction.Predict(regress(series)).regression.rows
    assert [row.values[0] for row in rows] == series.sum(axis=1).tolist()
    counts = {"model": "regressor", "version": "1"}
    assert server.count("batch_rows_count", **counts) == 3
    assert server.count("requests_total", outcome="ok", **counts) == 1


@pytest.mark.parametrize("priority", [0, 1, 2])
def test_every_priority_is_answered(server, priority):
    assert server.prediction.Predict(classify(priority=priority)).classification.rows


def test_waiting_strings_are_counted_by_the_size_of_their_message(make_server):
    """A string is an object to numpy, 8 bytes however long: the message knows better."""
    request = classify(ROWS[:1], version=1)
    arrays, message = ROWS[:1].nbytes, request.ByteSize()
    assert arrays < message
    error = error_of(
        make_server(BatchPolicy(max_queue_bytes=message - 1)).prediction.Predict, request
    )
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{message} bytes (expected at most {message - 1})" in error.details()
    roomy = make_server(BatchPolicy(max_queue_bytes=message))
    assert roomy.prediction.Predict(request).classification.rows
