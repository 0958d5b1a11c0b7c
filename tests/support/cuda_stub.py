"""A stand-in for NVIDIA's driver library: builds cuda_stub.c and says how processes get to use it.

The fixture `cuda_stub` (conftest.py) has it, compiled once; without a C compiler its tests skip.
"""

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from neurona_server.models.onnx import cuda_driver, gpu_installation
from neurona_server.models.onnx.gpu_installation import InstallationCheck

SOURCE = Path(__file__).with_name("cuda_stub.c")
VARIABLES = ("DEVICES", "VERSION", "CAPABILITY", "MEMORY", "MIG", "ERRORS", "FILE")


@dataclass(frozen=True)
class CudaStub:
    """The library; cuda_stub.c says which values of the environment it reads."""

    path: Path

    def environment(self, **values: object) -> dict[str, str]:
        """Return variables with which a process that is started finds it as the driver.

        Args:
            **values: As devices=2 for CUDA_STUB_DEVICES; visible for CUDA_VISIBLE_DEVICES.
        """
        folders = [str(self.path.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": os.pathsep.join(folders)} | _variables(values)

    def install(self, monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
        """Make it the driver of this process until the test ends."""
        monkeypatch.setattr(cuda_driver, "LIBRARY", str(self.path))
        # Its own: what is found out about the stand-in must not be known in later tests.
        monkeypatch.setattr(gpu_installation, "CHECK", InstallationCheck())
        self.configure(monkeypatch, **values)

    def configure(self, monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
        """Change what it is like: only the values given are set afterwards."""
        for name in VARIABLES:
            monkeypatch.delenv(f"CUDA_STUB_{name}", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in _variables(values).items():
            monkeypatch.setenv(name, value)

    def host_allocations(self) -> int:
        """Return how many ranges of page-locked memory this process has."""
        count: int = ctypes.CDLL(str(self.path)).cuda_stub_host_allocations()
        return count


def build(folder: Path) -> CudaStub:
    """Compile the library into a folder; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not Path("/dev/shm").is_dir():  # noqa: S108  the stub's memory
        pytest.skip("needs Linux and a C compiler, for the stand-in of NVIDIA's driver")
    path = folder / "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", path, SOURCE, "-lrt", "-lpthread"], check=True
    )
    return CudaStub(path)


def _variables(values: dict[str, object]) -> dict[str, str]:
    names = {"visible": "CUDA_VISIBLE_DEVICES"} | {
        name.lower(): f"CUDA_STUB_{name}" for name in VARIABLES
    }
    return {names[name]: str(value) for name, value in values.items()}
