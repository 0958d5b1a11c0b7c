"""A failed call has a request id, the same for its caller and in every log record about it."""

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
RANDOM_ID = re.compile("[0-9a-f]{32}")
UNKNOWN = PredictRequest(model="none")


def id_of(call):
    """The request id and the status of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailers = caught.value.trailing_metadata()
    (request_id,) = [value for key, value in trailers if key == "x-request-id"]
    return request_id, caught.value.code().name


@pytest.fixture
def failing(server):
    """Calls by the status with which they end; each takes its metadata."""
    stream = server.prediction.PredictStream
    unknown = server.channel.unary_unary("/neurona.v1.Prediction/None")
    broken = server.channel.stream_stream("/neurona.v1.Prediction/PredictStream")
    return {
        "NOT_FOUND": lambda metadata: server.prediction.Predict(
            UNKNOWN, timeout=10, metadata=metadata
        ),
        "INVALID_ARGUMENT": lambda metadata: list(
            broken(iter([b"\xff"]), timeout=10, metadata=metadata)
        ),
        "UNIMPLEMENTED": lambda metadata: unknown(b"", timeout=10, metadata=metadata),
        "OK": lambda metadata: list(stream(iter([]), timeout=10, metadata=metadata)),
    }


@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_the_callers_id_is_returned_when_its_call_fails(failing, code):
    for request_id in ("abc-1", "x" * 128, "with space"):
        assert id_of(lambda: failing[code]([("x-request-id", request_id)])) == (request_id, code)  # noqa: B023


@pytest.mark.parametrize("code", ["NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_without_an_id_the_trace_id_is_used_else_a_random_one(failing, code):
    assert id_of(lambda: failing[code]([("traceparent", PARENT)])) == (TRACE, code)
    random_ids = [id_of(lambda: failing[code]([])) for _ in range(2)]
    assert all(RANDOM_ID.fullmatch(each) for each, _ in random_ids)
    assert random_ids[0] != random_ids[1]
    too_long, _ = id_of(lambda: failing[code]([("x-request-id", "x" * 129)]))
    assert RANDOM_ID.fullmatch(too_long)


@pytest.mark.parametrize(
    "request_id", ["", "x" * 129, "é", "a\nb", "\x7f", " ", "a\x00", b"bytes"], ids=repr
)
def test_an_invalid_id_is_replaced(request_id):
    assert RANDOM_ID.fullmatch(request_id_of([("x-request-id", request_id)]))
    assert request_id_of([("x-request-id", request_id), ("traceparent", PARENT)]) == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        *("", "00", PARENT.upper(), PARENT.replace(TRACE, "0" * 32), "ff" + PARENT[2:]),
        *(PARENT[:-5], "01" + PARENT[2:] + "-" + "x" * 512),
    ],
)
def test_an_invalid_traceparent_is_ignored(parent):
    assert request_id_of([("traceparent", parent)]) != TRACE
    assert RANDOM_ID.fullmatch(request_id_of([("traceparent", parent)]))


def test_a_repeated_traceparent_is_ignored():
    assert request_id_of([("traceparent", PARENT), ("traceparent", PARENT)]) != TRACE


def test_an_answered_call_has_no_id(server):
    request = PredictRequest(
        model="regressor", inputs=[to_tensor("series", np.ones((1, 2), np.float32))]
    )
    _, call = server.prediction.Predict.with_call(
        request, timeout=10, metadata=[("x-request-id", "mine")]
    )
    assert "x-request-id" not in dict(call.trailing_metadata())


def lines(caplog, code):
    """Request and trace ids of the log records about calls that ended with this code."""
    return [
        (record.request_id, getattr(record, "trace_id", ""))
        for record in caplog.records
        if record.getMessage().startswith(f"ended with {code}: ")
    ]


def test_failed_calls_are_logged_at_debug_level(server, failing, caplog):
    metadata = [("x-request-id", "mine"), ("traceparent", PARENT)]
    with caplog.at_level(logging.INFO, "neurona_server"):
        id_of(lambda: failing["NOT_FOUND"](metadata))
    assert not lines(caplog, "NOT_FOUND")
    with caplog.at_level(logging.DEBUG, "neurona_server"):
        id_of(lambda: failing["NOT_FOUND"](metadata))
        random_id, _ = id_of(lambda: failing["NOT_FOUND"]([]))
    assert lines(caplog, "NOT_FOUND") == [("mine", TRACE), (random_id, "")]


def test_a_request_in_a_stream_has_the_streams_id_and_its_number(server, caplog):
    requests = [StreamedRequest(id=n, request=UNKNOWN) for n in (7, 8)]
    metadata = [("x-request-id", "mine")]
    with caplog.at_level(logging.DEBUG, "neurona_server"):
        stream = server.prediction.PredictStream
        call = stream(
            iter([PredictStreamRequest(requests=requests)]), timeout=10, metadata=metadata
        )
        (message,) = call
        assert [one.error.code for one in message.responses] == [5, 5]
        infer = ModelInferRequest(model_name="none")
        infers = server.triton.ModelStreamInfer(iter([infer] * 2), timeout=10, metadata=metadata)
        assert len([one.error_message for one in infers]) == 2
    ids = [request_id for request_id, _ in lines(caplog, "NOT_FOUND")]
    assert ids == ["mine#7", "mine#8", "mine#1", "mine#2"]
    assert call.code().name == "OK"
    assert "x-request-id" not in dict(call.trailing_metadata())


def test_a_failing_model_is_logged_with_the_request(tmp_path, make_server, caplog):
    onnx_models.save_picker(tmp_path / "picker" / "1" / "model.onnx")
    server = make_server(root=tmp_path)
    request = PredictRequest(model="picker", inputs=[to_tensor("index", np.array([99], np.int64))])
    metadata = [("x-request-id", "mine"), ("traceparent", PARENT)]
    failure = id_of(lambda: server.prediction.Predict(request, timeout=10, metadata=metadata))
    assert failure == ("mine", "INTERNAL")
    (record,) = [each for each in caplog.records if "run of a request failed" in each.getMessage()]
    assert (record.model, record.version, record.request_id, record.trace_id) == (
        "picker",
        1,
        "mine",
        TRACE,
    )
