"""Alike requests of a stream's message travel as one, and each is answered for itself."""

import queue
import time

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.rpc import flow_control
from neurona_server.rpc.v1 import streaming

INTERNAL = grpc.StatusCode.INTERNAL.value[0]


def message(requests):
    return PredictStreamRequest(
        requests=[StreamedRequest(id=n, request=one) for n, one in enumerate(requests)]
    )


def pick(index, rows=1):
    indices = to_tensor("index", np.full(rows, index, np.int64))
    return PredictRequest(model="picker", inputs=[indices])


def classify(value, top_k=0, *, raw=False):
    x = to_tensor("x", np.full((1, 4), value, np.float32))
    return PredictRequest(model="classifier", version=1, inputs=[x], top_k=top_k, raw_outputs=raw)


def ask(server, *messages):
    """The responses to the last message."""
    responses = server.prediction.PredictStream(iter(messages), timeout=30)
    last = {}
    for response in responses:
        for one in response.responses:
            last[one.id] = one
    return last


def test_alike_requests_wait_as_one(make_server, wait_until):
    server = make_server(start_models=False)
    outgoing = queue.SimpleQueue()
    responses = server.prediction.PredictStream(iter(outgoing.get, None), timeout=30)
    outgoing.put(message([pick(n % 4) for n in range(33)]))
    flow_control = server.registry.resolve("picker").batcher.queue
    wait_until(lambda: flow_control.rows == 33)
    # Two entries: the first was read, the others are like it. Callers have sent 33.
    assert "33 requests, 33 rows" in repr(flow_control)
    server.registry.resolve("picker").start()
    outgoing.put(None)
    picked = {one.id: to_array(one.response.outputs[0]) for r in responses for one in r.responses}
    assert picked == {n: [10 * (n % 4)] for n in range(33)}
    counts = {"model": "picker", "version": "1"}
    assert server.count("requests_total", outcome="ok", **counts) == 33
    assert server.count("batch_requests_sum", **counts) == 33
    assert server.count("queue_duration_seconds_count", **counts) == 33


def test_each_fails_alone(make_server):
    server = make_server()
    responses = ask(server, message([pick(7 if n in (3, 20) else n % 4) for n in range(40)]))
    assert sorted(responses) == list(range(40))
    assert {n for n, one in responses.items() if one.HasField("error")} == {3, 20}
    assert responses[3].error.code == INTERNAL
    for number, response in responses.items():
        if number not in (3, 20):
            assert to_array(response.response.outputs[0]) == [10 * (number % 4)]
    counts = {"model": "picker", "version": "1"}
    assert server.count("requests_total", outcome="ok", **counts) == 38
    assert server.count("requests_total", outcome="failed", **counts) == 2


def test_several_rows_stay_together(server):
    responses = ask(server, message([pick(n % 4, rows=3) for n in range(20)]))
    for number, response in responses.items():
        assert to_array(response.response.outputs[0]).tolist() == [10 * (number % 4)] * 3


def test_different_requests_of_one_message_get_their_own_responses(server):
    kinds = [classify(1), classify(2, top_k=2), classify(3, raw=True), pick(2)]
    requests = [kinds[n % 4] for n in range(80)]
    alone = [server.prediction.Predict(kind) for kind in kinds]
    responses = ask(server, message(requests))
    assert sorted(responses) == list(range(80))
    for number, response in responses.items():
        assert response.response == alone[number % 4]


def test_requests_that_fit_into_the_queue_succeed(make_server):
    server = make_server(BatchPolicy(max_queue_rows=20), start_models=False)
    outgoing = queue.SimpleQueue()
    responses = server.prediction.PredictStream(iter(outgoing.get, None), timeout=30)
    outgoing.put(message([pick(n % 4) for n in range(40)]))
    rejected = set()
    while len(rejected) < 20:
        for one in next(responses).responses:
            assert one.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            rejected.add(one.id)
    server.registry.resolve("picker").start()
    outgoing.put(None)
    picked = {one.id: to_array(one.response.outputs[0]) for r in responses for one in r.responses}
    assert picked == {n: [10 * (n % 4)] for n in set(range(40)) - rejected}


@pytest.mark.parametrize("ends", ["cancel", "deadline"])
def test_all_of_it_leave_with_their_caller(make_server, wait_until, ends):
    server = make_server(start_models=False)
    timeout = 30 if ends == "cancel" else 0.5
    outgoing = queue.SimpleQueue()
    call = server.prediction.PredictStream(iter(outgoing.get, None), timeout=timeout)
    outgoing.put(message([pick(n % 4) for n in range(20)]))
    counts = {"model": "picker", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) == 20)
    if ends == "cancel":
        call.cancel()
    outcome = "cancelled" if ends == "cancel" else "expired"
    wait_until(lambda: server.count("requests_total", outcome=outcome, **counts) == 20)
    assert server.count("queue_rows", **counts) == 0
    outgoing.put(None)


@pytest.fixture
def wide(tmp_path, make_server):
    """A row of 4 bytes is answered with one of 512 KiB."""
    onnx_models.save(
        tmp_path / "wide" / "1" / "model.onnx",
        [helper.make_node("MatMul", ["x", "ones"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 1])},
        {"y": (TensorProto.FLOAT, ["batch", "width"])},
        {"ones": np.ones((1, WIDTH), np.float32)},
    )
    return make_server(root=tmp_path)


WIDTH = 1 << 17
ROW = 4 * WIDTH


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_message_of_thousands_with_large_responses_is_submitted_in_parts(wide, wait_until):
    """Its responses would take 1 GiB."""

    def widen(number):
        x = to_tensor("x", np.full((1, 1), number, np.float32))
        return PredictRequest(model="wide", inputs=[x])

    assert len(ask(wide, message([widen(n) for n in range(40)]))) == 40  # memory is warm
    before = resident()
    count = 2000
    call = wide.prediction.PredictStream(iter([message(map(widen, range(count)))]), timeout=60)

    def answered():
        return wide.count("requests_total", outcome="ok", model="wide", version="1") - 40

    wait_until(lambda: answered() >= flow_control.MAX_BYTES // ROW - 2)
    time.sleep(0.3)  # what must not come has had its time
    # As much again at most: messages on their way to the reader, whose size depends on the timing.
    assert answered() <= flow_control.MAX_BYTES // ROW * 2
    assert resident() - before < 4 * flow_control.MAX_BYTES
    numbers = set()
    while len(numbers) < 300:
        for one in next(call).responses:
            assert len(one.response.outputs[0].data) == ROW
            assert to_array(one.response.outputs[0])[0, -1] == one.id
            numbers.add(one.id)
    call.cancel()  # the others go with their caller
    assert answered() < count


def test_requests_that_wait_to_be_begun_are(make_server, monkeypatch):
    monkeypatch.setattr(flow_control, "MAX_BYTES", 1000)
    server = make_server()
    assert streaming.MAX_OUTSTANDING > 2000
    responses = ask(server, *[message([pick(n % 4) for n in range(2000)])] * 3)
    assert len(responses) == 2000
    assert server.count("requests_total", outcome="ok", model="picker", version="1") == 6000
