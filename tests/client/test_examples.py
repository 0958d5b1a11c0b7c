"""The programs in client/examples run against a server."""

import shutil
import subprocess
import sys
from pathlib import Path

from support import triton_clients

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"


def run_python(name, address):
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, address],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_tested():
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert names == {"predict.py", "predict_async.py", "predict.mjs", "triton_client.py"}


def test_predict(demo_server):
    lines = run_python("predict.py", demo_server.address)
    assert lines[0] == "lenet5 takes image (-1, 8, 8)"
    assert lines[1].startswith("one image: ")
    assert len([line for line in lines if line.startswith("image ")]) == 3
    assert "100 calls from 8 threads" in lines
    assert lines[-1].startswith("invalid input: input 'image' has shape [3, 8] (expected ")


def test_predict_async(demo_server):
    lines = run_python("predict_async.py", demo_server.address)
    assert lines[0].startswith("200 images, ")
    assert lines[1:] == ["forecast: 14 sunspots", "cancelled"]


def test_triton_client(demo_server):
    lines = triton_clients.run(EXAMPLES / "triton_client.py", demo_server.address).splitlines()
    assert lines[0] == "ready: True"
    assert len(lines) == 3


def test_node(node_package, demo_server, tmp_path):
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "neurona").symlink_to(node_package)
    shutil.copy(EXAMPLES / "predict.mjs", tmp_path)
    command = [shutil.which("node"), "predict.mjs", demo_server.address]
    done = subprocess.run(
        command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[2] == "100 images over a stream"
    assert lines[3].startswith("INVALID_ARGUMENT: input 'image' has 5 elements")
