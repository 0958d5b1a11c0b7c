"""The libraries of CUDA and cuDNN that ONNX Runtime's CUDA provider uses.

Names are those that the provider of onnxruntime-gpu 1.31 is linked with or loads by itself;
packages and their folders are those of NVIDIA's wheels on PyPI.
"""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_CUDNN = "libcudnn.so.9"


@dataclass(frozen=True)
class CudaLibrary:
    """A library that ONNX Runtime's CUDA provider uses."""

    file: str
    package: str
    """Of PyPI."""
    folder: str
    """Where the package has it, below site-packages/nvidia."""
    optional: bool = False
    """Whether only some models need it: their load or warm-up fails without it."""


def cuda_libraries(major: int) -> tuple[CudaLibrary, ...]:
    """Return the libraries for a major version of CUDA, each after those that it needs itself."""
    suffix = "" if major >= 13 else f"-cu{major}"

    def library(file: str, component: str, *, optional: bool = False) -> CudaLibrary:
        folder = f"cu{major}/lib" if major >= 13 else f"{component}/lib"
        package = f"nvidia-{component.replace('_', '-')}{suffix}"
        return CudaLibrary(file, package, folder, optional)

    return (
        library(f"libcudart.so.{major}", "cuda_runtime"),
        library(f"libnvJitLink.so.{major}", "nvjitlink", optional=True),
        library(f"libcublasLt.so.{major}", "cublas"),
        library(f"libcublas.so.{major}", "cublas"),
        library("libcurand.so.10", "curand"),
        library(f"libcufft.so.{major - 1}", "cufft", optional=True),
        library(f"libnvrtc.so.{major}", "cuda_nvrtc", optional=True),
        CudaLibrary(_CUDNN, f"nvidia-cudnn-cu{major}", "cudnn/lib"),
    )


def load_libraries(major: int) -> list[CudaLibrary]:
    """Load the libraries for a major version of CUDA, so that ONNX Runtime finds them.

    They are looked for in the nvidia-* packages of every folder that Python imports from, then
    where the system looks. (onnxruntime.preload_dlls does the same with the one folder that has
    onnxruntime, and prints.)

    Returns:
        Those that cannot be loaded.
    """
    roots = list(dict.fromkeys(os.path.join(entry, "nvidia") for entry in sys.path))
    missing = []
    for library in cuda_libraries(major):
        folders = [os.path.join(root, library.folder) for root in roots]
        if "nvrtc" in library.file:  # it looks for this one by its name alone
            for folder in folders:
                for path in sorted(Path(folder).glob("libnvrtc-builtins.so.*")):
                    can_load(str(path))
        paths = [os.path.join(folder, library.file) for folder in folders]
        if not any(map(can_load, [*filter(os.path.isfile, paths), library.file])):
            missing.append(library)
    return missing


def can_load(path: str) -> bool:
    """Return whether a library can be loaded, by its path or its name; it stays loaded."""
    try:
        ctypes.CDLL(path)
    except OSError:
        return False
    return True


def cudnn_version() -> str:
    """Return the version of the cuDNN that is loaded, as "9.20.0"; "" without one."""
    number = _ask_cudnn("cudnnGetVersion")
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else ""


def cudnn_cuda_major() -> int:
    """Return the major version of the CUDA that the loaded cuDNN is built for; 0 without one."""
    return _ask_cudnn("cudnnGetCudartVersion") // 1000


def _ask_cudnn(function: str) -> int:
    try:
        call = getattr(ctypes.CDLL(_CUDNN), function)
    except (OSError, AttributeError):
        return 0
    call.restype = ctypes.c_size_t
    result: int = call()
    return result
