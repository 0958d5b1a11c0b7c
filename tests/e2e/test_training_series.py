"""A forecast is served with its prediction interval as values by name."""

import json
import subprocess

import numpy as np
import pytest
from support.cli import NEURONA, environment
from support.server_process import ServerProcess

from neurona_client import Client
from neurona_training.cli.main import main

pytestmark = pytest.mark.slow

NAMES = [
    "level, 1 step ahead",
    "level, 1 step ahead, lower 80 %",
    "level, 1 step ahead, upper 80 %",
]


def test_a_trained_series_is_served_with_its_interval(tmp_path, capsys):
    time, random = np.arange(160), np.random.default_rng(0)
    levels = (50 + 0.5 * time + 5 * np.sin(time / 2) + random.normal(size=160)).round(2)
    file = tmp_path / "levels.csv"
    file.write_text("\n".join(["level", *map(str, levels), ""]))
    out = ["--out", str(tmp_path / "models"), "--name", "levels", "--epochs", "3", "--no-report"]
    options = ["--series", "level", "--unit", "cm", "--interval", "80", "--layers", "2"]
    assert main(["gru", "--data", str(file), *options, "--bidirectional", *out]) == 0
    assert "interval coverage" in capsys.readouterr().out

    with ServerProcess(tmp_path / "models") as server:
        with Client(server.address) as client:
            described = client.describe("levels")
            assert [value.name for value in described.values] == NAMES
            assert [value.quantile for value in described.values] == pytest.approx([0, 0.1, 0.9])
            assert 0.5 <= described.figures["interval_coverage"] <= 1
            forecast = client.regress("levels", levels[-12:, None].tolist())
            assert len(forecast.values) == 3
            lower, upper = forecast.interval
            assert forecast.value == forecast.values[0]
            assert levels.max() - 20 < lower < forecast.value < upper < levels.max() + 20
        run = subprocess.run(
            [NEURONA, "predict", "levels", str(file), "--json", "--address", server.address],
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        row = json.loads(run.stdout.splitlines()[-1])
        assert [value["name"] for value in row["values"]] == NAMES
