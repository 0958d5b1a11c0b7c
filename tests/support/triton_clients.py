"""Runs programs that use Triton's own client, in another Python.

Its generated files and ours describe the same protobuf package `inference`, of which a process can
load only one, and it needs other versions of some dependencies. So programs run as subprocesses by
the Python that TRITON_PYTHON names, or by this one if the client is installed.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("TRITON_PYTHON") or sys.executable


@functools.cache
def _is_installed() -> bool:
    command = [PYTHON, "-c", "import tritonclient.grpc.aio, tritonclient.http.aio"]
    if not Path(PYTHON).exists():
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def run(*arguments: str | Path, timeout: float = 120) -> str:
    """Run a program and return its output; skips the test if Triton's client is not installed."""
    if not _is_installed():
        pytest.skip(f"{PYTHON} has no tritonclient[grpc,http]; name one that has it: TRITON_PYTHON")
    done = subprocess.run(
        [PYTHON, *arguments], check=False, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout
