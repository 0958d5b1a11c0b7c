"""Where Triton's own client is: in a Python of its own.

Its files and ours describe the same package `inference`, of which a process can know one only,
and it wants other versions of what the rest of the tests want. So it runs as a subprocess, by
the Python that TRITON_PYTHON names, or by ours if it is installed beside it.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("TRITON_PYTHON") or sys.executable


@functools.cache
def _is_there() -> bool:
    command = [PYTHON, "-c", "import tritonclient.grpc.aio"]
    if not Path(PYTHON).exists():
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def run(*arguments: str | Path, timeout: float = 120) -> str:
    """What Triton's Python printed. Skips the test where there is none."""
    if not _is_there():
        pytest.skip(f"{PYTHON} has no tritonclient[grpc]; name one that has it: TRITON_PYTHON")
    done = subprocess.run(
        [PYTHON, *arguments], check=False, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout
