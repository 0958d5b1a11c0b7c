"""A network and the baselines beside it are served alike: a client changes the model's name."""

import json
import subprocess

import numpy as np
import pytest
from support.cli import NEURONA, environment
from support.server_process import ServerProcess

from neurona_client import Client
from neurona_training.cli.main import main

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(21)
COUNT = 300
SIZES = RANDOM.uniform(20, 200, COUNT).round(1)
CITIES = RANDOM.choice(["Bad Ems", "Köln", "Essen"], COUNT)
RENTS = (SIZES * np.where(CITIES == "Köln", 18, 9) + 80).round(2)
MONTHS = np.arange(240)
CO2 = (310 + 0.1 * MONTHS + 3 * np.sin(MONTHS * np.pi / 6)).round(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    lines = [f"{city},{size},{rent}" for city, size, rent in zip(CITIES, SIZES, RENTS, strict=True)]
    (folder / "rents.csv").write_text("\n".join(["city,size,rent", *lines]), encoding="utf-8")
    (folder / "co2.csv").write_text("\n".join(["ppm", *map(str, CO2)]))
    return folder


@pytest.fixture(scope="module")
def served(folder):
    models = folder / "models"
    common = ["--out", str(models), "--epochs", "1", "--no-report", "--export-baseline"]
    rents = ["mlp", "--data", str(folder / "rents.csv"), "--target", "rent", "--unit", "EUR"]
    assert main([*rents, *common, "gradient_boosting"]) == 0
    co2 = ["rnn", "--data", str(folder / "co2.csv"), "--series", "ppm", "--unit", "ppm"]
    assert main([*co2, "--window", "18", "--horizon", "2", *common, "linear"]) == 0
    with ServerProcess(models) as server:
        yield server


def predict(served, name, file):
    done = subprocess.run(
        [NEURONA, "predict", name, str(file), "--json", "--address", served.address],
        capture_output=True,
        env=environment(),
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_a_table_with_text_is_asked_by_the_name_alone(served, folder):
    names = ("mlp-rents", "mlp-rents-gradient-boosting")
    network, boosting = (predict(served, name, folder / "rents.csv") for name in names)
    for rows in (network, boosting):
        assert [row["file"] for row in rows] == [row["file"] for row in network]
        assert {(one["name"], one["unit"]) for row in rows for one in row["values"]} == {
            ("rent", "EUR")
        }
    errors = np.array([row["values"][0]["value"] for row in boosting]) - RENTS
    assert np.sqrt(np.square(errors).mean()) < 150
    with Client(served.address) as client:
        described, beside = (client.describe(name) for name in names)
        assert described.inputs == beside.inputs
        assert described.outputs == beside.outputs
        row = {"city": np.array(["Köln"]), "features": np.array([[80]], np.float32)}
        answers = [client.regress(name, row) for name in names]
        assert [answer.unit for answer in answers] == ["EUR", "EUR"]
        assert answers[1].value == pytest.approx(80 * 18 + 80, rel=0.2)


def test_a_series_is_asked_by_the_name_alone(served, folder):
    network, linear = (
        predict(served, name, folder / "co2.csv") for name in ("rnn-co2", "rnn-co2-linear")
    )
    names = [one["name"] for one in network[0]["values"]]
    assert [one["name"] for one in linear[0]["values"]] == names
    expected = 310 + 0.1 * np.array([240, 241]) + 3 * np.sin(np.array([240, 241]) * np.pi / 6)
    actual = [one["value"] for one in linear[0]["values"][:2]]  # bounds of intervals follow
    np.testing.assert_allclose(actual, expected, atol=0.05)
