"""That the benchmarks run, not what they measure."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("h2load") is None, reason="needs h2load (nghttp2-client)"
)


def run(script, *arguments):
    command = [sys.executable, Path(__file__).with_name(script), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_benchmark_of_batching_runs_to_its_end():
    printed = run("batching.py", "--seconds", "1", "--rounds", "1")
    for title in ("(a)", "(b)", "(c)"):
        assert f"### {title}" in printed
    assert "| answered |" in printed
    assert "| refused |" in printed


def test_the_servers_are_compared_and_the_table_and_plot_are_written(tmp_path):
    printed = run("run.py", "--quick", "--folder", tmp_path)
    assert (tmp_path / "measured.md").read_text() in printed
    assert (tmp_path / "measured.png").read_bytes().startswith(b"\x89PNG")
    for server in ("neurona, Predict", "neurona, ModelInfer", "neurona, aio transport, Predict"):
        rate, ratio = cells(printed, server)[1].split(" ", 1)
        assert float(rate.replace(",", "")) > 0
        assert ratio.startswith("(")
    assert float(cells(printed, "grpc.aio")[1].replace(",", "")) > 0
    for title in ("Requests in flight", "Models loaded", "Size of a request", "One Python client"):
        assert f"## {title}" in printed
    for way in ("PredictStream, gathered", "PredictStream, bytes"):
        assert float(cells(printed, way)[1].replace(",", "")) > 0


def test_the_ways_of_one_python_client_are_compared():
    printed = run("client.py", "--seconds", "0.3", "--rounds", "1", "--callers", "8")
    for way in ("stub of grpc", "Client", "stub of grpc.aio", "AsyncClient"):
        assert float(cells(printed, way)[2].replace(",", "")) > 0


def test_an_answer_that_is_an_error_is_not_counted(tmp_path):
    script = tmp_path / "refused.py"
    script.write_text(REFUSED)
    folder = Path(__file__).parent
    command = [sys.executable, script, folder, tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bytes of answers; expected" in done.stdout


REFUSED = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from h2load import LostError, measure
from models import make
from processes import PREDICT, alone, request_bytes
from servers import NEURONA

from neurona_protos.prediction_pb2 import PredictRequest

model = make("mlp", Path(sys.argv[2]) / "models")
with alone(NEURONA, model) as running:
    answer = running.ask(PREDICT, request_bytes(model, PREDICT))
    running.ask = lambda method, body: answer  # what would be right, for what is refused
    try:
        measure(running, PREDICT, PredictRequest(model="none").SerializeToString(), 8, 0.3)
    except LostError as error:
        print(error)
"""


def cells(printed, name):
    """Of the first line of a table that has this name: name, then its figures."""
    for line in printed.splitlines():
        if line.startswith(f"| {name} |"):
            return line.strip("| ").split(" | ")
    raise AssertionError(f"no line {name!r} in {printed}")
