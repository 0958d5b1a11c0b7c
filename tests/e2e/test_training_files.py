"""Models are asked with the files that they were trained on: the rows are the same to the bit.

The command `neurona predict` on a file must answer as the exported model does on the row that
training made of that file.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw
from support.cli import NEURONA, environment
from support.pictures import encode
from support.server_process import ServerProcess
from support.sounds import pcm, wav

from neurona_client import Client
from neurona_client.errors import InvalidInputError
from neurona_training.cli.main import main
from neurona_training.data.sources import spoken_digits
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData

pytestmark = pytest.mark.slow

SHARED = os.environ.get("NEURONA_SHARED", "")


@pytest.fixture(scope="module")
def icons(tmp_path_factory):
    """Dark and light discs on nothing, as the files of icons are, in several kinds of files."""
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures") / "icons"
    for label, level in (("dark", 40), ("light", 220)):
        (root / label).mkdir(parents=True)
        for number in range(40):
            image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
            x, y, size, shift = (*random.integers(2, 10, 2), *random.integers((12, -20), (20, 20)))
            grey = level + int(shift)
            ImageDraw.Draw(image).ellipse([x, y, x + size, y + size], fill=(grey, grey, grey, 255))
            kind = ("PNG", "TIFF", "WEBP", "GIF")[number % 4]
            content = encode(image, kind, lossless=True)
            (root / label / f"{number:02}.{kind.lower()}").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def gestures(tmp_path_factory):
    """Sequences of two channels, one of which rises or falls."""
    random = np.random.default_rng(0)
    lengths = random.integers(3, 9, 120)
    rising = np.arange(120) % 2
    steps = [
        np.stack([(2 * up - 1) * np.arange(length), random.normal(size=length)], axis=1)
        for up, length in zip(rising, lengths, strict=True)
    ]
    path = tmp_path_factory.mktemp("sequences") / "gestures.npz"
    np.savez(
        path,
        inputs=np.concatenate(steps),
        lengths=lengths,
        targets=np.where(rising, "up", "down"),
        channels=["height", "noise"],
    )
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Tones that rise or fall, divided by folders, some of them in stereo and at another rate."""
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("sound") / "words"
    for part, count in (("train", 24), ("val", 8), ("test", 8)):
        for label, (first, last) in {"down": (900, 300), "up": (300, 900)}.items():
            (root / part / label).mkdir(parents=True)
            for number in range(count):
                rate = 44_100 if number % 4 == 3 else 11_025
                seconds = random.uniform(0.2, 0.4)
                hertz = np.linspace(first, last, round(rate * seconds)) * random.uniform(0.9, 1.1)
                wave = 0.4 * np.sin(2 * np.pi * np.cumsum(hertz) / rate)
                samples = pcm(wave if rate < 44_100 else wave.repeat(2), 16)
                content = wav(samples, 16, channels=1 + (rate == 44_100), rate=rate)
                (root / part / label / f"{number:02}.wav").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory, icons, gestures, words):
    root = tmp_path_factory.mktemp("models")
    commands = [
        ["lenet5", "--data", str(icons), "--epochs", "60", "--name", "icons"],
        ["gru", "--data", str(gestures), "--epochs", "5", "--name", "gestures"],
        ["gru", "--data", str(words), "--epochs", "12", "--name", "words"],
    ]
    if SHARED:
        data = str(Path(SHARED, "data"))
        spoken = ["gru", "--data", "spoken-digits", "--data-dir", data, "--epochs", "1"]
        commands.append([*spoken, "--name", "spoken"])
    for command in commands:
        assert main([*command, "--no-report", "--out", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def server(repository):
    with ServerProcess(repository) as server:
        yield server


@pytest.fixture(scope="module")
def predict(server):
    """Returns the classes of each row, by label, and the row's name."""

    def predict(model, *files):
        command = [NEURONA, "predict", model, *map(str, files), "--json", "--top", "10"]
        done = subprocess.run(
            command,
            env=environment(NEURONA_ADDRESS=server.address),
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return [
            (row["file"], {one["label"]: one["probability"] for one in row["classes"]})
            for row in rows
        ]

    return predict


def run_model(repository, name, rows):
    session = onnxruntime.InferenceSession(
        next(repository.glob(f"{name}/*/model.onnx")), providers=["CPUExecutionProvider"]
    )
    inputs = dict(zip((one.name for one in session.get_inputs()), rows, strict=True))
    return session.run(None, inputs)[0]


def sorted_rows(probabilities):
    return sorted(map(tuple, np.round(probabilities, 5).tolist()))


def test_pictures_with_transparency(predict, repository, icons):
    answers = predict("icons", icons)
    assert [max(classes, key=classes.get) for _, classes in answers] == ["dark"] * 40 + [
        "light"
    ] * 40
    data = load_user_data(UserData(icons)).training_view
    rows = np.concatenate([part.inputs for part in (data.train, data.validation, data.test)])
    expected = run_model(repository, "icons", [rows])
    received = [[classes[label] for label in data.labels] for _, classes in answers]
    np.testing.assert_allclose(sorted_rows(received), sorted_rows(expected), atol=2e-5)


def test_sequences(predict, repository, gestures):
    answers = predict("gestures", gestures)
    assert [name for name, _ in answers] == [f"{gestures}[{row}]" for row in range(120)]
    data = load_user_data(UserData(gestures)).training_view
    parts = (data.train, data.validation, data.test)
    rows = [np.concatenate(arrays) for arrays in zip(*(part.arrays for part in parts), strict=True)]
    received = [[classes[label] for label in data.labels] for _, classes in answers]
    expected = run_model(repository, "gestures", rows)
    np.testing.assert_allclose(sorted_rows(received), sorted_rows(expected), atol=2e-5)


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED names no folder with the files")
def test_recordings(predict, repository):
    files = [Path(SHARED, "data", "fsdd", f"{digit}_george_0.wav") for digit in range(10)]
    for (_, classes), path in zip(predict("spoken", *files), files, strict=True):
        samples = spoken_digits.read_wave(path)
        rows = [samples[np.newaxis], np.array([len(samples)], np.int32)]
        expected = run_model(repository, "spoken", rows)[0]
        received = [classes[str(digit)] for digit in range(10)]
        np.testing.assert_allclose(received, expected, atol=2e-5)


def test_sound_of_any_rate_is_asked_as_it_was_trained_on(predict, repository, words, server):
    with Client(server.address) as client:
        spec = client.describe("words").inputs[0]
    assert (spec.name, spec.sample_rate) == ("waveform", 11_025)
    answers = predict("words", words / "test")
    data = load_user_data(UserData(words)).training_view
    expected = run_model(repository, "words", data.test.arrays)
    received = [[classes[label] for label in data.labels] for _, classes in answers]
    np.testing.assert_allclose(sorted_rows(received), sorted_rows(expected), atol=2e-5)
    right = [max(classes, key=classes.get) == Path(name).parent.name for name, classes in answers]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [3, 101]}, "input 'sequence_lens' row 1: length 101 (expected 1 to 5, the"),
        ({"lengths": [-1, 3]}, "input 'sequence_lens' row 0: length -1 (expected 1 to 5, the"),
        ({"value": np.nan}, "input 'sequence' row 1, column 'noise': nan (expected a finite"),
        ({"value": np.inf}, "input 'sequence' row 1, column 'noise': inf (expected a finite"),
    ],
)
def test_a_trained_model_refuses_what_it_was_not_trained_on(server, change, message):
    sequences = np.ones((2, 5, 2), np.float32)
    sequences[1, 3, 1] = change.get("value", 1)
    lengths = np.array(change.get("lengths", [5, 5]), np.int32)
    with Client(server.address) as client:
        with pytest.raises(InvalidInputError) as caught:
            client.predict("gestures", {"sequence": sequences, "sequence_lens": lengths})
        assert message in str(caught.value)
