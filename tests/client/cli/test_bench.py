import asyncio
import json

import numpy as np
import pytest

from neurona_client.cli.latencies import percentiles
from neurona_client.cli.load_generator import Plan, load

QUICK = ("--warm-up", "0.1", "--duration", "0.5")


@pytest.mark.parametrize("how", [(), ("--unary",), ("--rate", "100"), ("--rate", "100", "--unary")])
def test_load_is_measured(neurona, how):
    done = neurona("bench", "regressor", *QUICK, *how, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == {}
    assert found["mode"] == ("unary" if "--unary" in how else "stream")
    if "--rate" in how:
        assert found["answers"] == 50  # all that were due, however late
    else:
        assert found["answers"] > 4
    found = found["latency_seconds"]
    assert 0 < found["p50"] <= found["p95"] <= found["p99"] <= found["p99.9"] <= found["max"]


def test_figures_a_histogram_and_a_picture(neurona, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "bench.png"
    done = neurona("bench", "classifier", *QUICK, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("classifier: closed loop, 64 callers, one stream\n")
    assert "p99.9" in done.stdout
    assert "█" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert done.stderr == ""


def test_inputs_of_a_file_and_what_is_wrong_with_them(neurona, tmp_path):
    np.save(tmp_path / "right.npy", np.ones((2, 4), np.float32))
    assert neurona("bench", "classifier", tmp_path / "right.npy", *QUICK).returncode == 0
    np.save(tmp_path / "wrong.npy", np.ones((2, 5), np.float32))
    done = neurona("bench", "classifier", tmp_path / "wrong.npy", *QUICK)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has shape [2, 5]" in done.stderr
    done = neurona("bench", "classifier", "--plot", tmp_path / "no" / "b.png")
    assert done.returncode == 2


class Stalling:
    """A client whose server does nothing for a moment, once."""

    def __init__(self, seconds):
        self.stall = seconds
        self.free = asyncio.Event()
        self.calls = 0

    async def predict(self, *arguments, **options):
        self.calls += 1
        if self.calls == 1:
            asyncio.get_running_loop().call_later(self.stall, self.free.set)
        await self.free.wait()


def test_an_open_loop_counts_what_a_stall_holds_up():
    """All calls that were due during the stall waited for its end, most of them a good part."""
    plan = Plan("m", [np.ones(1)], None, None, 0.0, 0.4, 1, 200.0)

    async def measure():
        return await load(Stalling(0.3), plan, lambda passed, answers: None)

    measured = asyncio.run(measure())
    assert len(measured.latencies) == 80
    held_up = [
        due + latency
        for due, latency in zip(measured.starts, measured.latencies, strict=True)
        if due < 0.3
    ]
    assert len(held_up) == 60
    assert min(held_up) >= 0.29  # from when it was due to the stall's end
    assert measured.starts[0] == 0.0


def test_percentiles_are_latencies_that_were_there():
    found = percentiles([n / 1000 for n in range(1, 1001)])
    assert (found["p50"], found["p95"], found["p99"], found["p99.9"]) == (0.5, 0.95, 0.99, 0.999)
    assert found["max"] == 1.0
    assert percentiles([2.0])["p99.9"] == 2.0
