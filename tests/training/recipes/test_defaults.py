"""Every recipe on every kind of data that it takes, from files that no recipe was made for."""

import csv
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image

from neurona_protos import metadata
from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.cli.main import main
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.recipes import RECIPES

SLOW_RECIPES = ("vgg16", "inception-v3", "resnet18", "resnet50", "xception")
LONG = [pytest.mark.slow, pytest.mark.long]


def _write_table(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


@pytest.fixture(scope="module")
def own_files(tmp_path_factory):
    """Arguments of the command line by kind and task, for small files made here."""
    folder = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(8)
    a, b = random.normal(size=(2, 240)).round(4)
    names = np.where(a + b > 0, "yes", "no")
    _write_table(folder / "flags.csv", {"a": a, "b": b, "answer": names})
    _write_table(folder / "prices.csv", {"a": a, "b": b, "price": (1000 + 200 * a * b).round(2)})
    _write_table(
        folder / "gate.csv", {"p": [0, 0, 1, 1] * 5, "q": [0, 1] * 10, "r": [0, 0, 0, 1] * 5}
    )
    steps = np.arange(140)
    _write_table(
        folder / "load.csv", {"load": (50 + 20 * np.sin(steps / 3) + 0.1 * steps).round(3)}
    )
    classes = np.arange(80) % 2
    frequency = np.where(classes == 0, 0.3, 0.9)[:, None, None]
    inputs = np.sin(np.arange(16)[None, :, None] * frequency).repeat(3, axis=2)
    inputs = (inputs + 0.1 * random.normal(size=inputs.shape)).astype(np.float32)
    lengths = random.integers(8, 17, 80).astype(np.int32)
    np.savez(folder / "waves.npz", inputs=inputs, lengths=lengths, targets=classes)
    sums = inputs[:, :, 0].sum(axis=1).astype(np.float32)
    np.savez(folder / "sums.npz", inputs=inputs, lengths=lengths, targets=sums)
    for label, bright in (("dark", 60), ("light", 190)):
        (folder / "tiles" / label).mkdir(parents=True)
        for number in range(20):
            pixels = np.clip(random.normal(bright, 25, (16, 20)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "tiles" / label / f"{number}.png")
    return {
        ("rows", "classification"): [str(folder / "flags.csv"), "--target", "answer"],
        ("rows", "regression"): [str(folder / "prices.csv"), "--target", "price"],
        ("sequences", "classification"): [str(folder / "waves.npz")],
        ("sequences", "regression"): [str(folder / "sums.npz")],
        ("series", "regression"): [str(folder / "load.csv"), "--series", "load", "--horizon", "2"],
        ("images", "classification"): [str(folder / "tiles")],
        ("gate", "classification"): [str(folder / "gate.csv"), "--target", "r"],
    }


def _cases():
    for name, recipe in RECIPES.items():
        if name == "mcculloch-pitts":
            yield name, "gate", "classification"
            continue
        for kind in recipe.takes:
            for task in recipe.tasks:
                if (kind, task) != ("images", "regression"):  # files of images have classes
                    yield name, kind, task
        if "sequences" in recipe.takes:
            yield name, "series", "regression"


def _read(model):
    properties = {item.key: item.value for item in onnx.load(model).metadata_props}
    return metadata.from_json(properties[metadata.KEY])


@pytest.mark.parametrize(
    ("name", "kind", "task"),
    [pytest.param(*case, marks=LONG if case[0] in SLOW_RECIPES else []) for case in _cases()],
)
def test_a_recipe_trains_on_own_data_of_its_kind(own_files, name, kind, task, tmp_path):
    learner = RECIPES[name].learner_options
    epochs = ["--epochs", "1"] if "epochs" in learner else []
    arguments = [name, "--data", *own_files[kind, task], "--no-report", *epochs]
    assert main([*arguments, "--name", "own", "--out", str(tmp_path)]) == 0
    described = _read(tmp_path / "own" / "1" / "model.onnx")
    assert bool(described.labels) == (task == "classification")
    assert len(described.provenance["data_sha256"]) == 64
    if kind != "images":  # pixels alone are shifted, rotated and resized
        assert not {"pixels", "degrees", "scale"} & set(described.provenance)


@pytest.mark.parametrize(
    ("name", "least"), [("feedforward", 0.9), ("mlp", 0.9), ("perceptron", 0.85)]
)
def test_a_table_is_learned_with_the_defaults(own_files, name, least, tmp_path):
    arguments = [name, "--data", *own_files["rows", "classification"], "--no-report"]
    assert main([*arguments, "--name", "own", "--out", str(tmp_path)]) == 0
    assert _read(tmp_path / "own" / "1" / "model.onnx").figures["test_accuracy"] >= least


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_sequences_are_learned_with_the_defaults(own_files, name, tmp_path):
    arguments = [name, "--data", *own_files["sequences", "classification"], "--no-report"]
    assert main([*arguments, "--name", "own", "--out", str(tmp_path)]) == 0
    assert _read(tmp_path / "own" / "1" / "model.onnx").figures["test_accuracy"] >= 0.9


def test_a_file_s_name_changes_nothing(own_files, tmp_path):
    """Names of the catalogue have tuned settings; a file of such a name has not."""
    original = own_files["series", "regression"][0]
    networks = []
    for name in ("load", "monthly-sunspots", "vowels"):
        path = tmp_path / f"{name}.csv"
        shutil.copy(original, path)
        data = load_user_data(UserData(path, series="load")).training_view
        recipe = RECIPES["gru"]
        settings = recipe.settings(data, None)
        networks.append((settings, str(recipe.network(data, settings.network))))
    assert networks[0] == networks[1] == networks[2]
    assert networks[0][0] != RECIPES["gru"].tuned["monthly-sunspots"]


def test_settings_follow_from_the_size_of_the_data(own_files, tmp_path):
    """A table of many rows gets larger batches and fewer epochs than a small one."""
    random = np.random.default_rng(1)
    settings = []
    for rows in (200, 20_000):
        path = tmp_path / f"{rows}.csv"
        columns = {name: random.normal(size=rows).round(3) for name in "abcd"}
        _write_table(path, columns)
        data = load_user_data(UserData(path, target="d")).training_view
        settings.append(RECIPES["mlp"].settings(data, None).hyperparameters)
    few, many = settings
    assert few.batch_rows < many.batch_rows
    assert few.epochs > many.epochs


def test_units_and_layers_complete_each_other():
    default = NetworkOptions(units=(512, 512, 256, 128), dropout=0.1, activation="relu")
    assert NetworkOptions(layers=2).with_defaults(default).units == (512, 512)
    assert NetworkOptions(layers=6).with_defaults(default).units == (512, 512, 256, 128, 128, 128)
    assert NetworkOptions(units=(8,), layers=3).with_defaults(default).units == (8, 8, 8)
    assert NetworkOptions(units=(8, 4)).with_defaults(default).layers == 2
    assert NetworkOptions(dropout=0.0).with_defaults(default).dropout == 0
