import queue
import threading
import time

import grpc
import numpy as np
import pytest

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.rpc.v1 import streaming


def total(number, request_id=None, steps=3):
    series = to_tensor("series", np.full((1, steps), number, np.float32))
    return StreamedRequest(
        id=number if request_id is None else request_id,
        request=PredictRequest(model="regressor", version=1, inputs=[series]),
    )


def message(*requests):
    return PredictStreamRequest(requests=requests)


def test_every_request_of_many_messages_is_answered_by_its_id(server):
    messages = [message(*[total(10 * i + j) for j in range(10)]) for i in range(50)]
    answered = {}
    for response in server.prediction.PredictStream(iter(messages), timeout=60):
        for one in response.responses:
            assert one.id not in answered
            answered[one.id] = one.response.regression.rows[0].values[0]
    assert answered == {number: 3.0 * number for number in range(500)}


def test_responses_arrive_while_the_stream_is_open(server):
    outgoing = queue.SimpleQueue()
    responses = server.prediction.PredictStream(iter(outgoing.get, None), timeout=60)
    for number in (1, 2):
        outgoing.put(message(total(number)))
        (one,) = next(responses).responses
        assert one.response.regression.rows[0].values[0] == 3.0 * number
    outgoing.put(None)
    assert list(responses) == []


def test_an_error_belongs_to_its_request_and_the_stream_continues(server):
    bad = StreamedRequest(id=2, request=PredictRequest(model="nobody"))
    messages = [message(total(1), bad, StreamedRequest(id=3)), message(total(4))]
    answered = {
        one.id: one
        for response in server.prediction.PredictStream(iter(messages), timeout=60)
        for one in response.responses
    }
    assert sorted(answered) == [1, 2, 3, 4]
    assert answered[4].response.regression.rows[0].values[0] == 12
    assert answered[2].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "no model 'nobody'" in answered[2].error.message
    assert answered[3].error.code == grpc.StatusCode.NOT_FOUND.value[0]


def test_bytes_that_are_no_request_end_the_stream_with_a_clear_error(server):
    method = server.channel.stream_stream("/neurona.v1.Prediction/PredictStream")
    with pytest.raises(grpc.RpcError) as caught:
        list(method(iter([b"\xff\xff"]), timeout=60))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "PredictStreamRequest" in caught.value.details()


def test_a_message_with_too_many_requests_is_rejected(server):
    many = message(*[StreamedRequest(id=i) for i in range(streaming.MAX_OUTSTANDING + 1)])
    with pytest.raises(grpc.RpcError) as caught:
        list(server.prediction.PredictStream(iter([many]), timeout=60))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "4097 requests (expected at most 4096)" in caught.value.details()


def test_a_full_queue_is_an_error_in_the_response(make_server):
    server = make_server(BatchPolicy(max_queue_rows=2), start_models=False)
    outgoing = queue.SimpleQueue()
    responses = server.prediction.PredictStream(iter(outgoing.get, None), timeout=60)
    outgoing.put(message(*[total(number) for number in range(3)]))
    (rejected,) = next(responses).responses
    assert rejected.id == 2
    assert rejected.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert rejected.error.retry_after_ms >= 1
    server.registry.resolve("regressor", 1).start()
    outgoing.put(None)
    assert sorted(one.id for response in responses for one in response.responses) == [0, 1]


def test_a_cancelled_stream_takes_its_requests_out(make_server, wait_until):
    server = make_server(start_models=False)
    call = server.prediction.PredictStream(iter([message(total(1), total(2))]), timeout=60)
    counts = {"model": "regressor", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) == 2)
    call.cancel()
    wait_until(lambda: server.count("requests_total", outcome="cancelled", **counts) == 2)


def test_a_stopping_server_answers_received_requests_and_ends_the_stream(make_server, wait_until):
    server = make_server(start_models=False)
    outgoing = queue.SimpleQueue()
    responses = server.prediction.PredictStream(iter(outgoing.get, None), timeout=60)
    outgoing.put(message(total(1)))
    wait_until(lambda: server.count("queue_rows", model="regressor", version="1") == 1)
    stopping = threading.Thread(target=server.listener.stop, args=(30.0,))
    stopping.start()
    time.sleep(0.2)  # it stops, and waits for the answer
    server.registry.resolve("regressor", 1).start()
    (one,) = next(responses).responses
    assert one.response.regression.rows[0].values[0] == 3
    with pytest.raises(grpc.RpcError) as caught:
        next(responses)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    outgoing.put(None)
    stopping.join(10)
    assert not stopping.is_alive()


def test_a_stream_with_too_much_outstanding_is_not_read_on(make_server, wait_until, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_OUTSTANDING", 10)
    server = make_server(start_models=False)

    def messages():
        for number in range(200):
            yield message(*[total(number, request_id=10 * number + i) for i in range(10)])

    responses = server.prediction.PredictStream(messages(), timeout=60)
    counts = {"model": "regressor", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) >= 10)
    time.sleep(0.3)  # what must not come has had its time
    assert server.count("queue_rows", **counts) == 10
    server.registry.resolve("regressor", 1).start()
    assert sum(len(response.responses) for response in responses) == 2000
