"""neurona predict: CSV, arrays, images, sound, and files that fail."""

import json
import pickle
import signal
import wave

import numpy as np
import pytest
from support.pictures import peculiar_picture
from support.sounds import WAVEFORM, rejected_sounds, sounds

ROWS = "1,2,3,4\n0,0,0,0\n"


def json_lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rows_of_a_csv_are_samples(neurona, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a,b,c,d\n" + ROWS)
    done = neurona("predict", "classifier", file, "--top", "3", "--version", "2", "--json")
    assert done.returncode == 0, done.stderr
    first, second = json_lines(done)
    assert (first["file"], second["file"]) == (f"{file}:2", f"{file}:3")
    assert first["version"] == 2
    assert [one["label"] for one in first["classes"]] == ["cat", "bee", "ant"]
    assert sum(one["probability"] for one in first["classes"]) == pytest.approx(1, abs=1e-5)


def test_the_table_shows_names_values_and_units(neurona):
    done = neurona("predict", "regressor", "-", input="1,2\n10,20,30\n")
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["FILE", "NAME", "VALUE", "UNIT"],
        ["-:1", "total", "3", "kg"],
        ["-:2", "total", "60", "kg"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "age,income\n1.5,2\n3,4\n",
        "id;income;bought;age\na;2;;1,5\nb;4,0;yes;3\n",
        ",income,age\n0,2,1.5\n1,4,3\n",
        "1.5,2\n3,4\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_columns_are_matched_by_name(neurona, text, encoding):
    done = neurona("predict", "people", "-", "--json", input=text.encode(encoding), text=False)
    assert done.returncode == 0, done.stderr
    values = [json.loads(line)["values"][0]["value"] for line in done.stdout.splitlines()]
    assert values == [2001.5, 4003.0]


def test_other_columns_are_refused_with_both_lists(neurona, tmp_path):
    file = tmp_path / "other.csv"
    file.write_text("height,weight\n180,70\n")
    done = neurona("predict", "people", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"neurona: {file}: columns do not match: first line has height, weight "
        "(expected age, income)\n"
    )


def test_array_files_hold_a_sample_a_batch_or_inputs_by_name(neurona, tmp_path):
    rows = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.save(tmp_path / "a_batch.npy", rows)
    np.save(tmp_path / "b_sample.npy", rows[0])
    np.savez(tmp_path / "c_named.npz", series=rows)
    (tmp_path / "notes.txt").write_text("not for the model")
    done = neurona("predict", "regressor", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    values = [one["values"][0]["value"] for one in json_lines(done)]
    assert values == [6, 15, 6, 6, 15]


def test_files_that_fail_are_reported_and_the_others_predicted(neurona, tmp_path):
    good = tmp_path / "good.npy"
    np.save(good, np.ones((1, 4), np.float32))
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.ones((1, 5), np.float32))
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    half = tmp_path / "half.csv"
    half.write_text("1,2,3,4\n1,2,x,4\n")
    absent = tmp_path / "absent.png"
    pickled = tmp_path / "pickled.pkl"
    pickled.write_bytes(pickle.dumps([1.0]))
    files = [wrong, good, objects, half, absent, pickled]
    done = neurona("predict", "classifier", *files)
    assert done.returncode == 1
    table = [line.split()[0] for line in done.stdout.splitlines()]
    assert table == ["FILE", str(good), f"{half}:1"]
    messages = done.stderr.splitlines()
    assert messages[0].startswith(f"neurona: {wrong}: input 'x' has shape [1, 5] (expected [-1, 4]")
    assert messages[1].startswith(f"neurona: {objects}: array has Python objects")
    assert messages[2] == f"neurona: {half}: line 2: 'x' is not a number"
    assert messages[3] == f"neurona: {absent}: No such file or directory"
    for values in ("[5.1, 3.5e0]", "5.1,-3"):
        message = neurona("predict", "classifier", values).stderr
        assert message.endswith("(expected a file, or - and the values as CSV on standard input)\n")
    assert messages[4].startswith(f"neurona: {pickled}: a pickle, which could run code (expected")
    assert len(messages) == 5
    errors = [
        one["error"]
        for one in json_lines(neurona("predict", "classifier", *files, "--json"))
        if "error" in one
    ]
    assert len(errors) == 5


def test_images_are_scaled_to_the_unit_of_the_input(neurona, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (40, 40), 128).save(tmp_path / "grey.png")
    done = neurona("predict", "pixels", tmp_path / "grey.png", "--json")
    assert done.returncode == 0, done.stderr
    # 16 pixels of the middle grey of 0..16.
    assert json_lines(done)[0]["values"][0]["value"] == pytest.approx(16 * 128 / 255 * 16, rel=0.01)


def write_sound(path, rate=8000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.full(100 * channels, 16384, "<i2").tobytes())
    return path


@pytest.mark.long
@pytest.mark.slow
def test_sound_is_brought_to_the_models_sample_rate_and_one_channel(neurona, tmp_path):
    done = neurona("predict", "sound", write_sound(tmp_path / "one.wav"), "--json")
    assert done.returncode == 0, done.stderr
    assert json_lines(done)[0]["values"][0]["value"] == pytest.approx(50)
    fast = write_sound(tmp_path / "fast.wav", rate=16_000, channels=2)
    done = neurona("predict", "sound", fast, "--json")
    assert json_lines(done)[0]["values"][0]["value"] == pytest.approx(25, rel=0.05)
    done = neurona("predict", "regressor", tmp_path / "one.wav")
    assert done.returncode == 1
    assert "does not take sound" in done.stderr


def values_of(done):
    assert done.returncode == 0, done.stderr
    return [one["values"][0]["value"] for one in json_lines(done)]


def test_sound_of_every_encoding_has_its_length(neurona, tmp_path):
    for name, content in sounds().items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    expected = 1000 * len(WAVEFORM) + WAVEFORM.sum()
    values = values_of(neurona("predict", "recording", tmp_path, "--json"))
    assert values == [expected] * len(sounds())


def test_damaged_sound_is_reported_and_the_others_predicted(neurona, tmp_path):
    damaged = rejected_sounds()
    del damaged["stereo"], damaged["another rate"]  # which is no damage
    for name, (content, _) in damaged.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    (tmp_path / "whole.wav").write_bytes(sounds()["24 bits"])
    done = neurona("predict", "recording", tmp_path, "--json")
    assert done.returncode == 1
    rows = {one["file"]: one for one in json_lines(done)}
    assert rows.pop(str(tmp_path / "whole.wav"))["values"]
    for name, (_, message) in damaged.items():
        assert message in rows[str(tmp_path / f"{name}.wav")]["error"]
    assert "Traceback" not in done.stderr


def test_sequences_are_predicted_from_the_file_that_training_reads(neurona, tmp_path):
    """More rows than go into one request, all steps one after the other, or padded with what
    is no zero.
    """
    lengths = np.arange(150) % 5 + 1
    inputs = np.random.default_rng(0).integers(0, 9, (lengths.sum(), 2)).astype(np.float64)
    expected = [
        1000 * len(steps) + (steps * [1, 10]).sum()
        for steps in np.split(inputs, lengths.cumsum()[:-1])
    ]
    padded = np.full((150, 9, 2), 7.0)
    padded[np.arange(9) < lengths[:, None]] = inputs
    joined = {"inputs": inputs, "lengths": lengths, "targets": np.array(["a", "b"] * 75)}
    long = {"inputs": np.ones((80, 60_000, 2)), "lengths": np.full(80, 60_000)}  # 77 MB
    folder = tmp_path / "set"
    folder.mkdir()
    np.save(folder / "a_batch.npy", inputs[:6].reshape(2, 3, 2))
    np.savez(folder / "b_joined.npz", **joined)
    np.savez_compressed(folder / "c_long.npz", **long)
    np.save(folder / "d_one.npy", inputs[:4])
    np.savez(
        folder / "e_order.npz", **{**joined, "inputs": np.fliplr(inputs)}, channels=["down", "up"]
    )
    np.savez(folder / "f_padded.npz", **{**joined, "inputs": padded})
    done = neurona("predict", "gestures", folder, "--json")
    weighted = (inputs * [1, 10]).sum(axis=1)
    assert values_of(done) == pytest.approx(
        [
            *(3000 + weighted[:3].sum(), 3000 + weighted[3:6].sum()),
            *expected,
            *[60_000 * 1011] * 80,
            4000 + weighted[:4].sum(),
            *expected,
            *expected,
        ],
        rel=1e-6,
    )
    assert json_lines(done)[151]["file"] == f"{folder / 'b_joined.npz'}[149]"
    np.savez(tmp_path / "other.npz", **joined, channels=["left", "up"])
    done = neurona("predict", "gestures", tmp_path / "other.npz")
    assert done.returncode == 1
    assert "channels are left, up (expected up, down)" in done.stderr


def test_columns_of_an_array_are_matched_by_name(neurona, tmp_path):
    """A table may be trained on as CSV, or as an array with the names of its columns."""
    rows = np.array([[2, 1.5, 9], [4, 3, 9]])
    names = ["income", "age", "id"]
    np.savez(tmp_path / "rows.npz", X=rows, y=[0, 1], feature_names=names)
    done = neurona("predict", "people", tmp_path / "rows.npz", "--json")
    assert values_of(done) == [2001.5, 4003.0]
    np.savez(tmp_path / "rows.npz", X=rows, y=[0, 1], feature_names=["income", "pulse", "id"])
    done = neurona("predict", "people", tmp_path / "rows.npz")
    assert (done.returncode, "(expected age, income)" in done.stderr) == (1, True)


def test_pictures_in_a_folder_are_found_as_training_finds_them(neurona, tmp_path):
    """By their content, behind links, and without the hidden files that systems leave there."""
    image = pytest.importorskip("PIL.Image")
    for folder in ("set", "elsewhere"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(["a.gif", "b.TIF", "c.webp", "d.bmp", "e.pgm", "f"]):
        kind = {"f": "PNG", "e.pgm": "PPM", "b.TIF": "TIFF"}.get(name)
        image.new("L", (4, 4), 51 * number).save(tmp_path / "set" / name, kind, lossless=True)
    (tmp_path / "set" / "f").rename(tmp_path / "elsewhere" / "f")
    (tmp_path / "set" / "g").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "h").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "._a.gif").write_bytes(b"resource fork")
    (tmp_path / "set" / "Thumbs.db").write_bytes(b"thumbnails")
    (tmp_path / "set" / "i.jpg").write_bytes(peculiar_picture())
    done = neurona("predict", "pixels", tmp_path / "set", "--json")
    levels = (0, 1, 2, 3, 4, 5, 5, 1)
    assert values_of(done) == pytest.approx([16 * 16 * one / 5 for one in levels], rel=1e-5)
    assert done.stderr == ""


@pytest.mark.parametrize("content", ["1,2\n", "1,2,3,4,5\n", "nan,é,1,1\n"])
def test_invalid_rows_are_reported_with_their_line(neurona, content):
    done = neurona("predict", "classifier", "-", input=content)
    assert done.returncode == 1
    assert done.stderr.startswith("neurona: -: line 1")
    assert "Traceback" not in done.stderr


def test_a_closed_standard_output_exits_with_141_and_prints_nothing(neurona, tmp_path):
    import os

    file = tmp_path / "many.csv"
    file.write_text(ROWS * 500)
    reading, writing = os.pipe()
    os.close(reading)
    done = neurona("predict", "classifier", file, "--json", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
