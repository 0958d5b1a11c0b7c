"""neurona predict: CSV, arrays, images, sound, and files that fail."""

import json
import signal
import wave

import numpy as np
import pytest

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
    files = [wrong, good, objects, half, absent]
    done = neurona("predict", "classifier", *files)
    assert done.returncode == 1
    table = [line.split()[0] for line in done.stdout.splitlines()]
    assert table == ["FILE", str(good), f"{half}:1"]
    messages = done.stderr.splitlines()
    assert messages[0].startswith(f"neurona: {wrong}: input 'x' has shape [1, 5] (expected [-1, 4]")
    assert messages[1].startswith(f"neurona: {objects}: not a file of numpy arrays")
    assert messages[2] == f"neurona: {half}: line 2 has 'x' (expected a number)"
    assert messages[3] == f"neurona: {absent}: No such file or directory"
    assert len(messages) == 4
    errors = [
        one["error"]
        for one in json_lines(neurona("predict", "classifier", *files, "--json"))
        if "error" in one
    ]
    assert len(errors) == 4


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


def test_sound_must_have_the_models_sample_rate(neurona, tmp_path):
    done = neurona("predict", "sound", write_sound(tmp_path / "one.wav"), "--json")
    assert done.returncode == 0, done.stderr
    assert json_lines(done)[0]["values"][0]["value"] == pytest.approx(50)
    done = neurona("predict", "sound", write_sound(tmp_path / "fast.wav", rate=44100))
    assert done.returncode == 1
    assert "16 bits at 44100 Hz (expected 1 of 16 bits at 8000 Hz)" in done.stderr
    done = neurona("predict", "regressor", tmp_path / "one.wav")
    assert done.returncode == 1
    assert "does not take sound" in done.stderr


@pytest.mark.parametrize("content", ["1,2\n", "1,2,3,4,5\n", "nan,é,1,1\n"])
def test_invalid_rows_are_reported_with_their_line(neurona, content):
    done = neurona("predict", "classifier", "-", input=content)
    assert done.returncode == 1
    assert done.stderr.startswith("neurona: -: line 1 has ")
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
