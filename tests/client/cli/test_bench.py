"""neurona bench: closed and open loops, percentiles, plots."""

import asyncio
import json

import numpy as np
import pytest

from neurona_client.cli.latencies import percentiles
from neurona_client.cli.load_generator import LoadPlan, generate_load

SHORT = ("--warm-up", "0.1", "--duration", "0.5")


@pytest.mark.parametrize(
    "options", [(), ("--unary",), ("--rate", "100"), ("--rate", "100", "--unary")]
)
def test_closed_and_open_loops_measure_latencies(neurona, options):
    done = neurona("bench", "regressor", *SHORT, *options, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["errors"] == {}
    assert figures["mode"] == ("unary" if "--unary" in options else "stream")
    if "--rate" in options:
        assert figures["responses"] == 50  # all that were due, however late
    else:
        assert figures["responses"] > 4
    latencies = figures["latency_seconds"]
    in_order = [latencies[name] for name in ("p50", "p95", "p99", "p99.9", "max")]
    assert in_order == sorted(in_order)
    assert in_order[0] > 0


def test_figures_a_histogram_and_a_plot_are_written(neurona, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "bench.png"
    done = neurona("bench", "classifier", *SHORT, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("classifier: closed loop, 64 callers, one stream\n")
    assert "p99.9" in done.stdout
    assert "█" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert done.stderr == ""


def test_inputs_come_from_files_and_invalid_ones_are_reported(neurona, tmp_path):
    np.save(tmp_path / "right.npy", np.ones((2, 4), np.float32))
    assert neurona("bench", "classifier", tmp_path / "right.npy", *SHORT).returncode == 0
    np.save(tmp_path / "wrong.npy", np.ones((2, 5), np.float32))
    done = neurona("bench", "classifier", tmp_path / "wrong.npy", *SHORT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has shape [2, 5]" in done.stderr
    done = neurona("bench", "classifier", "--plot", tmp_path / "no" / "b.png")
    assert done.returncode == 2


class Stalling:
    """A client whose server stalls once."""

    def __init__(self, seconds):
        self.stall = seconds
        self.end_of_stall = asyncio.Event()
        self.calls = 0

    async def predict(self, *arguments, **options):
        self.calls += 1
        if self.calls == 1:
            asyncio.get_running_loop().call_later(self.stall, self.end_of_stall.set)
        await self.end_of_stall.wait()


def test_an_open_loop_counts_the_time_that_a_stall_delays_requests():
    """All requests that were due during the stall waited for its end."""
    plan = LoadPlan("m", [np.ones(1)], None, None, 0.0, 0.4, 1, 200.0)

    async def measure():
        return await generate_load(Stalling(0.3), plan, lambda elapsed, responses: None)

    result = asyncio.run(measure())
    assert len(result.latencies) == 80
    stalled = [
        due + latency
        for due, latency in zip(result.starts, result.latencies, strict=True)
        if due < 0.3
    ]
    assert len(stalled) == 60
    assert min(stalled) >= 0.29  # from when it was due to the stall's end
    assert result.starts[0] == 0.0


def test_percentiles_are_latencies_that_occurred():
    figures = percentiles([n / 1000 for n in range(1, 1001)])
    assert (figures["p50"], figures["p95"], figures["p99"], figures["p99.9"]) == (
        0.5,
        0.95,
        0.99,
        0.999,
    )
    assert figures["max"] == 1.0
    assert percentiles([2.0])["p99.9"] == 2.0
