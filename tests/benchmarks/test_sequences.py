"""The benchmarks of sequences and sessions run, and count only what is an answer."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

sys.path.insert(0, str(Path(__file__).parent))
from http2 import OK
from open_loop import Arrivals, Load, make_load, poisson_load
from sequences import Curve, Point, is_sustained

from neurona_protos.prediction_pb2 import ModelMetadata, PredictRequest, Task
from neurona_protos.tensors import to_tensor

UNIMPLEMENTED = 12
NOT_FOUND = 5


def run_benchmark(script, *arguments):
    command = [sys.executable, Path(__file__).with_name(script), *map(str, arguments)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def curve_of(*points):
    curve = Curve(1000.0)
    for share, rate, p99 in points:
        curve.points.append(Point(share, rate, rates=[rate], p50=[p99], p99=[p99]))
    return curve


def test_the_rate_at_a_p99_is_interpolated_between_points():
    curve = curve_of((0.5, 100.0, 0.01), (0.8, 200.0, 0.1), (0.95, 300.0, 1.0))
    assert curve.rate_at(0.1) == pytest.approx(200.0)
    assert curve.rate_at(math.sqrt(0.1 * 1.0)) == pytest.approx(250.0)
    assert curve.rate_at(5.0) == 300.0  # never more than was measured
    assert curve.rate_at(0.005) == 0.0


def test_the_point_of_a_rate_is_not_below_it():
    curve = curve_of((0.5, 100.0, 0.01), (0.8, 200.0, 0.1), (0.95, 300.0, 1.0))
    assert curve.point_from(150.0).share == 0.8
    assert curve.point_from(999.0).share == 0.95


def test_the_highest_rate_within_a_p99_counts_if_a_lower_one_was_slower():
    curve = curve_of((0.5, 100.0, 0.05), (0.8, 200.0, 0.02), (0.95, 300.0, 0.2))
    assert 200.0 < curve.rate_at(0.03) < 300.0


def test_a_rate_at_which_more_and_more_waits_is_not_sustained():
    zeros = np.zeros(1000)
    statuses = np.full(1000, OK)
    arrivals = Arrivals(statuses, zeros, zeros, zeros + 0.1, statuses, zeros, 2.0, responded=980)
    assert is_sustained(arrivals)
    arrivals.responded = 900  # the others came after the two seconds
    assert not is_sustained(arrivals)
    arrivals.responded, arrivals.statuses[3] = 999, NOT_FOUND
    assert not is_sustained(arrivals)


@pytest.fixture
def address(make_server):
    return f"127.0.0.1:{make_server().port}"


def test_errors_are_no_responses(address):
    body = PredictRequest(model="none").SerializeToString()
    for method, status in (("/neurona.v1.Prediction/Predict", NOT_FOUND), ("/a/b", UNIMPLEMENTED)):
        times = np.linspace(0.0, 0.2, 40, endpoint=False)
        load = Load(address, [body], times, seconds=0.2, warm_up_seconds=0.0, method=method)
        arrivals = make_load(load)
        assert set(arrivals.statuses) == {status}
        assert arrivals.failed == len(arrivals.statuses) == 40
        assert arrivals.responded == 0
        assert arrivals.responses == {}


def test_arrivals_come_at_the_rate_that_is_asked_for(address):
    values = to_tensor("x", np.ones((1, 4), np.float32))
    body = PredictRequest(model="classifier", inputs=[values]).SerializeToString()
    arrivals = make_load(poisson_load(address, [body], 400.0, 0.3, seed=0))
    assert 60 < len(arrivals.items) < 180  # 120, of a Poisson process
    assert set(arrivals.statuses) == {OK}
    assert all(0 < seconds < 10 for seconds in arrivals.latencies)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the model of the benchmarks, which would export it with torch: for seconds."""
    folder = tmp_path_factory.mktemp("bench")
    generator = np.random.default_rng(0)
    shapes = {"w": (1, 128, 16), "r": (1, 128, 32), "b": (1, 256), "dense": (32, 3)}
    onnx_models.save(
        folder / "models" / "lstm.onnx",
        [
            helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("LSTM", ["steps", "w", "r", "b"], ["", "last"], hidden_size=32),
            helper.make_node("Squeeze", ["last", "axis"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "dense"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        {"x": (TensorProto.FLOAT, ["batch", "time", 16])},
        {"probabilities": (TensorProto.FLOAT, ["batch", 3])},
        {
            **{
                name: generator.normal(0, 0.3, shape).astype(np.float32)
                for name, shape in shapes.items()
            },
            "axis": np.array([0]),
        },
        ModelMetadata(
            task=Task.TASK_CLASSIFICATION, answer="probabilities", labels=["a", "b", "c"]
        ),
    )
    return folder


@pytest.mark.long
@pytest.mark.slow
def test_the_sequence_benchmark_compares_policies(folder):
    printed = run_benchmark(
        "sequences.py", "--quick", "--arms", "neurona", "closed", "--folder", folder
    )
    assert (folder / "sequences.md").read_text() in printed
    assert (folder / "sequences.png").read_bytes().startswith(b"\x89PNG")
    assert "| (b) closed at a new length |" in printed
    assert "mixed lengths by one length" in printed


@pytest.mark.slow
def test_the_session_benchmarks_find_no_wrong_answer(folder):
    printed = run_benchmark(
        "sessions.py", "--sessions", 20, "--seconds", 2, "--network", "lstm", "--folder", folder
    )
    assert "| sessions with a wrong answer, with a refused step | 0, 0 |" in printed
    printed = run_benchmark("session_campaign.py", "--steps", 500, "--folder", folder)
    assert printed.endswith(": 0 wrong answers or statuses\n")
