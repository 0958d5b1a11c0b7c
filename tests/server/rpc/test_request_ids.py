"""A call that fails has an id, the same for its caller and in every line of the log about it."""

import logging
import re

import grpc
import numpy as np
import pytest
from support import onnx_models

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import (
    PredictRequest,
    PredictStreamRequest,
    StreamedRequest,
)
from neurona_protos.tensors import to_tensor
from neurona_server.rpc.call import request_id_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
MADE = re.compile("[0-9a-f]{32}")
UNKNOWN = PredictRequest(model="none")


def id_of(call):
    """Of a call that failed; its code's name too."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailers = caught.value.trailing_metadata()
    (found,) = [value for key, value in trailers if key == "x-request-id"]
    return found, caught.value.code().name


@pytest.fixture
def failing(server):
    """Calls that fail, each in its own way, given their metadata."""
    stream = server.prediction.PredictStream
    unknown = server.channel.unary_unary("/neurona.v1.Prediction/None")
    broken = server.channel.stream_stream("/neurona.v1.Prediction/PredictStream")
    return {
        "NOT_FOUND": lambda said: server.prediction.Predict(UNKNOWN, timeout=10, metadata=said),
        "INVALID_ARGUMENT": lambda said: list(broken(iter([b"\xff"]), timeout=10, metadata=said)),
        "UNIMPLEMENTED": lambda said: unknown(b"", timeout=10, metadata=said),
        "OK": lambda said: list(stream(iter([]), timeout=10, metadata=said)),
    }


@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_a_caller_s_own_id_comes_back_when_its_call_fails(failing, code):
    for given in ("abc-1", "x" * 128, "with space"):
        assert id_of(lambda: failing[code]([("x-request-id", given)])) == (given, code)  # noqa: B023


@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_without_one_the_trace_s_is_taken_else_one_is_made(failing, code):
    assert id_of(lambda: failing[code]([("traceparent", PARENT)])) == (TRACE, code)
    made = [id_of(lambda: failing[code]([])) for _ in range(2)]
    assert all(MADE.fullmatch(one) for one, _ in made)
    assert made[0] != made[1]
    too_long, _ = id_of(lambda: failing[code]([("x-request-id", "x" * 129)]))
    assert MADE.fullmatch(too_long)


@pytest.mark.parametrize(
    "given", ["", "x" * 129, "é", "a\nb", "\x7f", " ", "a\x00", b"bytes"], ids=repr
)
def test_what_is_no_id_is_replaced(given):
    assert MADE.fullmatch(request_id_of([("x-request-id", given)]))
    assert request_id_of([("x-request-id", given), ("traceparent", PARENT)]) == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        *("", "00", PARENT.upper(), PARENT.replace(TRACE, "0" * 32), "ff" + PARENT[2:]),
        *(PARENT[:-5], "01" + PARENT[2:] + "-" + "x" * 512),
    ],
)
def test_what_is_no_traceparent_is_not_taken_for_one(parent):
    assert request_id_of([("traceparent", parent)]) != TRACE
    assert MADE.fullmatch(request_id_of([("traceparent", parent)]))


def test_two_traceparents_are_none():
    assert request_id_of([("traceparent", PARENT), ("traceparent", PARENT)]) != TRACE


def test_an_answered_call_has_none(server):
    request = PredictRequest(
        model="regressor", inputs=[to_tensor("series", np.ones((1, 2), np.float32))]
    )
    _, call = server.prediction.Predict.with_call(
        request, timeout=10, metadata=[("x-request-id", "mine")]
    )
    assert "x-request-id" not in dict(call.trailing_metadata())


def lines(caplog, code):
    """The fields of lines about calls that ended with this code."""
    return [
        (record.request_id, getattr(record, "trace_id", ""))
        for record in caplog.records
        if record.getMessage().startswith(f"ended with {code}: ")
    ]


def test_refusals_are_lines_for_those_who_want_to_know(server, failing, caplog):
    said = [("x-request-id", "mine"), ("traceparent", PARENT)]
    with caplog.at_level(logging.INFO, "neurona_server"):
        id_of(lambda: failing["NOT_FOUND"](said))
    assert not lines(caplog, "NOT_FOUND")
    with caplog.at_level(logging.DEBUG, "neurona_server"):
        id_of(lambda: failing["NOT_FOUND"](said))
        made, _ = id_of(lambda: failing["NOT_FOUND"]([]))
    assert lines(caplog, "NOT_FOUND") == [("mine", TRACE), (made, "")]


def test_a_request_in_a_stream_has_the_stream_s_id_and_its_own_number(server, caplog):
    requests = [StreamedRequest(id=n, request=UNKNOWN) for n in (7, 8)]
    said = [("x-request-id", "mine")]
    with caplog.at_level(logging.DEBUG, "neurona_server"):
        stream = server.prediction.PredictStream
        call = stream(iter([PredictStreamRequest(requests=requests)]), timeout=10, metadata=said)
        (message,) = call
        assert [one.error.code for one in message.responses] == [5, 5]
        infer = ModelInferRequest(model_name="none")
        infers = server.triton.ModelStreamInfer(iter([infer] * 2), timeout=10, metadata=said)
        assert len([one.error_message for one in infers]) == 2
    ids = [request_id for request_id, _ in lines(caplog, "NOT_FOUND")]
    assert ids == ["mine#7", "mine#8", "mine#1", "mine#2"]
    assert call.code().name == "OK"
    assert "x-request-id" not in dict(call.trailing_metadata())


def test_a_model_that_fails_says_on_whose_request(tmp_path, make_server, caplog):
    onnx_models.save_picker(tmp_path / "picker" / "1" / "model.onnx")
    server = make_server(root=tmp_path)
    request = PredictRequest(model="picker", inputs=[to_tensor("index", np.array([99], np.int64))])
    said = [("x-request-id", "mine"), ("traceparent", PARENT)]
    found = id_of(lambda: server.prediction.Predict(request, timeout=10, metadata=said))
    assert found == ("mine", "INTERNAL")
    (line,) = [one for one in caplog.records if "failed on a request" in one.getMessage()]
    assert (line.model, line.version, line.request_id, line.trace_id) == (
        "picker",
        1,
        "mine",
        TRACE,
    )
