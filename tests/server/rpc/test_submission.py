import gc
import math
import threading

import numpy as np
import pytest

from neurona_protos.frames_pb2 import PredictStreamRequest
from neurona_protos.prediction_pb2 import DataType, PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import Priority
from neurona_server.errors import CancelledError, InvalidArgumentError, UnavailableError
from neurona_server.rpc.submission import ParsedRequest, Submission, cancel, submit
from neurona_server.rpc.worker_pool import WorkerPool

ROWS = np.ones((1, 4), np.float32)


class Writer:
    """A `ResponseWriter` that writes what a function returns."""

    def __init__(self, write):
        self._write = write

    def __call__(self, outputs):
        return self._write(outputs)

    def expected_bytes(self, _):
        return 0


class BaseCall:
    """Resolves the models that the test lists, one after the other; records the outcomes."""

    arrived, deadline = 0.0, math.inf
    trace = None
    request_id = trace_id = ""

    def __init__(self, server, *models, answer=lambda outputs: outputs[0].tolist()):
        self.outcomes = []
        self.requests = []
        self.ended = threading.Event()
        self._models = list(models)
        self._answer = answer
        submit(
            server.metrics,
            lambda: self._models.pop(0) if len(self._models) > 1 else self._models[0],
            self._read,
            self,
            WorkerPool(),
        )

    def defer(self, callback):
        callback()

    def on_cancel(self, callback):
        self.requests.append(callback.args[0])

    def _read(self, model):
        self.read = model
        described = {"x": (DataType.DATA_TYPE_FLOAT, ROWS.shape)}
        return ParsedRequest(
            described, lambda: {"x": ROWS}, Writer(self._answer), math.inf, Priority.NORMAL, 0
        )

    def reply(self, response):
        self._end((response, None))

    def fail(self, error):
        self._end((None, error))

    def _end(self, outcome):
        self.outcomes.append(outcome)
        self.ended.set()


@pytest.fixture
def versions(make_server):
    """A server, and its two versions of a model of which the first has been drained."""
    server = make_server()
    first, second = (server.registry.resolve("classifier", number) for number in (1, 2))
    assert first.drain(5.0)
    return server, first, second


def test_a_model_that_was_replaced_meanwhile_is_resolved_again(versions):
    server, first, second = versions
    caller = BaseCall(server, first, second)
    assert caller.ended.wait(10)
    ((response, error),) = caller.outcomes
    assert error is None
    assert len(response[0]) == 3
    assert caller.read is second
    # The caller may go away now: the request that was given up says nothing any more.
    for request in caller.requests:
        cancel(request)
    assert len(caller.requests) == 2
    assert len(caller.outcomes) == 1
    counts = {"model": "classifier", "version": "1"}
    assert server.count("requests_total", outcome="cancelled", **counts) == 0


def test_one_that_was_not_replaced_is_stopping(versions):
    server, first, _ = versions
    caller = BaseCall(server, first)
    ((_, error),) = caller.outcomes
    assert isinstance(error, UnavailableError)
    assert len(caller.requests) == 1


def test_it_is_not_tried_for_ever(versions):
    server, first, second = versions
    assert second.drain(5.0)
    caller = BaseCall(server, *[first, second] * 10)
    ((_, error),) = caller.outcomes
    assert isinstance(error, UnavailableError)
    assert len(caller.requests) == 4


def test_an_error_of_the_response_writer_reaches_the_caller_and_is_counted(make_server):
    def raise_error(_):
        raise InvalidArgumentError("too much")

    server = make_server()
    caller = BaseCall(server, server.registry.resolve("classifier", 2), answer=raise_error)
    assert caller.ended.wait(10)
    ((response, error),) = caller.outcomes
    assert response is None
    assert str(error) == "too much"
    counts = {"model": "classifier", "version": "2"}
    assert server.count("requests_total", outcome="invalid", **counts) == 1


def test_a_withdrawn_request_delivers_no_result(make_server):
    server = make_server(start_models=False)
    caller = BaseCall(server, server.registry.resolve("classifier", 2))
    (request,) = caller.requests
    assert request.withdraw()
    assert not request.withdraw()
    request.cancel(CancelledError("gone"))
    assert caller.outcomes == []


def test_ended_requests_are_freed_without_garbage_collection(server, wait_until):
    """A request has its message, which may be large: it must not wait for a rare collection."""

    def count_submissions():
        return sum(type(each) is Submission for each in gc.get_objects())

    good = PredictRequest(model="classifier", inputs=[to_tensor("x", ROWS)])
    frames = PredictStreamRequest()
    frames.requests.add(id=1, request=good.SerializeToString())
    frames.requests.add(id=2, request=good.SerializeToString())
    gc.collect()
    before = count_submissions()
    gc.disable()
    try:
        for _ in range(5):
            server.prediction.Predict(good, timeout=10)
            stream = server.channel.stream_stream("/neurona.v1.Prediction/PredictStream")
            list(stream(iter([frames.SerializeToString()]), timeout=10))
        wait_until(lambda: count_submissions() == before)
    finally:
        gc.enable()
