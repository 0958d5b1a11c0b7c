"""A server whose devices are lost: the stub of the driver lists them, the CPU stands in for them.

Real sessions run in a real App; what ONNX Runtime says of a lost device is put in its mouth.
"""

import contextlib
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client import CollectorRegistry
from support import cuda_stand_ins, onnx_models
from support.in_process_server import run_app

from neurona_protos.prediction_pb2 import DescribeModelRequest, PredictRequest, State
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_tensor
from neurona_server.batching import batcher as batcher_module
from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.models.lifecycle.lost_devices import LostDevices
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.onnx import device_loss
from neurona_server.models.onnx import session as session_module
from neurona_server.models.onnx.device_shares import DeviceShare
from neurona_server.models.onnx.session import Session
from neurona_server.telemetry.metrics import Metrics

ILLEGAL_ADDRESS = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
    "Name:'m' Status Message: CUDA failure 700: an illegal memory access was encountered ; GPU=0 "
    "; hostname=a ; file=/onnxruntime_src/x.cc ; line=9 ; expr=cudaStreamSynchronize(stream_); "
)
OK = grpc.StatusCode.OK
REASON = "CUDA error 700: an illegal memory access was encountered"
REQUEST = PredictRequest(model="classifier", inputs=[to_tensor("x", np.zeros((1, 4), np.float32))])


class Devices:
    """What becomes of runs on each device, by its label."""

    def __init__(self, monkeypatch):
        self.errors = {}
        self.runs = []
        run = Session._run

        def run_or_fail(session, *arguments):
            label = session.device.label
            self.runs.append(label)
            if (error := self.errors.get(label)) is not None:
                error()
            return run(session, *arguments)

        monkeypatch.setattr(Session, "_run", run_or_fail)

    def lose(self, label):
        def fail():
            raise RuntimeError(ILLEGAL_ADDRESS)

        self.errors[label] = fail


class Server:
    def __init__(self, running):
        self.running = running
        self.prediction = PredictionStub(running.channel)
        self.models = ModelsStub(running.channel)
        self.health = HealthStub(running.channel)

    def predict(self):
        """Return OK, or else the status code and its details."""
        try:
            self.prediction.Predict(REQUEST, timeout=10)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return OK

    def version(self):
        return self.models.Describe(DescribeModelRequest(model="classifier")).version

    def serves(self, name):
        try:
            status = self.health.Check(HealthCheckRequest(service=name)).status
        except grpc.RpcError as error:
            return error.code()
        return status == HealthCheckResponse.SERVING


@pytest.fixture
def devices(cuda_stub, monkeypatch):
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=2)
    monkeypatch.setattr(session_module, "_abandoned_sessions", [])
    return Devices(monkeypatch)


@pytest.fixture
def serve(tmp_path, devices):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")

    @contextlib.contextmanager
    def serve(*arguments):
        flags = ["--repository", str(tmp_path), "--inline", "never", *arguments]
        with run_app(flags, {}) as running:
            yield Server(running)

    return serve


def test_a_model_goes_on_with_the_device_that_is_left(serve, devices, wait_until):
    with serve("--devices", "all") as server:
        devices.lose("cuda:0")
        assert {server.predict() for _ in range(20)} == {OK}
        wait_until(lambda: server.serves("gpu") is False)
        version = server.version()
        assert version.state == State.STATE_READY
        assert version.degraded == f"cuda:0 is lost ({REASON})"
        assert [one.label for one in version.devices] == ["cuda:1"]
        assert server.serves("classifier/1")
        assert server.running.count("neurona_device_lost", device="cuda:0") == 1
        devices.runs.clear()
        assert server.predict() == OK
        assert devices.runs == ["cuda:1"]


def test_a_model_without_a_device_moves_to_another_one(serve, devices, wait_until):
    with serve() as server:
        devices.lose("cuda:0")
        code, details = server.predict()
        assert code == grpc.StatusCode.UNAVAILABLE
        assert details == f"device lost: cuda:0 failed while it ran the request ({REASON})"
        wait_until(lambda: server.predict() == OK)
        version = server.version()
        assert [one.label for one in version.devices] == ["cuda:1"]
        assert version.degraded == f"cuda:0 is lost ({REASON})"
        assert not server.serves("gpu")
        wait_until(lambda: server.serves("classifier") is True)

        devices.lose("cuda:1")  # then to the CPU
        wait_until(lambda: server.predict() == OK and devices.runs[-1] == "cpu")
        version = server.version()
        assert version.degraded == f"runs on the CPU: cuda:0 is lost ({REASON})"
        wait_until(lambda: server.serves("classifier") is True)
        assert not server.serves("gpu")


def test_a_model_that_needs_a_gpu_fails_clearly(serve, devices, wait_until, monkeypatch):
    monkeypatch.setattr(device_loss, "needs_gpu", lambda _: True)
    with serve("--devices", "1") as server:
        devices.lose("cuda:1")
        devices.lose("cuda:0")
        assert server.predict()[0] == grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: server.version().reason.endswith("its providers all need one"))
        version = server.version()
        assert version.state == State.STATE_FAILED
        assert version.reason == (
            f"cuda:1 is lost ({REASON}), no other GPU is left, and its providers all need one"
        )
        code, details = server.predict()
        assert code == grpc.StatusCode.UNAVAILABLE
        assert details.startswith("device lost: cuda:1")
        for name in ("classifier", "classifier/1", "gpu"):
            wait_until(lambda name=name: server.serves(name) is False)
        assert server.serves("neurona.v1.Prediction")


def test_a_run_that_never_returns_keeps_nobody_waiting(serve, devices, monkeypatch, cuda_stub):
    """The run hangs, the driver says why: its request is answered, and the server stops in time."""
    monkeypatch.setattr(batcher_module, "SUSPECT_SECONDS", 0.2)
    monkeypatch.setattr(batcher_module, "ABANDON_SECONDS", 0.1)
    returns = []

    def hang():
        while not returns:
            time.sleep(0.01)
        raise RuntimeError(ILLEGAL_ADDRESS)

    try:
        with serve("--devices", "all") as server:
            devices.errors["cuda:0"] = hang
            cuda_stub.configure(monkeypatch, devices=2, errors="cuMemGetInfo=999")
            started = time.monotonic()
            assert {server.predict() for _ in range(10)} == {OK}
            assert server.version().devices[0].label == "cuda:1"
            assert time.monotonic() - started < 8
            stopping = time.monotonic()
        assert time.monotonic() - stopping < 8
    finally:
        returns.append(True)


def test_a_device_that_is_lost_while_a_model_loads_is_left_out(serve, devices):
    devices.lose("cuda:0")
    with serve("--devices", "all") as server:
        assert server.predict() == OK
        assert [one.label for one in server.version().devices] == ["cuda:1"]
        assert not server.serves("gpu")


def test_a_process_is_replaced_once_its_own_devices_are_lost(cuda_stub, monkeypatch, wait_until):
    """Those of the other processes are none of its own, however many are left."""
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=3)
    scheduler, replacements = DeviceScheduler(2), []
    metrics = Metrics(CollectorRegistry())
    lost = LostDevices(
        scheduler, Registry(), metrics, lambda: replacements.append(1), DeviceShare(0, 2)
    )
    scheduler.mark_lost("cuda:0", "burnt")
    wait_until(lambda: not any("lost cuda" in one.name for one in threading.enumerate()))
    assert (lost.any, replacements) == (True, [])
    scheduler.mark_lost("cuda:2", "burnt")
    wait_until(lambda: replacements == [1])
