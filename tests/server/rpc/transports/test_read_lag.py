"""Requests that wait unread: how long is known, and those that no model would admit are refused."""

import math
import threading
import time

import grpc
import numpy as np
import pytest

from neurona_protos.prediction_pb2 import DescribeModelRequest, PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.rpc.call import Unary
from neurona_server.rpc.transports.cygrpc import CygrpcServer
from neurona_server.rpc.transports.listener import ListenerOptions

BLOCKED = 0.2


class SlowServer:
    """A transport whose thread is blocked by the first call, and what it reads afterwards."""

    def __init__(self, max_lag=math.inf):
        self.blocking, self.released = threading.Event(), threading.Event()
        self.lags, self.rejected = [], []
        method = Unary(self._start, None, max_lag=lambda: max_lag)
        options = ListenerOptions(on_reject=self.rejected.append)
        self.transport = CygrpcServer({"/test/Call": method}, options)
        port = self.transport.start("127.0.0.1:0")
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.call = self._channel.unary_unary("/test/Call")
        self.seconds = 0.0

    def _start(self, call):
        if not self.blocking.is_set():
            self.blocking.set()
            began = time.monotonic()
            assert self.released.wait(10)
            self.seconds = time.monotonic() - began
            self.transport._queue_seconds = self.seconds  # as a mark among those calls shows it
        else:
            self.lags.append(time.monotonic() - call.arrived)
        call.reply(b"answer")

    def send_while_blocked(self, count):
        """Send calls that the blocked thread reads later; return them."""
        first = self.call.future(b"", timeout=20)
        assert self.blocking.wait(10)
        calls = [self.call.future(b"", timeout=20) for _ in range(count)]
        time.sleep(BLOCKED)  # at least one of them arrives
        self.released.set()
        assert first.result() == b"answer"
        return calls

    def close(self):
        self._channel.close()
        assert self.transport.stop(5)


@pytest.fixture
def start():
    servers = []

    def start(*arguments):
        servers.append(SlowServer(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_request_knows_how_long_it_has_waited_unread(start):
    server = start()
    for call in server.send_while_blocked(10):
        assert call.result() == b"answer"
    assert max(server.lags) >= server.seconds
    time.sleep(0.05)  # the transport is idle: the next call is read when it comes
    sent = time.monotonic()
    server.call(b"", timeout=10)
    assert server.lags[-1] <= time.monotonic() - sent


def test_a_call_that_has_waited_for_too_long_is_refused_unread(start):
    server = start(BLOCKED / 2)
    errors = [call.exception() for call in server.send_while_blocked(10)]
    refused = [error for error in errors if error is not None]
    assert refused
    assert len(server.lags) == len(errors) - len(refused)
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "requests wait" in error.details()
        assert int(dict(error.trailing_metadata())["retry-after-ms"]) >= 1000 * BLOCKED / 2
    assert len(server.rejected) == len(refused)
    assert server.call(b"", timeout=10) == b"answer"  # once the queue is empty


def test_a_long_wait_refuses_none_if_a_model_has_no_objective(start):
    server = start(Registry().longest_objective())
    assert all(call.result() == b"answer" for call in server.send_while_blocked(10))


def test_describe_says_what_reading_a_request_costs(make_server, wait_until):
    server = make_server(options=ListenerOptions())  # of its own, with the measurements
    tensor = to_tensor("series", np.ones((1, 2), np.float32))
    request = PredictRequest(model="regressor", inputs=[tensor])

    def cost():
        server.prediction.Predict(request, timeout=10)
        described = server.models.Describe(DescribeModelRequest(model="regressor"), timeout=10)
        return described.batching.request_seconds

    if server.listener.name == "aio":  # which does not measure it
        assert cost() == 0.0
        return
    wait_until(lambda: cost() > 0.0)
    assert cost() < 0.1
