"""Several processes that train together."""

import os
import subprocess
import sys

import pytest

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

SCRIPT = """
import os, sys
from pathlib import Path
import torch
from neurona_training.learning import devices

def threads():
    names = (path.joinpath("comm").read_text() for path in Path("/proc/self/task").iterdir())
    return sorted(name.strip() for name in names if "gloo" in name)

def train():
    network = torch.nn.Linear(4, 4)
    learning = devices.data_parallel(network, torch.device("cpu"))
    learning(torch.ones(3, 4)).sum().backward()
    devices.broadcast_in_place(torch.ones(3))
    return network

with devices.process_group():
    network, rank = train(), devices.process_rank()
    during = threads()
Path(sys.argv[1], str(rank)).write_text(f"{bool(during)} {threads()}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the threads in /proc")
def test_no_thread_outlives_the_process_group(tmp_path):
    # A thread that frees a tensor while Python exits would abort a process that has succeeded.
    script, results = tmp_path / "script.py", tmp_path / "results"
    script.write_text(SCRIPT)
    results.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = (*TORCHRUN, str(script), str(results))
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(results / rank).read_text() for rank in "01"] == ["True []"] * 2
