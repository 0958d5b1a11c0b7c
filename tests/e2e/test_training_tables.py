"""Every kind of own table: a model is asked with the very file that it was trained on.

The right answers come from ONNX Runtime, with the values that the test wrote into the file.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.cli import NEURONA, environment
from support.server_process import ServerProcess

from neurona_client import Client, InvalidInputError
from neurona_training.cli.main import main
from neurona_training.data.sources import sunspots
from neurona_training.data.sources.names import read_names

pytestmark = pytest.mark.slow

SHARED = os.environ.get("NEURONA_SHARED", "")

COUNT = 40
RANDOM = np.random.default_rng(16)
AGES = RANDOM.integers(18, 80, COUNT)
INCOMES = (RANDOM.integers(100_000, 9_000_000, COUNT) / 100).round(2)
CITIES = np.array(["Bad Ems", "Köln", "Essen"])[np.arange(COUNT) % 3]
BOUGHT = np.array(["yes", "no"])[np.arange(COUNT) % 2]
NUMBERS = {"features": np.stack([AGES, INCOMES], axis=1).astype(np.float32)}
DAYS = np.datetime64("2023-01-01") + RANDOM.integers(0, 700, COUNT)
LACKS_AGE, LACKS_CITY = np.arange(COUNT) % 4 == 1, np.arange(COUNT) % 5 == 2
UNFILLED = np.stack([np.where(LACKS_AGE, np.nan, AGES), DAYS.astype(int)], axis=1)


def german(number):
    """As a spreadsheet in Germany writes it: 1.234,50."""
    return f"{number:,.2f}".translate(str.maketrans(",.", ".,"))


def table(header, *columns, separator=","):
    lines = [separator.join(map(str, cells)) for cells in zip(*columns, strict=True)]
    return "\n".join([separator.join(header), *lines, ""])


TABLES = {
    "plain": (
        table(["age", "income", "bought"], AGES, INCOMES, BOUGHT).encode(),
        ["mlp", "--target", "bought"],
        NUMBERS,
    ),
    "deep": (  # a recipe whose default data are pictures, which are shifted in training
        table(["age", "income", "bought"], AGES, INCOMES, BOUGHT).encode(),
        ["feedforward", "--target", "bought"],
        NUMBERS,
    ),
    "target-decides": (
        table(
            *(["k", "price"], (f'"{age},234"' for age in AGES)),
            (f'"{age},5"' for age in AGES),
        ).encode(),
        ["mlp", "--target", "price"],
        {"features": (AGES + 0.234).astype(np.float32)[:, None]},
    ),
    "pandas-index": (
        table(["", "bought", "age", "income"], range(COUNT), BOUGHT, AGES, INCOMES).encode(),
        ["perceptron", "--target", "bought"],
        NUMBERS,
    ),
    "german-excel": (
        table(
            *(["bought", "age", "income"], BOUGHT, AGES, map(german, INCOMES)), separator=";"
        ).encode("utf-8-sig"),
        ["mlp", "--target", "bought"],
        NUMBERS,
    ),
    "excel-unicode": (
        table(
            *(["age", "id", "income", "rate"], AGES, range(COUNT), map(german, INCOMES)),
            (f"{age} %" for age in AGES),
            separator="\t",
        ).encode("utf-16"),
        ["adaline", "--target", "rate", "--ignore", "id"],
        NUMBERS,
    ),
    "text": (
        table(
            *(["city", "age", "income", "größe", "bought"],),
            (f" {city} " for city in CITIES),
            *(AGES, INCOMES, np.where(AGES > 40, '"L, XL"', "S"), BOUGHT),
        ).encode(),
        ["mlp", "--target", "bought"],
        NUMBERS | {"city": CITIES, "gr__e": np.where(AGES > 40, "L, XL", "S")},
    ),
    "text-only": (
        table(["city", "price"], CITIES, INCOMES).encode(),
        ["mlp", "--target", "price", "--unit", "EUR"],
        {"city": CITIES},
    ),
    "as-it-is": (  # an index, an identifier, missing cells, local dates, Windows-1252
        table(
            *(["id", "name", "age", "größe", "day", "bought"], range(1, COUNT + 1)),
            (f"n{row}" for row in range(COUNT)),
            np.where(LACKS_AGE, "", AGES.astype(str)),
            np.where(LACKS_CITY, "NA", CITIES),
            (f"{day.item():%d.%m.%Y}" for day in DAYS),
            BOUGHT,
            separator=";",
        ).encode("cp1252"),
        ["mlp", "--target", "bought"],
        {"features": UNFILLED.astype(np.float32), "gr__e": np.where(LACKS_CITY, "", CITIES)},
    ),
    "two-targets": (
        table(["age", "income", "price"], AGES, INCOMES, INCOMES * 1000 + AGES).encode(),
        ["mlp", "--target", "income", "--target", "price"],
        {"features": AGES.astype(np.float32)[:, None]},
    ),
    "newest-first": (
        table(
            *(["day", "close"], np.sort(np.datetime64("2024-01-01") + np.arange(COUNT))[::-1]),
            INCOMES,
        ).encode(),
        ["rnn", "--series", "close", "--window", "5"],
        {"series": INCOMES[None, 4::-1, None].astype(np.float32)},
    ),
    "series": (
        table(["day", "close"], (f"{day}.1." for day in range(COUNT)), INCOMES).encode(),
        ["rnn", "--series", "close", "--window", "5", "--horizon", "2"],
        {"series": INCOMES[None, -5:, None].astype(np.float32)},
    ),
}


def train(out, name, data, recipe, *arguments):
    command = [recipe, "--data", str(data), *map(str, arguments), "--name", name, "--out", str(out)]
    assert main([*command, "--epochs", "2", "--no-report"]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def served(folder):
    models = folder / "models"
    for name, (content, (recipe, *arguments), _) in TABLES.items():
        data = folder / f"{name}.{'tsv' if name == 'excel-unicode' else 'csv'}"
        data.write_bytes(content)
        train(models, name, data, recipe, *arguments)
    lengths = np.arange(COUNT) % 4 + 1
    steps = RANDOM.normal(size=(lengths.sum(), 2))
    arrays = {"lengths": lengths, "targets": BOUGHT, "channels": ["x", "y"]}
    np.savez(folder / "sequences.npz", inputs=steps, **arrays)
    train(models, "sequences", folder / "sequences.npz", "gru")
    with ServerProcess(models) as server:
        yield server


def predict(served, name, *files, **options):
    done = subprocess.run(
        [NEURONA, "predict", name, *map(str, files), "--json", "--address", served.address],
        capture_output=True,
        env=environment(),
        check=False,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def run_model(folder, name, inputs):
    session = onnxruntime.InferenceSession(
        folder / "models" / name / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    feeds = {
        key: array.astype(object) if array.dtype.kind == "U" else array
        for key, array in inputs.items()
    }
    assert feeds.keys() == {one.name for one in session.get_inputs()}
    return session.run(None, feeds)[0]


def check_rows(rows, expected):
    """Compare predictions with the output of ONNX Runtime, row by row."""
    assert len(rows) == len(expected)
    for row, values in zip(rows, expected, strict=True):
        if "values" in row:
            actual = [one["value"] for one in row["values"]]
            np.testing.assert_allclose(actual, values, rtol=1e-3, atol=1e-4)
        else:
            (best,) = row["classes"]
            assert best["probability"] == pytest.approx(values.max(), abs=1e-4)
            assert values[best["index"]] == pytest.approx(values.max(), abs=1e-4)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_its_own_question(served, folder, name):
    file = next(folder.glob(f"{name}.?sv"))
    rows = predict(served, name, file)
    check_rows(rows, run_model(folder, name, TABLES[name][2]))
    if name in ("series", "newest-first"):
        assert rows[0]["file"] == f"{file}:{COUNT + 1 if name == 'series' else 2}"
    else:
        assert [row["file"] for row in rows] == [f"{file}:{line}" for line in range(2, COUNT + 2)]
    assert predict(served, name, "-", input=file.read_bytes())[0] | {"file": ""} == (
        rows[0] | {"file": ""}
    )


@pytest.mark.long
@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED names no folder with the files")
def test_published_files_are_their_own_question(tmp_path):
    data = Path(SHARED, "data")
    for recipe, name in (("gru", "names"), ("rnn", "monthly-sunspots")):
        train(tmp_path / "models", name, name, recipe, "--data-dir", data)
    with ServerProcess(tmp_path / "models") as server:
        path = data / "names" / "Scottish.txt"
        names = read_names(path)
        rows = predict(server, "names", path)
        assert len(rows) == len(path.read_text().splitlines())
        first = np.array([list(path.read_text().split()[0])])
        lengths = np.array([first.size], np.int32)
        expected = run_model(tmp_path, "names", {"characters": first, "sequence_lens": lengths})
        check_rows(rows[:1], expected)
        assert len(predict(server, "names", "-", input="\n".join(names).encode())) == len(names)
        path = data / "timeseries" / "monthly-sunspots.csv"
        series = sunspots.read_months(path)[None, -sunspots.MONTHS :, None]
        rows = predict(server, "monthly-sunspots", path)
        check_rows(rows, run_model(tmp_path, "monthly-sunspots", {"series": series}))


def test_the_columns_of_a_table_may_be_in_any_order(served, folder):
    columns = {"income": INCOMES, "bought": BOUGHT, "age": AGES, "größe": ["S"] * COUNT}
    columns |= {"x": INCOMES, "city": CITIES}
    rows = predict(served, "text", "-", input=table(columns, *columns.values()).encode())
    inputs = NUMBERS | {"city": CITIES, "gr__e": np.array(["S"] * COUNT)}
    check_rows(rows, run_model(folder, "text", inputs))


def test_sequences_are_their_own_question(served, folder):
    content = np.load(folder / "sequences.npz")
    lengths = content["lengths"].astype(np.int32)
    padded = np.zeros((COUNT, 4, 2), np.float32)
    padded[np.arange(4) < lengths[:, None]] = content["inputs"]
    expected = run_model(folder, "sequences", {"sequence": padded, "sequence_lens": lengths})
    check_rows(predict(served, "sequences", folder / "sequences.npz"), expected)
    steps = padded[3, : lengths[3], ::-1]  # a table of one sequence, with the columns exchanged
    text = table(["y", "x"], *steps.T)
    check_rows(predict(served, "sequences", "-", input=text.encode()), expected[3:4])


def test_a_missing_cell_is_nan_or_an_empty_string(served, folder):
    """Any way of asking gives the same answer, and a model that does not fill refuses it."""
    inputs = {"features": [[np.nan, 19700.0]], "gr__e": [""]}
    with Client(served.address) as client:
        asked = client.predict("as-it-is", inputs)
        reading = client.describe("as-it-is").provenance["reading"]
        assert "semicolons between cells, Windows-1252" in reading
        assert "left out: 'id' (counts the rows; --keep 'id' keeps it), 'name'" in reading
        assert "missing cells filled: 10 of 'age', 8 of 'größe'" in reading
        with pytest.raises(InvalidInputError, match="column 'age': nan"):
            client.predict("plain", {"features": [[np.nan, 1.0]]})
    text = table(["age", "größe", "day"], ["?"], ["null"], ["2023-12-09"])
    (row,) = predict(served, "as-it-is", "-", input=text.encode())
    assert row["classes"][0]["label"] == asked.label
    assert row["classes"][0]["probability"] == pytest.approx(asked.probability, abs=1e-6)
    done = subprocess.run(
        [NEURONA, "predict", "plain", "-", "--address", served.address],
        input=b"age,income\n1,\n",
        capture_output=True,
        env=environment(),
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert b"line 2, column 'income': missing value (''), which the model does not" in done.stderr
