"""Every recipe, small: trained by its command, exported, served, called, and asked with files."""

import json
import subprocess

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from statsmodels.datasets import sunspots
from support.cli import NEURONA, environment
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import PredictRequest, Task
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.models.signature import Signature
from neurona_server.models.synthetic_inputs import make_inputs
from neurona_training.cli.main import main
from neurona_training.recipes import RECIPES

pytestmark = pytest.mark.slow

DEEP = ["--data", "{images}", "--image-size", "32", "--epochs", "1"]
COMMANDS = {
    "mcculloch-pitts": ["--data", "majority"],
    "perceptron": [],
    "adaline": [],
    "mlp": ["--epochs", "2"],
    "feedforward": ["--data", "digits", "--epochs", "1"],
    "neocognitron": ["--data", "{images}"],
    "lenet5": ["--data", "{images}", "--epochs", "2"],
    "vgg16": DEEP,
    "inception-v3": ["--data", "{images}", "--image-size", "75", "--epochs", "1"],
    "resnet18": DEEP,
    "resnet50": DEEP,
    "xception": DEEP,
    "rnn": ["--epochs", "2"],
    "gru": ["--data", "digit-rows", "--epochs", "1"],
    "lstm": ["--epochs", "1"],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images, with a folder for each of two digits."""
    root = tmp_path_factory.mktemp("pictures") / "digits"
    pixels, targets = load_digits(return_X_y=True)
    for digit in (0, 1):
        (root / str(digit)).mkdir(parents=True)
        for number, image in enumerate(pixels[targets == digit][:12]):
            grey = np.uint8(image.reshape(8, 8) * 255 / 16)
            Image.fromarray(grey).save(root / str(digit) / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory, images):
    root = tmp_path_factory.mktemp("recipes")
    for recipe, arguments in COMMANDS.items():
        command = [recipe, "--name", recipe, "--out", str(root), "--no-report"]
        status = main([*command, *(argument.format(images=images) for argument in arguments)])
        assert status == 0, f"{recipe} ended with status {status}"
    return root


@pytest.fixture(scope="module")
def server(repository):
    server = InProcessServer(repository, BatchPolicy(max_rows=4))
    yield server
    server.stop()


def test_every_recipe_is_tested():
    assert COMMANDS.keys() == RECIPES.keys()


@pytest.mark.parametrize("recipe", COMMANDS)
def test_recipe_is_served_in_batches_by_its_task(server, repository, recipe):
    model = server.registry.resolve(recipe)
    signature: Signature = model.signature
    assert signature.batched
    assert model.metadata.provenance["recipe"] == recipe
    assert any(name.startswith("test_") for name in model.metadata.figures)
    inputs = make_inputs(signature.inputs, 3, 12)
    if "sequence_lens" in inputs:
        inputs["sequence_lens"][:] = [12, 5, 1]
    tensors = [to_tensor(name, array) for name, array in inputs.items()]
    request = PredictRequest(model=recipe, inputs=tensors, raw_outputs=True)
    response = server.prediction.Predict(request, timeout=60)
    path = repository / recipe / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for output, wanted in zip(response.outputs, session.run(None, inputs), strict=True):
        np.testing.assert_allclose(to_array(output), wanted, rtol=1e-4, atol=1e-5)
    if model.metadata.task == Task.TASK_CLASSIFICATION:
        rows = response.classification.rows
        assert all(row.labels[0] in model.metadata.labels for row in rows)
        assert all(0 < row.probabilities[0] <= 1.00001 for row in rows)
    else:
        rows = response.regression.rows
        assert response.regression.values[0].unit
    assert len(rows) == 3


def save_frame(path, frame):
    frame.to_csv(path)  # with pandas' nameless column
    return path


def write_question(folder, recipe, images):
    """Write a file of the kind that the recipe was trained on.

    Returns:
        The file, and the model's main input for it.
    """
    digits = load_digits().images.astype(np.float32)
    frames = {
        "perceptron": lambda: load_iris(as_frame=True),
        "adaline": lambda: load_diabetes(as_frame=True, scaled=False),
        "mlp": lambda: load_breast_cancer(as_frame=True),
    }
    if recipe in frames:
        bunch = frames[recipe]()
        shuffled = bunch.frame[sorted(bunch.frame.columns)]
        return save_frame(folder / "rows.csv", shuffled), bunch.data.to_numpy(np.float32)
    if recipe == "mcculloch-pitts":
        (folder / "truth.csv").write_text("a,b,c\n1,0,1\n0,1,0\n")
        return folder / "truth.csv", np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    if recipe == "rnn":
        frame = sunspots.load_pandas().data
        series = frame["SUNACTIVITY"].to_numpy(np.float32)[-22:]
        return save_frame(folder / "series.csv", frame), series[None, :, None]
    if recipe in ("gru", "lstm"):
        np.save(folder / "digits.npy", digits[:5])
        return folder / "digits.npy", digits[:5]
    if recipe == "feedforward":
        levels = np.uint8(np.rint(digits[3] * 255 / 16))
        Image.fromarray(levels).save(folder / "digit.png")
        return folder / "digit.png", levels[None] * np.float32(16 / 255)
    return images, None


@pytest.mark.parametrize("recipe", COMMANDS)
def test_recipe_is_asked_with_files_of_its_kind(server, repository, images, recipe, tmp_path):
    file, array = write_question(tmp_path, recipe, images)
    done = subprocess.run(
        [NEURONA, "predict", recipe, file, "--json", "--address", f"127.0.0.1:{server.port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if array is None:
        assert len(rows) == 24
        array = np.stack([read_pixels(row["file"], server, recipe) for row in rows])
    session = onnxruntime.InferenceSession(
        repository / recipe / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {session.get_inputs()[0].name: array})
    assert len(rows) == len(expected)
    for row, values in zip(rows, expected, strict=True):
        if "values" in row:
            actual = [one["value"] for one in row["values"]]
            np.testing.assert_allclose(actual, values, rtol=1e-3)
        else:
            (best,) = row["classes"]
            assert best["probability"] == pytest.approx(values.max(), abs=1e-3)


def read_pixels(name, server, recipe):
    """Return the grey levels of a picture of 8 x 8 pixels in the size that the model takes."""
    size = server.registry.resolve(recipe).signature.inputs[0].shape[-1]
    with Image.open(name) as image:
        return np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32)
