"""Memory of sessions, measured in separate processes so that tests do not affect each other."""

import json
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PRELUDE = """
import json, sys
from pathlib import Path
import numpy as np
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session

def resident():  # bytes
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

path, result = Path(sys.argv[1]), {}
"""


def measure(script, path):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script + "\nprint(json.dumps(result))", path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def path(tmp_path):
    """Save three layers of 512 units with several kinds of nodes: 3 MB."""
    generator = np.random.default_rng(0)
    nodes, constants, last = [], {}, "x"
    for layer in range(3):
        constants[f"w{layer}"] = generator.normal(size=(512, 512)).astype(np.float32) / 16
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"]),
        ]
        last = f"t{layer}"
    return onnx_models.save(
        tmp_path / "model.onnx",
        nodes,
        {"x": (TensorProto.FLOAT, ["batch", 512])},
        {last: (TensorProto.FLOAT, ["batch", 512])},
        constants,
    )


def test_memory_is_flat_after_loading_and_unloading_a_hundred_times(path):
    script = """
sizes = []
for number in range(100):
    session = Session(path, RuntimeOptions(threads=2))
    for rows in (1, 64, 7):
        session.run({"x": np.ones((rows, 512), np.float32)})
    session.close()
    sizes.append(resident())
result["sizes"] = sizes
"""
    sizes = measure(script, path)["sizes"]
    assert len(sizes) == 100
    assert max(sizes[5:]) < 1.05 * min(sizes[5:])


def test_memory_of_one_huge_batch_is_freed_when_the_model_is_idle_or_by_its_next_run(path):
    script = """
def memory_after_huge_batch(shrink):
    session = Session(path, RuntimeOptions(threads=1, shrink_seconds=3600))
    small, huge = ({"x": np.ones((rows, 512), np.float32)} for rows in (1, 20_000))
    session.run(small)
    before = resident()
    session.run(huge)
    session._shrinker._next = 0.0
    shrink(session, small)
    del huge
    growth = resident() - before
    session.close()
    return growth

def shrink_in_run(session, inputs):
    session._shrinker.is_due(running=True)
    session.run(inputs)

result["kept"] = memory_after_huge_batch(lambda session, inputs: session.run(inputs))
result["idle"] = memory_after_huge_batch(lambda session, _: session.shrink_arena())
result["run"] = memory_after_huge_batch(shrink_in_run)
"""
    growth = measure(script, path)
    assert growth["kept"] > 30e6
    assert growth["idle"] < 10e6
    assert growth["run"] < 10e6


def test_runs_of_all_models_share_one_limit(path):
    script = """
from neurona_server.errors import ConfigError
from neurona_server.models.onnx.runtime import check_options
options = RuntimeOptions(threads=1, cpu_memory_bytes=50 << 20)
check_options(options)
sessions = [Session(path, options) for _ in range(2)]
rows = lambda count: {"x": np.ones((count, 512), np.float32)}
for session in sessions:
    session.run(rows(2000))
    try:
        session.run(rows(40_000))
    except Exception as error:
        result.setdefault("errors", []).append(str(error.__cause__))
    session.run(rows(2000))
try:
    check_options(RuntimeOptions(cpu_memory_bytes=60 << 20))
except ConfigError as error:
    result["second"] = str(error)
"""
    result = measure(script, path)
    assert len(result["errors"]) == 2
    assert all("Available memory" in error for error in result["errors"])
    assert result["second"] == (
        "option cpu_memory_bytes is 62914560 (expected 52428800, the limit that this process "
        "already has)"
    )
