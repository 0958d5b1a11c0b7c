import logging

import pytest
from support import cuda_stand_ins

from neurona_server.errors import ConfigError
from neurona_server.models.onnx import devices, gpu_installation
from neurona_server.models.onnx.cuda_driver import CudaDevice
from neurona_server.models.onnx.devices import (
    CPU_DEVICE,
    Device,
    DeviceTable,
    choose_devices,
    device_of,
)
from neurona_server.models.onnx.gpu_facts import InstallationFacts
from neurona_server.models.onnx.gpu_installation import InstallationCheck
from neurona_server.models.onnx.runtime import (
    RuntimeOptions,
    check_options,
    find_devices,
    missing_gpu_reason,
    report_gpu,
)

FIRST = Device("cuda", 0, "NVIDIA H200", "GPU-5a1b0000", 1 << 37)
SECOND = Device("cuda", 1, "NVIDIA H200", "GPU-5A2c0000", 1 << 37)
SLICE = Device("cuda", 2, "NVIDIA H200 MIG 1g.18gb", "MIG-77", 18 << 30)
AVAILABLE = (FIRST, SECOND, SLICE)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("all", AVAILABLE),
        ("0", (FIRST,)),
        ("1, 0", (SECOND, FIRST)),
        ("GPU-5a1", (FIRST,)),
        ("gpu-5A2C0000,MIG-77,0", (SECOND, SLICE, FIRST)),
    ],
)
def test_options_name_devices(option, expected):
    assert choose_devices(option, AVAILABLE) == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "3",
            r"option devices has '3', which no device has \(expected all, or of 0 \(GPU-5a1b0000",
        ),
        ("GPU-5a", "has 'GPU-5a', which several devices have"),
        ("MIG-78", "has 'MIG-78', which no device has"),
        ("1,GPU-5a2", "has cuda:1 twice: 'GPU-5a2'"),
    ],
)
def test_devices_that_there_are_not_are_rejected(option, message):
    with pytest.raises(ConfigError, match=message):
        choose_devices(option, AVAILABLE)


def test_labels():
    assert [one.label for one in (CPU_DEVICE, FIRST, SLICE)] == ["cpu", "cuda:0", "cuda:MIG-77"]


def test_a_label_stands_for_its_device():
    for device in (CPU_DEVICE, FIRST, SECOND, SLICE):
        assert device_of(device.label).label == device.label
    assert (device_of("cuda:1").number, device_of("cuda:MIG-77").number) == (1, 0)


def test_the_driver_lists_the_devices(cuda_stub, monkeypatch):
    cuda_stub.install(monkeypatch, devices=2, memory=1 << 30)
    first, second = DeviceTable().usable()
    assert (first.label, second.label, second.memory_bytes) == ("cuda:0", "cuda:1", 1 << 30)
    assert second.uuid == "GPU-00000000-0000-0000-0000-000000000001"
    cuda_stub.install(monkeypatch, devices=2, visible="1")
    (only,) = DeviceTable().usable()
    assert (only.number, only.uuid) == (0, second.uuid)
    cuda_stub.install(monkeypatch, mig=1)
    (part,) = DeviceTable().usable()
    assert part.uuid == "MIG-00000000-0000-0000-0000-000000000000"
    assert choose_devices("MIG-0", [part]) == (part,)


def test_a_table_is_read_once(cuda_stub, monkeypatch):
    cuda_stub.install(monkeypatch, devices=2)
    table = DeviceTable()
    assert len(table.devices()) == 2
    cuda_stub.configure(monkeypatch, devices=1)
    assert len(table.devices()) == 2


def test_a_driver_that_does_not_start_has_no_devices(cuda_stub, monkeypatch, caplog):
    cuda_stub.install(monkeypatch, errors="cuInit=803")
    with caplog.at_level(logging.INFO):
        assert DeviceTable().devices() == ()
    assert "no CUDA devices: cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)" in caplog.text


def test_devices_of_a_model(cuda_stub, monkeypatch):
    assert find_devices(RuntimeOptions(providers=("cpu",), devices="7")) == (CPU_DEVICE,)
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=3)
    (first,) = find_devices(RuntimeOptions())
    assert first.number == 0
    assert [one.number for one in find_devices(RuntimeOptions(devices="2,0"))] == [2, 0]
    with pytest.raises(ConfigError, match="option devices has '3', which no device has"):
        check_options(RuntimeOptions(devices="3"))


def test_all_devices_are_those_that_onnxruntime_can_run_on(cuda_stub, monkeypatch, caplog):
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=3)
    reports = [
        CudaDevice(0, "TITAN V", "GPU-0", 1, (7, 0)),
        *(CudaDevice(number, "NVIDIA H200", f"GPU-{number}", 1, (9, 0)) for number in (1, 2)),
    ]
    facts = InstallationFacts(driver_version=(13, 0), devices=tuple(reports), cuda_build=(13, 0))
    monkeypatch.setattr(gpu_installation, "CHECK", InstallationCheck(lambda: facts))
    tried = []
    monkeypatch.setattr(
        gpu_installation, "probe_device", lambda number, _: tried.append(number) or ""
    )
    options = RuntimeOptions(devices="all")
    assert [one.number for one in find_devices(options)] == [1, 2]
    with caplog.at_level(logging.INFO):
        report_gpu(options)
    assert "cuda:0 is not used: TITAN V is too old: it has compute capability 7.0" in caplog.text
    assert "1: NVIDIA H200 (compute capability 9.0" in caplog.text
    assert missing_gpu_reason(options) == ""
    assert missing_gpu_reason(RuntimeOptions(devices="0")).startswith("TITAN V is too old")
    assert sorted(tried) == [1, 2]  # once each


def test_a_device_that_is_not_in_the_options_is_not_tried(cuda_stub, monkeypatch):
    """Its memory is for others: a try alone takes some hundred MB of it."""
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=2)
    reports = [CudaDevice(number, "NVIDIA H200", "GPU", 1, (9, 0)) for number in (0, 1)]
    facts = InstallationFacts(driver_version=(13, 0), devices=tuple(reports), cuda_build=(13, 0))
    monkeypatch.setattr(gpu_installation, "CHECK", InstallationCheck(lambda: facts))
    tried = []
    monkeypatch.setattr(
        gpu_installation, "probe_device", lambda number, _: tried.append(number) or ""
    )
    check_options(RuntimeOptions(devices="1", require_gpu=True))
    report_gpu(RuntimeOptions(devices="1"))
    assert tried == [1]


def test_without_a_list_of_devices_the_first_is_tried(cuda_stub, monkeypatch):
    cuda_stand_ins.install(monkeypatch, cuda_stub, errors="cuDeviceGetName=999")
    assert find_devices(RuntimeOptions(devices="all")) == (Device("cuda"),)
    assert devices.DEVICES.devices() == ()
