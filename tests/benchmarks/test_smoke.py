"""The benchmarks run; their results are not checked."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("h2load") is None, reason="needs h2load (nghttp2-client)"
)


def run_benchmark(script, *arguments):
    command = [sys.executable, Path(__file__).with_name(script), *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.long
@pytest.mark.slow
def test_the_batching_benchmark_runs():
    printed = run_benchmark("batching.py", "--seconds", "0.3", "--rounds", "1")
    for title in ("(a)", "(b)"):
        assert f"### {title}" in printed


@pytest.mark.long
@pytest.mark.slow
def test_the_server_benchmark_prints_a_table_and_writes_a_plot(tmp_path):
    printed = run_benchmark("run.py", "--quick", "--folder", tmp_path)
    assert (tmp_path / "results.md").read_text() in printed
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    for server in ("neurona, Predict", "neurona, ModelInfer", "neurona, aio transport, Predict"):
        rate, ratio = cells(printed, server)[1].split(" ", 1)
        assert float(rate.replace(",", "")) > 0
        assert ratio.startswith("(")
    assert float(cells(printed, "grpc.aio")[1].replace(",", "")) > 0
    for title in ("Requests in flight", "Models loaded", "Size of a request", "One Python client"):
        assert f"## {title}" in printed
    for method in ("PredictStream, coalesced", "PredictStream, bytes"):
        assert float(cells(printed, method)[1].replace(",", "")) > 0


@pytest.mark.long
@pytest.mark.slow
def test_the_client_benchmark_runs():
    printed = run_benchmark("client.py", "--seconds", "0.3", "--rounds", "1", "--callers", "8")
    for name in ("stub of grpc", "Client", "stub of grpc.aio", "AsyncClient"):
        assert float(cells(printed, name)[2].replace(",", "")) > 0


@pytest.mark.long
@pytest.mark.slow
def test_the_benchmark_of_rest_runs(tmp_path):
    flags = ["--models", "mlp", "--loads", "8", "--rounds", "1", "--seconds", "0.3"]
    printed = run_benchmark("rest.py", *flags, "--folder", tmp_path)
    for row in ("neurona, REST, binary", "neurona, REST, JSON", "neurona, Predict"):
        rate, ratio = cells(printed, row)[1].split(" ", 1)
        assert float(rate.replace(",", "")) > 0
        assert ratio.startswith("(")
    assert float(cells(printed, "grpc.aio")[1].replace(",", "")) > 0


def test_errors_are_not_counted_as_responses(tmp_path):
    script = tmp_path / "failed.py"
    script.write_text(FAILED_CALLS)
    folder = Path(__file__).parent
    command = [sys.executable, script, folder, tmp_path]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "bytes of responses (expected" in result.stdout


FAILED_CALLS = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from h2load import FailedCallsError, measure
from models import create_model
from processes import PREDICT, request_bytes, running_server
from servers import NEURONA

from neurona_protos.prediction_pb2 import PredictRequest

model = create_model("mlp", Path(sys.argv[2]) / "models")
with running_server(NEURONA, model) as running:
    response = running.call(PREDICT, request_bytes(model, PREDICT))
    running.call = lambda method, body: response  # expected, but the calls below fail
    try:
        measure(running, PREDICT, PredictRequest(model="none").SerializeToString(), 8, 0.3)
    except FailedCallsError as error:
        print(error)
"""


def cells(printed, name):
    """Returns the cells of the first table row with this name."""
    for line in printed.splitlines():
        if line.startswith(f"| {name} |"):
            return line.strip("| ").split(" | ")
    raise AssertionError(f"no row {name!r} in {printed}")
