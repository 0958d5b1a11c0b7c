import weakref
from pathlib import Path

import onnxruntime
import pytest
from support.cuda_stub import CudaStub

from neurona_server.models.onnx import cuda_driver
from neurona_server.models.onnx.cuda_driver import LIBRARY_MISSING
from neurona_server.models.onnx.gpu_facts import (
    InstallationFacts,
    gather_facts,
    has_cuda_driver,
    is_container,
    runtime_packages,
)

PROC_VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs)\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def test_an_empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    facts = gather_facts(tmp_path)
    assert not has_cuda_driver()
    assert facts.driver_error is not None
    assert facts.driver_error.code == LIBRARY_MISSING
    # What callers hold, such as sessions, would not be freed.
    assert (facts.driver_error.__traceback__, facts.driver_error.__context__) == (None, None)
    assert (facts.kernel_module, facts.driver_library, facts.devices) == ("", "", ())
    assert (facts.hardware, facts.device_files, facts.container) == (False, False, False)
    assert facts.missing_libraries == ()  # not looked for without a driver


def test_a_machine_with_a_driver(
    tmp_path: Path, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stub.install(monkeypatch, devices=2, version=13010, visible="1,0")
    write(tmp_path / "proc/driver/nvidia/version", PROC_VERSION)
    write(tmp_path / "proc/self/maps", "7f-80 r-xp 0 fe:0 1  /usr/lib/libcuda.so.580.65.06\n")
    write(tmp_path / "sys/bus/pci/devices/0000:00:01.0/vendor", "0x8086\n")
    write(tmp_path / "sys/bus/pci/devices/0000:00:01.0/class", "0x030000\n")
    write(tmp_path / "sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n")
    write(tmp_path / "sys/bus/pci/devices/0000:17:00.0/class", "0x030200\n")
    write(tmp_path / "dev/nvidia0")
    write(tmp_path / "run/.containerenv")
    facts = gather_facts(tmp_path)
    assert has_cuda_driver()
    assert (facts.driver_error, facts.driver_version) == (None, (13, 1))
    assert [device.uuid[-1] for device in facts.devices] == ["1", "0"]
    assert (facts.kernel_module, facts.driver_library) == ("580.82.07", "580.65.06")
    assert facts.hardware
    assert facts.device_files
    assert facts.container
    assert facts.visible_devices == "1,0"


def test_a_driver_that_does_not_start_has_its_version(
    tmp_path: Path, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stub.install(monkeypatch, errors="cuInit=803", version=12040)
    write(tmp_path / "sys/module/nvidia/version", "550.54.14\n")
    write(tmp_path / "sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n")  # an audio device
    write(tmp_path / "sys/bus/pci/devices/0000:17:00.0/class", "0x040300\n")
    facts = gather_facts(tmp_path)
    assert facts.driver_error is not None
    assert (facts.driver_error.code, facts.driver_version) == (803, (12, 4))
    assert facts.kernel_module == "550.54.14"
    assert not facts.hardware


def test_containers_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_container(tmp_path)
    write(tmp_path / ".dockerenv")
    assert is_container(tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert is_container(tmp_path / "elsewhere")


def test_packages_that_overwrite_each_other_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(runtime_packages()) == 1
    (tmp_path / "onnxruntime").mkdir()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    for name in ("onnxruntime-1.31.1", "onnxruntime_gpu-1.31.1", "onnxruntime_extensions-0.14"):
        (tmp_path / f"{name}.dist-info").mkdir()
    assert runtime_packages() == ["onnxruntime", "onnxruntime-gpu"]


class Caller:
    """What the caller of `gather_facts` holds, as a model that is loaded."""


def test_the_error_of_a_missing_driver_keeps_nothing_of_its_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", str(tmp_path / "libcuda.so.1"))

    def call() -> tuple[InstallationFacts, weakref.ref[Caller]]:
        caller = Caller()
        return gather_facts(tmp_path), weakref.ref(caller)

    facts, caller = call()
    assert facts.driver_error is not None
    assert caller() is None
