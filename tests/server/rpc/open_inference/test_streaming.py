import queue
import threading
import time

import grpc
import numpy as np
import pytest
from support.triton_requests import arrays, request

from neurona_protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from neurona_server.rpc.open_inference import inference, streaming


class Conversation:
    """A stream whose requests are sent by the test."""

    def __init__(self, server, **options):
        self._requests = queue.SimpleQueue()
        self.responses = server.triton.ModelStreamInfer(
            iter(self._requests.get, None), timeout=30, **options
        )

    def send(self, *messages):
        for message in messages:
            self._requests.put(message)
        return self

    def half_close(self):
        self._requests.put(None)

    def __iter__(self):
        return self.responses


def pick(index, message_id, version=""):
    message = request("picker", version, index=("INT64", [index]))
    message.id = message_id
    return message


def test_responses_come_in_the_order_of_requests(server):
    conversation = Conversation(server).send(*[pick(i % 4, str(i)) for i in range(50)])
    conversation.half_close()
    responses = list(conversation)
    assert [response.infer_response.id for response in responses] == [str(i) for i in range(50)]
    assert [arrays(response.infer_response)["picked"].tolist() for response in responses] == [
        [10 * (i % 4)] for i in range(50)
    ]
    assert not any(response.error_message for response in responses)
    finals = [
        response.infer_response.parameters["triton_final_response"].bool_param
        for response in responses
    ]
    assert finals == [True] * 50


def test_a_request_like_an_earlier_one_is_not_parsed(server, monkeypatch):
    parsed = []

    def parse_message(kind, message):
        parsed.append(message)
        return kind.FromString(message)

    list(server.triton.ModelStreamInfer(iter([pick(1, "a"), pick(1, "")]), timeout=10))
    monkeypatch.setattr(inference, "parse_message", parse_message)
    messages = [pick(i % 4, "" if i == 3 else f"{i}é") for i in range(50)]
    responses = list(server.triton.ModelStreamInfer(iter(messages), timeout=10))
    assert [arrays(response.infer_response)["picked"].tolist() for response in responses] == [
        [10 * (i % 4)] for i in range(50)
    ]
    assert [response.infer_response.id for response in responses] == [m.id for m in messages]
    failed = [pick(9, "bad"), pick(1, "good")]  # the first fails
    responses = list(server.triton.ModelStreamInfer(iter(failed), timeout=10))
    assert [bool(response.error_message) for response in responses] == [True, False]
    assert [response.infer_response.id for response in responses] == ["bad", "good"]
    assert not parsed


def test_the_last_of_two_ids_in_a_message_counts(server):
    head, tail = pick(1, "first"), ModelInferRequest(id="last").SerializeToString()
    method = server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    odd = [head.SerializeToString() + tail, pick(1, "").SerializeToString() + tail]
    messages = [odd[0], odd[1], odd[0], odd[1], head.SerializeToString()]
    responses = [
        ModelStreamInferResponse.FromString(message).infer_response.id
        for message in method(iter(messages), timeout=10)
    ]
    assert responses == ["last"] * 4 + ["first"]


def test_the_order_is_kept_when_a_later_response_is_ready_first(make_server, wait_until):
    server = make_server(start_models=False)
    slow, quick = (server.registry.resolve("classifier", version) for version in (1, 2))
    rows = ("FP32", np.ones((1, 4)))
    conversation = Conversation(server).send(
        request("classifier", "1", x=rows), request("classifier", "2", x=rows)
    )
    counts = {"model": "classifier"}
    wait_until(lambda: server.count("queue_rows", version="2", **counts) == 1)
    quick.start()
    wait_until(lambda: server.count("requests_total", version="2", outcome="ok", **counts) == 1)
    slow.start()
    conversation.half_close()
    assert [response.infer_response.model_version for response in conversation] == ["1", "2"]


def test_a_failed_request_gets_its_error_and_the_stream_continues(server):
    conversation = Conversation(server).send(
        pick(1, "a"), ModelInferRequest(model_name="nobody", id="b"), pick(9, "c"), pick(2, "d")
    )
    conversation.half_close()
    responses = list(conversation)
    assert [bool(response.error_message) for response in responses] == [False, True, True, False]
    assert "Request for unknown model: 'nobody' is not found" in responses[1].error_message
    assert [response.infer_response.id for response in responses] == ["a", "b", "c", "d"]
    assert arrays(responses[3].infer_response)["picked"].tolist() == [20]


