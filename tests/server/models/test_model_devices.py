import threading
from contextlib import ExitStack

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support import cuda_stand_ins
from support.fakes import FakeRequest

from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.errors import DeviceLostError, LoadError
from neurona_server.models import model as models
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx import devices
from neurona_server.models.onnx.devices import CPU_DEVICE
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.telemetry.metrics import Metrics


class AwaitedRequest(FakeRequest):
    """A request of some rows that a thread can wait for."""

    def __init__(self, model, rows=1):
        super().__init__({"x": np.zeros((rows, 4), np.float32)}, rows, (4,))
        self.ended = threading.Event()
        model.batcher.submit(self)

    def finish(self, outputs, error):
        super().finish(outputs, error)
        self.ended.set()

    def succeeds(self):
        assert self.ended.wait(10)
        return self.results[0][1] is None


TWO = RuntimeOptions(threads=1, devices="all")


@pytest.fixture
def load(repository, cuda_stub, monkeypatch):
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=2)
    path = repository / "classifier" / "1" / "model.onnx"
    with ExitStack() as stack:

        def load(options, scheduler=None, **settings):
            source = ModelSource("c", 1, path, ModelSettings(**settings))
            registry = CollectorRegistry()
            model = Model(source, options, Metrics(registry), scheduler)
            model.registry = registry
            stack.callback(model.close)
            return model

        yield load


def device_value(model, name, device):
    labels = {"model": "c", "version": "1", "device": device}
    return model.registry.get_sample_value(f"neurona_device_{name}_total", labels)


def labels(model):
    return [session.device.label for session in model.sessions]


def test_a_model_has_its_instances_on_each_device(load):
    model = load(ModelOptions(runtime=TWO, instances=2))
    assert labels(model) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert [device.label for device in model.devices] == ["cuda:0", "cuda:1"]
    assert (model.instances, model.batcher.instances) == (2, 8)  # two runs of each in flight
    assert model.degraded == ""


def test_the_first_device_is_the_default(load):
    assert labels(load(ModelOptions())) == ["cuda:0"]


def test_a_model_has_devices_of_its_own(load):
    assert labels(load(ModelOptions(), devices="1")) == ["cuda:1"]
    by_gpu = load(ModelOptions(), devices="0,1", instances=2, instances_by_gpu={0: 1, 1: 2})
    assert labels(by_gpu) == ["cuda:0", "cuda:1", "cuda:1"]
    with pytest.raises(LoadError, match="devices has '2', which no device has"):
        load(ModelOptions(), devices="2")


class WithoutSecondDevice(Session):
    """A session that is on the CPU where the second device was wanted."""

    def __init__(self, path, options, cancellation, device):
        super().__init__(path, options, cancellation, device)
        if device.number == 1:
            self.device, self.slots = CPU_DEVICE, 1
            self.degraded = "runs on the CPU: cuda:1 could not be started"


def test_a_device_that_does_not_take_the_model_is_left_out(load, monkeypatch):
    monkeypatch.setattr(models, "Session", WithoutSecondDevice)
    model = load(ModelOptions(runtime=TWO, instances=2))
    assert labels(model) == ["cuda:0", "cuda:0"]
    assert model.degraded == "does not run on cuda:1; see the server's log"
    model = load(ModelOptions(runtime=RuntimeOptions(devices="1"), instances=2))
    assert labels(model) == ["cpu", "cpu"]
    assert model.degraded == "runs on the CPU: cuda:1 could not be started"


@pytest.mark.parametrize("lost_before", [False, True])
def test_a_device_that_is_lost_while_a_model_loads_is_left_out(load, monkeypatch, lost_before):
    """No matter which notices it first: this model, or another one that loads or runs beside it."""
    scheduler = DeviceScheduler(2)
    scheduler.on_lost = devices.DEVICES.mark_lost
    run = Session._run

    def run_or_lose(session, *arguments):
        if session.device.label == "cuda:0":
            if lost_before:
                scheduler.mark_lost("cuda:0", "burnt")
            raise DeviceLostError("cuda:0", "burnt")
        return run(session, *arguments)

    monkeypatch.setattr(Session, "_run", run_or_lose)
    model = load(ModelOptions(runtime=TWO), scheduler)
    assert labels(model) == ["cuda:1"]
    assert model.degraded == "cuda:0 is lost (burnt)"
    assert scheduler.lost_devices == {"cuda:0": "burnt"}


def test_batches_spread_over_the_devices(load):
    scheduler = DeviceScheduler(2)
    model = load(ModelOptions(runtime=TWO), scheduler)
    model.start()
    assert all(AwaitedRequest(model).succeeds() for _ in range(40))
    assert model.drain(10)  # a batch is counted after its responses
    for label in ("cuda:0", "cuda:1"):
        assert 0 < device_value(model, "run_seconds", label) <= scheduler.use(label).seconds
    assert device_value(model, "runs", "cuda:0") + device_value(model, "runs", "cuda:1") == 40


def test_a_busy_device_is_avoided(load):
    """While others hold both slots of one device, all batches run on the other."""
    scheduler = DeviceScheduler(2)
    model = load(ModelOptions(runtime=TWO), scheduler)
    other = load(ModelOptions(), scheduler, devices="1")
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(scheduler.turn(other.batcher._runs, lambda: 0.0))
        model.start()
        assert all(AwaitedRequest(model).succeeds() for _ in range(10))
        assert scheduler.use("cuda:1").seconds == 0
        assert scheduler.use("cuda:0").seconds > 0
    assert model.drain(10)


def test_a_batch_has_a_run_of_a_device_for_itself(load):
    """No two batches, inline ones included, ever use the same slot of a device at once."""
    model = load(ModelOptions(runtime=TWO), DeviceScheduler(2))
    rows = []

    def watch(new_run):
        slot = threading.Lock()

        def make():
            run = new_run()

            def run_alone(inputs):
                assert slot.acquire(blocking=False), "another batch uses it"
                try:
                    rows.append(len(inputs["x"]))
                    return run(inputs)
                finally:
                    slot.release()

            run_alone.terminate = run.terminate
            return run_alone

        return make

    for new_runs in model.batcher._runs.idle.values():
        new_runs[:] = [watch(new_run) for new_run in new_runs]
    model.start()
    requests = []
    for _ in range(200):
        requests.append(AwaitedRequest(model, 8))
        model.batcher.serve_inline()
    assert all(request.succeeds() for request in requests)
    assert sum(rows) >= 1600
    assert model.drain(10)


def test_after_a_lack_of_memory_the_arenas_of_all_devices_are_freed(load, monkeypatch):
    freed = []

    def free_memory(session):
        freed.append(session)

    monkeypatch.setattr(Session, "free_memory", free_memory)
    model = load(ModelOptions(runtime=TWO, instances=2))
    other = load(ModelOptions(), devices="1")
    model.batcher.free_memory()
    assert {*model.sessions, *other.sessions} <= {*freed}  # others of this process may be open
