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
    """A stream whose requests are sent when the test says so."""

    def __init__(self, server, **options):
        self._requests = queue.SimpleQueue()
        self.answers = server.triton.ModelStreamInfer(
            iter(self._requests.get, None), timeout=30, **options
        )

    def send(self, *messages):
        for message in messages:
            self._requests.put(message)
        return self

    def half_close(self):
        self._requests.put(None)

    def __iter__(self):
        return self.answers


def pick(index, message_id, version=""):
    message = request("picker", version, index=("INT64", [index]))
    message.id = message_id
    return message


def test_each_request_has_its_answer_in_their_order(server):
    conversation = Conversation(server).send(*[pick(i % 4, str(i)) for i in range(50)])
    conversation.half_close()
    answers = list(conversation)
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(50)]
    assert [arrays(a.infer_response)["picked"].tolist() for a in answers] == [
        [10 * (i % 4)] for i in range(50)
    ]
    assert not any(answer.error_message for answer in answers)
    finals = [a.infer_response.parameters["triton_final_response"].bool_param for a in answers]
    assert finals == [True] * 50


def test_what_is_like_a_known_request_is_not_read_again(server, monkeypatch):
    read = []

    def parse(kind, message):
        read.append(message)
        return kind.FromString(message)

    list(server.triton.ModelStreamInfer(iter([pick(1, "a"), pick(1, "")]), timeout=10))
    monkeypatch.setattr(inference, "parse", parse)
    messages = [pick(i % 4, "" if i == 3 else f"{i}é") for i in range(50)]
    answers = list(server.triton.ModelStreamInfer(iter(messages), timeout=10))
    assert [arrays(a.infer_response)["picked"].tolist() for a in answers] == [
        [10 * (i % 4)] for i in range(50)
    ]
    assert [a.infer_response.id for a in answers] == [m.id for m in messages]
    failed = [pick(9, "bad"), pick(1, "good")]  # the first cannot be answered
    answers = list(server.triton.ModelStreamInfer(iter(failed), timeout=10))
    assert [bool(answer.error_message) for answer in answers] == [True, False]
    assert [answer.infer_response.id for answer in answers] == ["bad", "good"]
    assert not read


def test_of_two_ids_in_a_message_the_last_one_counts(server):
    head, tail = pick(1, "first"), ModelInferRequest(id="last").SerializeToString()
    method = server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    odd = [head.SerializeToString() + tail, pick(1, "").SerializeToString() + tail]
    messages = [odd[0], odd[1], odd[0], odd[1], head.SerializeToString()]
    answers = [
        ModelStreamInferResponse.FromString(answer).infer_response.id
        for answer in method(iter(messages), timeout=10)
    ]
    assert answers == ["last"] * 4 + ["first"]


def test_the_order_holds_when_a_later_one_is_ready_first(make_server, wait_until):
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
    assert [a.infer_response.model_version for a in conversation] == ["1", "2"]


def test_a_request_that_fails_has_its_error_and_the_stream_goes_on(server):
    conversation = Conversation(server).send(
        pick(1, "a"), ModelInferRequest(model_name="nobody", id="b"), pick(9, "c"), pick(2, "d")
    )
    conversation.half_close()
    answers = list(conversation)
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
    assert "Request for unknown model: 'nobody' is not found" in answers[1].error_message
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert arrays(answers[3].infer_response)["picked"].tolist() == [20]


@pytest.mark.parametrize("value", ["true", "True"])
def test_a_caller_may_ask_for_a_real_status(server, value):
    conversation = Conversation(server, metadata=(("triton_grpc_error", value),)).send(
        pick(1, "a"), ModelInferRequest(model_name="nobody"), pick(2, "c")
    )
    answers = iter(conversation)
    assert arrays(next(answers).infer_response)["picked"].tolist() == [10]
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "Request for unknown model: 'nobody'" in caught.value.details()
    conversation.half_close()


def test_bytes_that_are_no_request_end_the_stream(server):
    method = server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        list(method(iter([b"\xff\xff"]), timeout=10))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_stream_that_ends_early_takes_what_waits_with_it(make_server, wait_until, how):
    server = make_server(start_models=False)
    messages = [pick(1, str(i), "1") for i in range(20)]
    counts = {"model": "picker", "version": "1"}
    if how == "cancel":
        conversation = Conversation(server).send(*messages)
        wait_until(lambda: server.count("queue_rows", **counts) == 20)
        conversation.answers.cancel()
        outcome = "cancelled"
    else:
        with pytest.raises(grpc.RpcError) as caught:
            list(server.triton.ModelStreamInfer(iter(messages), timeout=0.2))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        outcome = "expired"
    wait_until(lambda: server.count("requests_total", outcome=outcome, **counts) == 20)
    assert server.count("queue_rows", **counts) == 0
    assert not server.listener._streams


def test_a_real_status_takes_what_waits_with_it(make_server, wait_until):
    server = make_server(start_models=False)
    conversation = Conversation(server, metadata=(("triton_grpc_error", "true"),)).send(
        ModelInferRequest(model_name="nobody"), *[pick(1, str(i), "1") for i in range(5)]
    )
    with pytest.raises(grpc.RpcError):
        next(iter(conversation))
    wait_until(lambda: not server.listener._streams)
    wait_until(lambda: server.count("queue_rows", model="picker", version="1") == 0)
    conversation.half_close()


def test_a_large_answer_is_wrapped_whole(server):
    """Its length takes more than one byte to say."""
    rows = np.arange(4000, dtype=np.float32).reshape(1000, 4) / 4000
    messages = [request("classifier", "1", x=("FP32", rows))]
    (answer,) = server.triton.ModelStreamInfer(iter(messages), timeout=10)
    assert isinstance(answer, ModelStreamInferResponse)
    assert arrays(answer.infer_response)["probabilities"].shape == (1000, 3)


def test_a_stream_with_too_much_outstanding_is_not_read_on(make_server, wait_until, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_OUTSTANDING", 10)
    server = make_server(start_models=False)
    messages = [pick(i % 4, str(i), "1") for i in range(500)]
    answers = server.triton.ModelStreamInfer(iter(messages), timeout=60)
    counts = {"model": "picker", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) >= 10)
    time.sleep(0.3)  # what must not come has had its time
    assert server.count("queue_rows", **counts) == 10
    server.registry.resolve("picker", 1).start()
    assert [answer.infer_response.id for answer in answers] == [str(i) for i in range(500)]


def test_a_stopping_server_answers_what_it_has_and_ends_the_stream(make_server, wait_until):
    server = make_server(start_models=False)
    conversation = Conversation(server).send(pick(1, "a", "1"))
    wait_until(lambda: server.count("queue_rows", model="picker", version="1") == 1)
    stopping = threading.Thread(target=server.listener.stop, args=(30.0,))
    stopping.start()
    time.sleep(0.2)  # it stops, and waits for the answer
    server.registry.resolve("picker", 1).start()
    answers = iter(conversation)
    assert next(answers).infer_response.id == "a"
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    conversation.half_close()
    stopping.join(10)
    assert not stopping.is_alive()
