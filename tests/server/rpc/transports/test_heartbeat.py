"""A transport whose thread hangs is noticed, and one that only waits or works hard is not."""

import queue
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.in_process_server import run_app

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.rpc.call import Unary
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.heartbeat import Heartbeat
from neurona_server.rpc.transports.listener import ListenerOptions


class BlockedService:
    """A method that blocks the transport's thread until it is released."""

    def __init__(self):
        self.entered, self.released = threading.Event(), threading.Event()

    def methods(self):
        return {"/test/Block": Unary(self._block, None), "/test/Echo": Unary(self._echo, None)}

    def _block(self, call):
        self.entered.set()
        self.released.wait(60)
        call.reply(b"")

    def _echo(self, call):
        call.reply(call.request)


@pytest.fixture
def service():
    return BlockedService()


@pytest.fixture
def listener(transport, service):
    listener = open_transport(transport, service.methods(), ListenerOptions())
    yield listener
    service.released.set()
    listener.stop(5.0)


@pytest.fixture
def channel(listener):
    with grpc.insecure_channel(f"127.0.0.1:{listener.start('127.0.0.1:0')}") as channel:
        yield channel


def test_hung_transport_is_reported_once_and_its_recovery_too(listener, channel, service):
    changes: queue.SimpleQueue[str] = queue.SimpleQueue()
    beat = Heartbeat(listener.has_turned, changes.put, period=0.05)
    beat.start()
    call = channel.unary_unary("/test/Block").future(b"", timeout=60)
    try:
        reason = changes.get(timeout=20)
        assert reason == "the transport's thread has not turned for 0.25 s"
        assert service.entered.is_set()
        service.released.set()
        assert changes.get(timeout=20) == ""
        assert call.result() == b""
    finally:
        beat.stop()
    assert changes.empty()


def test_transport_that_waits_or_works_counts_as_alive(listener, channel):
    listener.has_turned()
    time.sleep(0.3)
    assert listener.has_turned()
    time.sleep(0.3)
    assert listener.has_turned()
    echo = channel.unary_unary("/test/Echo")
    for _ in range(20):
        echo(b"", timeout=20)
        time.sleep(0.01)  # the loop of aio answers a ping between two calls
        assert listener.has_turned()


def test_health_is_not_serving_while_the_transport_hangs(repository, transport, monkeypatch):
    monkeypatch.setattr(Heartbeat.__init__, "__defaults__", (0.05,))
    released = threading.Event()
    resolve = Registry.resolve

    def block(self, name, *rest):
        if name == "blocking":
            released.wait(60)
        return resolve(self, name, *rest)

    monkeypatch.setattr(Registry, "resolve", block)
    with run_app(["--repository", str(repository), "--transport", transport], {}) as app:
        url = f"http://{app.metrics_address}/healthz"
        watch = HealthStub(app.channel).Watch(HealthCheckRequest(), timeout=60)
        states = (response.status for response in watch)
        assert next(states) == HealthCheckResponse.SERVING
        call = PredictionStub(app.channel).Predict.future(
            PredictRequest(model="blocking"), timeout=60
        )
        end = time.monotonic() + 20
        while app.count("neurona_serving"):
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(url)
        text = caught.value.read().decode()
        assert text.startswith("NOT_SERVING: the transport's thread has not turned for ")
        released.set()
        assert call.code() == grpc.StatusCode.NOT_FOUND
        while not app.count("neurona_serving"):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert urllib.request.urlopen(url).read() == b"SERVING\n"
        assert next(states) in (HealthCheckResponse.NOT_SERVING, HealthCheckResponse.SERVING)
        watch.cancel()


def test_app_stops_within_its_drain_time_although_the_transport_hangs(
    repository, transport, monkeypatch
):
    entered, released = threading.Event(), threading.Event()

    def block(*_):
        entered.set()
        released.wait(60)

    monkeypatch.setattr(Registry, "resolve", block)
    flags = ["--repository", str(repository), "--transport", transport, "--drain-timeout-ms", "200"]
    with run_app(flags, {}) as app:
        stub = PredictionStub(app.channel)
        call = stub.Predict.future(PredictRequest(model="regressor"), timeout=60)
        assert entered.wait(20)
        started = time.monotonic()
        assert not app.app.stop()  # so that the process ends without waiting for the thread
        assert time.monotonic() - started < 20
        assert not call.done() or call.code() != grpc.StatusCode.OK
        released.set()
