"""Devices of a machine with GPUs: their list, sessions on each of them, and batches in flight."""

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.fakes import FakeRequest

from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.policy import BatchPolicy
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx.cuda_driver import load_driver
from neurona_server.models.onnx.devices import CUDA_SLOTS, DEVICES
from neurona_server.models.onnx.runtime import CUDA, RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics

ON_ALL = RuntimeOptions(threads=1, devices="all", require_gpu=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return onnx_models.save_classifier(tmp_path / "c" / "1" / "model.onnx")


def test_the_list_of_devices_is_that_of_nvml(cuda):
    pynvml = pytest.importorskip("pynvml")
    pynvml.nvmlInit()
    by_uuid = {}
    for number in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        by_uuid[pynvml.nvmlDeviceGetUUID(handle)] = pynvml.nvmlDeviceGetName(handle)
    devices = DEVICES.devices()
    assert devices, "the driver lists no device"
    for device in devices:
        if device.uuid.startswith("GPU-"):
            assert by_uuid[device.uuid] == device.name, f"{device} is not in NVML's {by_uuid}"
        assert device.memory_bytes > 1 << 30


def test_a_session_is_on_its_device(cuda, path):
    driver = load_driver()
    for device in DEVICES.devices():
        before, _ = driver.memory_info(device.number)
        with closing(Session(path, ON_ALL, device=device)) as session:
            session.run({"x": np.zeros((1 << 18, 4), np.float32)})
            after, _ = driver.memory_info(device.number)
            assert (session.provider, session.device) == (CUDA, device), session.degraded
            assert after < before, f"the session has no memory on {device.label}"


class AwaitedRequest(FakeRequest):
    """A request of one row that a thread can wait for."""

    def __init__(self, batcher, row):
        super().__init__({"x": np.array([row], np.float32)}, 1, (4,))
        self.ended = threading.Event()
        batcher.submit(self)

    def finish(self, outputs, error):
        super().finish(outputs, error)
        self.ended.set()


def test_batches_spread_over_all_devices_and_slots(cuda, path):
    scheduler, most, lock = DeviceScheduler(CUDA_SLOTS), {}, threading.Lock()
    options = ModelOptions(BatchPolicy(max_rows=1, inline=False), ON_ALL)
    model = Model(ModelSource("c", 1, path), options, Metrics(CollectorRegistry()), scheduler)
    labels = [device.label for device in DEVICES.devices()]
    assert [device.label for device in model.devices] == labels, model.degraded
    assert model.batcher.instances == CUDA_SLOTS * len(labels)
    on_cpu = Session(path, RuntimeOptions(providers=("cpu",)))
    (expected,) = on_cpu.run({"x": np.array([[1, 2, 3, 4]], np.float32)})

    def watch(label):
        with lock:
            use = scheduler.use(label)
            most[label] = max(most.get(label, 0), use.slots - use.free_slots)

    def wrap(label, new_run):
        def make():
            watch(label)
            return new_run()

        return make

    for label, new_runs in model.batcher._runs.idle.items():
        new_runs[:] = [wrap(label, new_run) for new_run in new_runs]
    model.start()
    requests = [AwaitedRequest(model.batcher, [1, 2, 3, 4]) for _ in range(400)]
    for request in requests:
        assert request.ended.wait(30), "a request did not end"
        outputs, error = request.results[0]
        assert error is None, error
        np.testing.assert_allclose(np.asarray(outputs[0])[0], expected[0], rtol=1e-2)
    assert most == dict.fromkeys(labels, CUDA_SLOTS), f"batches in flight at most: {most}"
    assert model.drain(10)
    model.close()