@pytest.mark.parametrize("value", ["true", "True"])
def test_a_caller_can_have_an_error_end_the_stream_with_its_status(server, value):
    conversation = Conversation(server, metadata=(("triton_grpc_error", value),)).send(
        pick(1, "a"), ModelInferRequest(model_name="nobody"), pick(2, "c")
    )
    responses = iter(conversation)
    assert arrays(next(responses).infer_response)["picked"].tolist() == [10]
    with pytest.raises(grpc.RpcError) as caught:
        next(responses)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "Request for unknown model: 'nobody'" in caught.value.details()
    conversation.half_close()


def test_an_invalid_message_ends_the_stream(server):
    method = server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        list(method(iter([b"\xff\xff"]), timeout=10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_stream_that_ends_early_cancels_its_requests(make_server, wait_until, how):
    server = make_server(start_models=False)
    messages = [pick(1, str(i), "1") for i in range(20)]
    counts = {"model": "picker", "version": "1"}
    if how == "cancel":
        conversation = Conversation(server).send(*messages)
        wait_until(lambda: server.count("queue_rows", **counts) == 20)
        conversation.responses.cancel()
        outcome = "cancelled"
    else:
        with pytest.raises(grpc.RpcError) as caught:
            # All arrive before the deadline, on a busy machine too.
            list(server.triton.ModelStreamInfer(iter(messages), timeout=2))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        outcome = "expired"
    wait_until(lambda: server.count("requests_total", outcome=outcome, **counts) == 20)
    assert server.count("queue_rows", **counts) == 0
    assert not server.listener._streams


def test_an_error_that_ends_the_stream_cancels_its_requests(make_server, wait_until):
    server = make_server(start_models=False)
    conversation = Conversation(server, metadata=(("triton_grpc_error", "true"),)).send(
        ModelInferRequest(model_name="nobody"), *[pick(1, str(i), "1") for i in range(5)]
    )
    with pytest.raises(grpc.RpcError):
        next(iter(conversation))
    wait_until(lambda: not server.listener._streams)
    wait_until(lambda: server.count("queue_rows", model="picker", version="1") == 0)
    conversation.half_close()


def test_a_large_response_is_complete(server):
    """Its length is a varint of several bytes."""
    rows = np.arange(4000, dtype=np.float32).reshape(1000, 4) / 4000
    messages = [request("classifier", "1", x=("FP32", rows))]
    (response,) = server.triton.ModelStreamInfer(iter(messages), timeout=10)
    assert isinstance(response, ModelStreamInferResponse)
    assert arrays(response.infer_response)["probabilities"].shape == (1000, 3)


def test_a_stream_with_too_many_requests_is_not_read(make_server, wait_until, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_OUTSTANDING", 10)
    server = make_server(start_models=False)
    messages = [pick(i % 4, str(i), "1") for i in range(500)]
    responses = server.triton.ModelStreamInfer(iter(messages), timeout=60)
    counts = {"model": "picker", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) >= 10)
    time.sleep(0.3)  # time for more requests, which must not arrive
    assert server.count("queue_rows", **counts) == 10
    server.registry.resolve("picker", 1).start()
    assert [response.infer_response.id for response in responses] == [str(i) for i in range(500)]


def test_a_stopping_server_responds_to_received_requests_and_ends_the_stream(
    make_server, wait_until
):
    server = make_server(start_models=False)
    conversation = Conversation(server).send(pick(1, "a", "1"))
    wait_until(lambda: server.count("queue_rows", model="picker", version="1") == 1)
    stopping = threading.Thread(target=server.listener.stop, args=(30.0,))
    stopping.start()
    time.sleep(0.2)  # it is stopping, and waits for the response
    server.registry.resolve("picker", 1).start()
    responses = iter(conversation)
    assert next(responses).infer_response.id == "a"
    with pytest.raises(grpc.RpcError) as caught:
        next(responses)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    conversation.half_close()
    stopping.join(10)
    assert not stopping.is_alive()
