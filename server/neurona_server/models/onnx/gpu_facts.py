"""What this machine and this process have for running models on NVIDIA's GPUs.

Gathered from the driver, from the files of the system (paths as the NVIDIA driver's README and
Linux's documentation of sysfs have them), from the installed packages and from the loader of
libraries. gpu_installation.py says what the facts mean.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from neurona_server.models.onnx import cuda_driver
from neurona_server.models.onnx.cuda_driver import CudaDevice, CudaDriverError, load_driver
from neurona_server.models.onnx.cuda_libraries import (
    CudaLibrary,
    can_load,
    cudnn_cuda_major,
    load_libraries,
)

CUDA_PROVIDER = "CUDAExecutionProvider"

RUNTIME_PACKAGES = (
    *("onnxruntime", "onnxruntime-directml", "onnxruntime-gpu", "onnxruntime-migraphx"),
    *("onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-rocm", "onnxruntime-training"),
)
"""Packages of PyPI that hold a folder `onnxruntime`."""

MIN_DRIVERS = {12: "525", 13: "580"}
"""NVIDIA's first driver for each major version of CUDA, on Linux."""

_NVIDIA_VENDOR = "0x10de"  # of PCI
_DISPLAY_CLASS = "0x03"  # of PCI: display controllers, also those without a display


def has_cuda_driver() -> bool:
    """Return whether the NVIDIA driver's library can be loaded; does not start it."""
    return can_load(cuda_driver.LIBRARY)


@dataclass(frozen=True, kw_only=True)
class InstallationFacts:
    """What decides whether this process can use a GPU."""

    driver_error: CudaDriverError | None = None
    """Why the driver cannot be used; None if it can."""

    driver_version: tuple[int, int] | None = None
    """The newest CUDA that the driver supports."""

    devices: tuple[CudaDevice, ...] = ()

    cuda_build: tuple[int, int] | None = None
    """The CUDA that onnxruntime was built with, None if it has no CUDA provider."""

    missing_libraries: tuple[CudaLibrary, ...] = ()

    cudnn_cuda_major: int = 0
    """Major version of the CUDA that cuDNN is built for; 0 if that is not known."""

    kernel_module: str = ""
    """Version of the machine's NVIDIA kernel module, as "580.82.07"."""

    driver_library: str = ""
    """Version of the driver's library, where its file's name has one."""

    hardware: bool = False
    """Whether the machine has an NVIDIA GPU on its PCI bus."""

    device_files: bool = False
    """Whether a device file of a GPU is there, as /dev/nvidia0."""

    container: bool = False

    visible_devices: str | None = None
    """CUDA_VISIBLE_DEVICES; None: it is not set."""


def gather_facts(root: Path = Path("/")) -> InstallationFacts:
    """Look at the driver, the devices, the libraries and the system, and load the libraries.

    Args:
        root: The folder with the system's `proc`, `sys` and `dev`.
    """
    error: CudaDriverError | None = None
    version: tuple[int, int] | None = None
    devices: tuple[CudaDevice, ...] = ()
    try:
        driver = load_driver()
        version = driver.version
        devices = tuple(driver.device(number) for number in range(driver.device_count()))
    except CudaDriverError as caught:
        # It is kept, and its traceback would keep what callers hold, such as a session.
        error, version = caught.with_traceback(None), version or caught.version
        error.__context__ = None
    build = cuda_build()
    missing: list[CudaLibrary] = []
    if error is None and build is not None and build[0] in MIN_DRIVERS:
        if sys.platform == "win32":
            onnxruntime.preload_dlls()
        else:
            missing = load_libraries(build[0])
            needed = [library for library in missing if not library.optional]
            if all("cudnn" in library.file for library in needed):  # it prints names of others
                # For what else a version does: some register their provider only now.
                onnxruntime.preload_dlls()
    return InstallationFacts(
        driver_error=error,
        driver_version=version,
        devices=devices,
        cuda_build=build,
        missing_libraries=tuple(missing),
        cudnn_cuda_major=cudnn_cuda_major() if error is None and build is not None else 0,
        kernel_module=_kernel_module(root),
        driver_library=_driver_library(root),
        hardware=_has_hardware(root),
        device_files=any((root / "dev").glob("nvidia[0-9]*")) or (root / "dev/dxg").exists(),
        container=is_container(root),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def cuda_build() -> tuple[int, int] | None:
    """Return the CUDA version that onnxruntime was built with, None if it has no CUDA provider."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        return None
    # A module without documentation; ONNX Runtime's own preload_dlls reads the same.
    try:
        from onnxruntime.capi import build_and_package_info
    except ImportError:
        return 0, 0
    numbers = re.findall(r"\d+", str(getattr(build_and_package_info, "cuda_version", "")))
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


def runtime_packages() -> list[str]:
    """Return the names of the packages that bring an ONNX Runtime; two overwrite each other."""
    site = Path(onnxruntime.__file__).parents[1]
    return [name for name in RUNTIME_PACKAGES if any(site.glob(f"{name.replace('-', '_')}-[0-9]*"))]


def is_container(root: Path = Path("/")) -> bool:
    """Return whether this process runs in a container (Docker, Podman, Kubernetes)."""
    return (
        (root / ".dockerenv").exists()
        or (root / "run/.containerenv").exists()
        or "KUBERNETES_SERVICE_HOST" in os.environ
    )


def _kernel_module(root: Path) -> str:
    try:
        return (root / "sys/module/nvidia/version").read_text().strip()
    except OSError:
        pass
    try:  # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  ..."
        text = (root / "proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return match[0] if match else "of unknown version"


def _driver_library(root: Path) -> str:
    """Return the version in the name of the driver's file: libcuda.so.1 links to it."""
    try:
        maps = (root / "proc/self/maps").read_text()
    except OSError:
        return ""
    match = re.search(r"/libcuda\.so\.(\d+\.\d+(?:\.\d+)?)$", maps, re.MULTILINE)
    return match[1] if match else ""


def _has_hardware(root: Path) -> bool:
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == _NVIDIA_VENDOR and (
                device / "class"
            ).read_text().startswith(_DISPLAY_CLASS):
                return True
        except OSError:
            continue
    return False
