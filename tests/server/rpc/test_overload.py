"""A server with a full queue: what callers of each level get, on every way to a model.

The file is alone because unary calls, streams and both protocols share what it shows.
"""

import queue
import threading

import grpc
import numpy as np
import pytest

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import (
    PRIORITY_HIGH,
    PRIORITY_LOW,
    PredictRequest,
    PredictStreamRequest,
    StreamedRequest,
)
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy

LABELS = {"model": "classifier", "version": "2"}


def predict(priority, rows=1):
    rows = np.ones((rows, 4), np.float32)
    return PredictRequest(model="classifier", inputs=[to_tensor("x", rows)], priority=priority)


def infer(priority):
    request = ModelInferRequest(model_name="classifier")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.parameters["priority"].uint64_param = priority
    request.raw_input_contents.append(np.ones((1, 4), np.float32).tobytes())
    return request


@pytest.fixture
def full_server(make_server, wait_until):
    """Room for eight rows, and eight calls with priority LOW that wait in it."""
    server = make_server(BatchPolicy(max_queue_rows=8), start_models=False)
    calls = [server.prediction.Predict.future(predict(PRIORITY_LOW), timeout=60) for _ in range(8)]
    wait_until(lambda: server.count("queue_rows", **LABELS) == 8)
    yield server, calls
    server.registry.resolve("classifier").start()


def ended(calls):
    return [call for call in calls if call.done()]


def test_an_urgent_call_is_served_and_the_newest_of_the_others_is_rejected(full_server, wait_until):
    server, calls = full_server
    urgent = server.prediction.Predict.future(predict(PRIORITY_HIGH), timeout=60)
    wait_until(lambda: len(ended(calls)) == 1)
    displaced = ended(calls)[0]
    assert displaced.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert displaced.details() == "queue full: the request was displaced by a more urgent one"
    assert int(dict(displaced.trailing_metadata())["retry-after-ms"]) > 0
    assert server.count("requests_total", outcome="rejected", **LABELS) == 1
    assert server.count("displaced_requests_total", **LABELS) == 1
    low = server.prediction.Predict.future(predict(PRIORITY_LOW), timeout=60)
    assert low.exception().details().startswith("queue full: 8 of 8 rows")
    server.registry.resolve("classifier").start()
    assert urgent.result().classification.rows[0].labels
    assert all(call.result() for call in calls if call is not displaced)


def test_a_large_urgent_call_displaces_as_many_as_it_needs(full_server, wait_until):
    server, calls = full_server
    urgent = server.prediction.Predict.future(predict(PRIORITY_HIGH, 5), timeout=60)
    wait_until(lambda: len(ended(calls)) == 5)
    server.registry.resolve("classifier").start()
    assert len(urgent.result().classification.rows) == 5
    assert len([call for call in calls if call.exception() is None]) == 3


def test_an_urgent_request_of_the_open_inference_protocol_displaces_too(full_server, wait_until):
    server, calls = full_server
    urgent = server.triton.ModelInfer.future(infer(1), timeout=60)
    wait_until(lambda: len(ended(calls)) == 1)
    server.registry.resolve("classifier").start()
    assert urgent.result().model_name == "classifier"


def test_requests_of_streams_are_displaced_and_answered_by_their_ids(make_server, wait_until):
    server = make_server(BatchPolicy(max_queue_rows=8), start_models=False)
    outgoing = queue.SimpleQueue()
    answers = {}

    def read():
        for message in server.prediction.PredictStream(iter(outgoing.get, None), timeout=60):
            answers.update({one.id: one for one in message.responses})

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(8):
        one = StreamedRequest(id=number + 1, request=predict(PRIORITY_LOW))
        outgoing.put(PredictStreamRequest(requests=[one]))
    wait_until(lambda: server.count("queue_rows", **LABELS) == 8)
    urgent = server.prediction.Predict.future(predict(PRIORITY_HIGH, 8), timeout=60)
    wait_until(lambda: len(answers) == 8)
    assert all("displaced" in one.error.message for one in answers.values())
    assert all(one.error.retry_after_ms > 0 for one in answers.values())
    server.registry.resolve("classifier").start()
    assert len(urgent.result().classification.rows) == 8
    outgoing.put(None)
    reader.join(60)
    assert not reader.is_alive()
