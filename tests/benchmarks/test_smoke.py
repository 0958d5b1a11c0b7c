"""That the benchmarks run, not what they measure."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load (nghttp2-client)")
def test_the_benchmark_of_batching_runs_to_its_end():
    script = Path(__file__).with_name("batching.py")
    command = [sys.executable, script, "--seconds", "1", "--rounds", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for title in ("(a)", "(b)", "(c)"):
        assert f"### {title}" in done.stdout
    assert "| answered |" in done.stdout
    assert "| refused |" in done.stdout
