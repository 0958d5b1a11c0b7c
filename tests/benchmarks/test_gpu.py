"""What the benchmark on a GPU is made of, and the whole of it in small on the CPU."""

import argparse
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import gpu  # noqa: E402  of this folder
import gpu_bundle  # noqa: E402
import gpu_load  # noqa: E402
import seeded_weights  # noqa: E402

from neurona_server.models.onnx import runtime  # noqa: E402

WIDTH = 128


def save_dense(path):
    """Two layers: a large matrix, a mask that must stay as it is, and a small bias."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(0.5, 2.0, (WIDTH, WIDTH)).astype(np.float32),
        "mask": (random.random((WIDTH, WIDTH)) < 0.5).astype(np.float32),
        "bias": random.normal(0, 1, WIDTH).astype(np.float32),
        "half": random.normal(0, 1, (WIDTH, 2 * WIDTH)).astype(np.float16),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "mask"], ["b"]),
        helper.make_node("Add", ["b", "bias"], ["c"]),
        helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["c", "full"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2 * WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    seeded_weights.strip_network(model.SerializeToString(), path)
    return weights


def read_tensors(path):
    model = onnx.load(path)
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def test_a_stripped_network_is_small_and_gets_weights_like_its_own(tmp_path):
    weights = save_dense(tmp_path / "stripped")
    small = sum(file.stat().st_size for file in (tmp_path / "stripped").iterdir())
    assert small < weights["mask"].nbytes + (8 << 10)
    path = seeded_weights.expand_network(tmp_path / "stripped", tmp_path / "expanded")
    drawn = read_tensors(path)
    for name in ("mask", "bias"):
        np.testing.assert_array_equal(drawn[name], weights[name])
    for name in ("w", "half"):
        assert drawn[name].dtype == weights[name].dtype
        assert abs(drawn[name].mean() - weights[name].mean()) < 0.05
        assert drawn[name].std() == pytest.approx(weights[name].std(), rel=0.02)
        assert not np.array_equal(drawn[name], weights[name])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": seeded_weights.make_rows((WIDTH,), 3)})
    assert y.shape == (3, 2 * WIDTH)
    assert np.isfinite(y).all()


def test_the_same_seed_gives_the_same_weights(tmp_path):
    """These values must never change: networks are made and used on different machines."""
    specification = {"offset": 0, "count": 3, "dtype": "float32", "mean": 1.0, "deviation": 2.0}
    values = seeded_weights.draw_tensor(specification, 2026)
    np.testing.assert_array_equal(values, seeded_weights.draw_tensor(specification, 2026))
    np.testing.assert_allclose(values, [-1.224405, 1.969347, 0.773228], rtol=1e-6)
    assert not np.array_equal(values, seeded_weights.draw_tensor(specification, 2027))


def fat_binary(*entries):
    """A fat binary of (kind, architecture, body), in the layout that gpu_bundle.py reads."""
    content = b""
    for kind, architecture, body in entries:
        header = struct.pack("<HHIQ", kind, 0x101, 64, len(body)).ljust(28, b"\0")
        content += (header + struct.pack("<I", architecture)).ljust(64, b"\0") + body
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def test_kernels_of_other_architectures_and_of_language_models_become_zeros():
    used = b"\x7fELF _Z11softmax_warp_forward and so on"
    unused = b"\x7fELF _ZN7cutlass13device_kernelI _ZN7cutlass6KernelI"
    entries = [(1, 90, b"ptx" * 9), (2, 80, used), (2, 90, used), (2, 90, unused)]
    library = b"code \x50\xed\x55\xba chance " + fat_binary(*entries) + b" more code"
    reduced = gpu_bundle.reduce_library(library, 90)
    assert len(reduced) == len(library)
    assert reduced.count(used) == 1
    assert b"cutlass" not in reduced
    assert b"ptx" not in reduced
    assert reduced.index(used) == library.rindex(used)
    assert reduced.startswith(b"code ")
    assert reduced.endswith(b" more code")


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_the_cpu(tmp_path):
    models = tmp_path / "models"
    save_dense(models / "dense")
    listed = {"dense": {"use": "benchmark", "row": [WIDTH], "tolerance": 1e-3}}
    (models / seeded_weights.LIST).write_text(json.dumps(listed))
    flags = ["--device", "cpu", "--networks", "dense", "--rows", "1,4", "--seconds", "0.2"]
    flags += [
        "--variants",
        "overlap",
        "--parts",
        "none",
        "--callers",
        "1",
        "--models",
        models,
        "--out",
        tmp_path / "out",
    ]
    command = [sys.executable, HERE / "gpu.py", *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["left_out"] == [], done.stderr
    assert (tmp_path / "out" / "results.md").read_text() in done.stdout
    assert [entry["right"] for entry in results["models"]] == [True, True]
    alone = [e["rows"] for e in results["reference"] if e["kind"] == "onnxruntime"]
    assert alone == [1, 4]
    measured = [*results["served"], *results["single rows"], *results["latency"]]
    assert [entry["failed"] for entry in measured] == [0] * 7
    assert [entry["variant"] for entry in results["alone"]] == [""]
    assert all(entry["rows_per_second"] > 0 for entry in measured if "percent" not in entry)
    assert results["served"][1]["rows_in_a_batch"] == pytest.approx(4, abs=0.5)
    assert [entry["percent"] for entry in results["latency"]] == [100, 100, 50, 90]


def test_what_does_not_fit_into_the_budget_is_listed(tmp_path):
    environment = {"device": "the CPU", "line": "a machine"}
    results = gpu.Results(tmp_path, environment)
    arguments = argparse.Namespace(
        device="cpu",
        out=tmp_path,
        logs=None,
        rows=(1, 4),
        seconds=0.1,
        networks=["dense"],
        parts=["torch", "compile"],
    )
    arguments.variants = ["graphs"]
    benchmark = gpu.Benchmark(arguments, results, gpu.Budget(0.0, results))
    benchmark.networks = [gpu.Network("dense", (WIDTH,), tmp_path, 0.01)]
    with gpu_load.LoadProcesses(0) as load:
        benchmark.run(load)
    results.save()
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["left_out"] == ["onnxruntime of dense", "the server", "torch of dense"]
    assert "Not measured: onnxruntime of dense; the server; torch" in gpu.document(results)


def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path):
    if not runtime.missing_gpu_reason():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, HERE / "gpu.py", "--out", tmp_path / "out"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("no GPU can be used: ")
    assert not (tmp_path / "out").exists()


def test_each_way_of_running_can_be_turned_off():
    """What a prelude replaces exists, and the flags are options."""
    checks = [
        f"{one.prelude}\nsources.load(['--repository', '.', *{one.flags}], {{}})"
        for one in gpu.VARIANTS.values()
    ]
    code = "\n".join([REPLACED, *checks])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


REPLACED = """
from neurona_server.config import sources
from neurona_server.models.onnx import devices, session
assert devices.CUDA_SLOTS > 1
assert session.Session.choose_methods
"""


def test_large_batches_are_put_together_from_several_requests(tmp_path):
    images = gpu.Network("images", (3, 224, 224), tmp_path, 0.01)
    assert [images.request_rows(rows) for rows in (1, 8, 32, 128)] == [1, 8, 32, 32]
    assert gpu.Network("small", (28, 28), tmp_path, 0.01).request_rows(128) == 128


def test_measurements_without_a_response_do_not_end_the_run(tmp_path):
    results = gpu.Results(tmp_path, {"device": "the CPU", "line": "a machine"})
    nothing = {"rows_per_second": 0.0, "p50_ms": math.nan, "p99_ms": math.nan, "cpu_cores": 0.0}
    cell = {"network": "dense", "rows": 4, "shared_memory": False, "rows_in_a_batch": math.nan}
    results.add("reference", kind="onnxruntime", network="dense", rows=4, **nothing, run_seconds=0)
    for part, values in (
        *(("served", {"variant": variant}) for variant in ("", "graphs")),
        ("latency", {"percent": 90}),
        ("single rows", {}),
    ):
        results.add(part, **cell, **values, **nothing, failed=3, errors=["UNAVAILABLE"])
    assert "| dense | 4 | full batches | graphs | nan |" in (tmp_path / "results.md").read_text()
    assert "Failed calls: 12." in (tmp_path / "results.md").read_text()
    served = json.loads((tmp_path / "results.json").read_text())["served"][0]
    assert (served["failed"], served["p50_ms"]) == (3, None)


def test_a_failed_part_is_listed_and_the_next_one_runs(tmp_path):
    results = gpu.Results(tmp_path, {"device": "the CPU", "line": "a machine"})
    with results.guard("a part"):
        raise ValueError("no\nluck")
    assert results.left_out == ["a part (ValueError: no luck)"]
    assert json.loads((tmp_path / "results.json").read_text())["left_out"] == results.left_out
