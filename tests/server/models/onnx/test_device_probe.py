"""Questions about lost devices to the stand-in for NVIDIA's driver."""

import time

import pytest

from neurona_server.models.onnx.cuda_driver import load_driver
from neurona_server.models.onnx.device_probe import DeviceProbe, probe_device
from neurona_server.models.onnx.devices import Device


@pytest.fixture
def probe(cuda_stub, monkeypatch):
    cuda_stub.configure(monkeypatch, devices=2)
    return DeviceProbe(load_driver(str(cuda_stub.path)), seconds=0.2)


@pytest.mark.parametrize("code", [214, 700, 719, 999])
@pytest.mark.parametrize("function", ["cuMemGetInfo", "cuCtxPushCurrent"])
def test_an_error_that_stays_means_that_the_device_is_lost(
    probe, cuda_stub, monkeypatch, function, code
):
    assert probe.ask(1) == ""
    cuda_stub.configure(monkeypatch, devices=2, errors=f"{function}={code}")
    reason = probe.ask(1)
    assert reason.startswith("CUDA_ERROR_")
    assert reason.endswith(f"({code})")
    cuda_stub.configure(monkeypatch, devices=2)
    assert probe.ask(1) == ""


def test_other_errors_do_not_mean_that(probe, cuda_stub, monkeypatch):
    for code in (1, 2, 201):
        cuda_stub.configure(monkeypatch, devices=2, errors=f"cuMemGetInfo={code}")
        assert probe.ask(0) == ""


def test_a_driver_that_does_not_answer_is_waited_for_once(probe, cuda_stub, monkeypatch):
    cuda_stub.configure(monkeypatch, devices=2, errors="cuMemGetInfo=hang")
    started = time.monotonic()
    assert probe.ask(0) == "the driver has not answered for 0.2 s"
    assert probe.ask(0) == "the driver has not answered for 0.2 s"
    assert time.monotonic() - started < 5
    cuda_stub.configure(monkeypatch, devices=2)
    assert probe.ask(0) == "the driver has not answered for 0.2 s"  # the question still waits
    assert probe.ask(1) == ""


def test_the_devices_of_this_process(cuda_stub, monkeypatch):
    device = Device("cuda", 1)
    cuda_stub.install(monkeypatch, devices=2, errors="cuMemGetInfo=700")
    assert probe_device(device) == "CUDA_ERROR_ILLEGAL_ADDRESS (700)"
    cuda_stub.configure(monkeypatch, devices=2)
    assert probe_device(device) == ""


def test_without_a_driver_no_device_is_lost(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "neurona_server.models.onnx.cuda_driver.LIBRARY", str(tmp_path / "libcuda.so.1")
    )
    assert probe_device(Device("cuda")) == ""
