"""A stream with a slow reader is not read further, however few its responses, if they are large."""

import numpy as np
import pytest
from support.triton_requests import request as triton_request

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.tensors import to_tensor
from neurona_server.rpc import flow_control
from neurona_server.rpc.flow_control import StreamWindow


@pytest.fixture
def ten_bytes(monkeypatch):
    monkeypatch.setattr(flow_control, "MAX_BYTES", 10)
    return StreamWindow()


def test_waiting_rows_are_counted_until_they_are_taken(ten_bytes):
    assert not ten_bytes.full
    ten_bytes.reserve(1)
    ten_bytes.settle(1, 6)
    assert not ten_bytes.full
    ten_bytes.reserve(4)
    assert ten_bytes.full  # what is to come counts as much as is expected
    ten_bytes.release(6)
    assert not ten_bytes.full
    assert ten_bytes.low
    ten_bytes.settle(4, 5)
    assert not ten_bytes.low


def test_one_may_be_larger_than_all_that_may_wait(ten_bytes):
    ten_bytes.reserve(3)
    ten_bytes.settle(3, 11)
    assert ten_bytes.full
    ten_bytes.release(11)
    assert not ten_bytes.full
    assert ten_bytes.low


ROWS = np.ones((2, 4), np.float32)


def test_streams_continue_once_waiting_responses_are_sent(server, monkeypatch):
    monkeypatch.setattr(flow_control, "MAX_BYTES", 100)  # one or two responses
    own = PredictRequest(model="classifier", inputs=[to_tensor("x", ROWS)])
    frames = [PredictStreamRequest(requests=[StreamedRequest(id=1, request=own)] * 3)] * 100
    responses = server.prediction.PredictStream(iter(frames), timeout=30)
    assert sum(len(message.responses) for message in responses) == 300
    messages = [triton_request("classifier", x=("FP32", ROWS)) for _ in range(300)]
    for number, message in enumerate(messages):
        message.id = str(number)
    turns = server.triton.ModelStreamInfer(iter(messages), timeout=30)
    assert [turn.infer_response.id for turn in turns] == [str(n) for n in range(300)]
