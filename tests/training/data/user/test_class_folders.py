"""Folders of files for each class: divided by their user or not, images that do not fit, sound."""

import shutil
import sys
import wave

import numpy as np
import pytest
from PIL import Image

from neurona_training.data.user import large_arrays
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError


def load(folder, **options):
    return load_user_data(UserData(folder, **options)).training_view


def write_images(folder, *classes, count=6, mode="L", size=(5, 4)):
    random = np.random.default_rng(len(classes))
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{number}.png")
    return folder


def write_tone(path, hertz, *, rate=8000, seconds=0.1, channels=1, level=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    samples = (32767 * level * np.sin(2 * np.pi * hertz * time)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples, channels).tobytes())


def rows(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


def test_folders_train_val_and_test_are_kept_apart(tmp_path):
    for part, count in (("train", 6), ("Val", 3), ("test", 4)):
        write_images(tmp_path / "pets" / part, "cat", "dog", count=count)
    data = load(tmp_path / "pets")
    assert (rows(data), data.labels) == ([12, 6, 8], ("cat", "dog"))
    first = np.asarray(Image.open(tmp_path / "pets" / "test" / "dog" / "0.png"), np.float32)
    assert (data.test.inputs == first).all(axis=(1, 2)).sum() == 1
    assert "divided by their user: 12 for training, 6 for validation, 8 for the test" in data.source


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("train", "valid"), [16, 20, 4]),
        (("training", "test"), [16, 4, 20]),
        (("train",), [12, 4, 4]),
    ],
)
def test_a_part_that_is_missing_is_taken_from_training(tmp_path, parts, expected):
    for part in parts:
        write_images(tmp_path / "pets" / part, "cat", "dog", count=10)
    data = load(tmp_path / "pets")
    assert rows(data) == expected
    assert "taken from the first" in data.source
    flat = [tuple(row.ravel()) for part in (data.train, data.validation) for row in part.inputs]
    test_rows = {tuple(row.ravel()) for row in data.test.inputs}
    assert len({*flat}) == len(flat) or "valid" in parts
    if "test" not in parts:
        assert test_rows.isdisjoint(tuple(row.ravel()) for row in data.train.inputs)


def test_classes_may_be_named_like_parts(tmp_path):
    folder = write_images(tmp_path / "signs", "train", "test")
    assert load(folder).labels == ("test", "train")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["test", "raw/cat"], "folders raw, test, train .expected train, val and test alone"),
        (["train", "training/cat", "test/cat"], "folders .* .expected train, val and test alone"),
        (["test"], "test: no folders .expected one with files for each class, as the folder for"),
    ],
)
def test_folders_of_parts_are_never_taken_for_classes(tmp_path, others, message):
    write_images(tmp_path / "train", "cat", "dog")
    for other in others:
        write_images(tmp_path, other)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_options_of_other_kinds_of_files_are_refused(tmp_path):
    write_images(tmp_path / "pets", "cat", "dog")
    for label in ("high", "low"):
        for number in range(6):
            write_tone(tmp_path / "tones" / label / f"{number}.wav", 440)
    with pytest.raises(DataError, match="pets: no sound, so --sample-rate does not apply"):
        load(tmp_path / "pets", sample_rate=8000)
    with pytest.raises(DataError, match="tones: no images, so --image-size does not apply"):
        load(tmp_path / "tones", image_size=8)
    for option, value in (("target", "a"), ("ignored", ("a",)), ("series", "a")):
        with pytest.raises(DataError, match=r"pets: no table, so --\w+ does not apply"):
            load(tmp_path / "pets", **{option: value})
    with pytest.raises(DataError, match="a folder for each class is for classification"):
        load(tmp_path / "pets", task="regression")
    (tmp_path / "rows.csv").write_text("a,b\n" + "1,2\n" * 20)
    with pytest.raises(DataError, match="no images, so --image-size does not apply"):
        load(tmp_path / "rows.csv", target="b", image_size=8)


def test_a_class_without_training_files_is_an_error_that_names_it(tmp_path):
    for part, classes in (("train", ["cat", "dog"]), ("test", ["cat", "emu"])):
        write_images(tmp_path / part, *classes)
    with pytest.raises(DataError, match="class 'emu' has no row for training"):
        load(tmp_path)


def test_files_in_folders_of_a_class_belong_to_it(tmp_path):
    folder = write_images(tmp_path / "pets", "cat", "dog")
    write_images(folder / "cat", "kittens", count=2)
    data = load(folder)
    assert sum(rows(data)) == 14
    assert data.labels == ("cat", "dog")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_that_do_not_fit_are_the_same_from_disk(tmp_path, monkeypatch, mode):
    folder = write_images(tmp_path / "pets", "cat", "dog", mode=mode)
    in_memory = load(folder, image_size=4)
    monkeypatch.setattr(large_arrays, "MEMORY_SHARE", 0)
    on_disk = load(folder, image_size=4)
    for part in ("train", "validation", "test"):
        expected, actual = getattr(in_memory, part), getattr(on_disk, part)
        np.testing.assert_array_equal(actual.inputs, expected.inputs)
        np.testing.assert_array_equal(actual.targets, expected.targets)
        base = actual.inputs
        while isinstance(base, np.ndarray):
            base = base.base
        assert type(getattr(base, "obj", base)).__name__ == "mmap"


def test_a_full_disk_is_an_error_that_names_the_folder_and_the_size(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "pets", "cat", "dog")
    monkeypatch.setattr(large_arrays, "MEMORY_SHARE", 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(large_arrays.os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"GB of numbers fit neither .* No space left"):
        load(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_small_while_many_images_are_read(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "pets", "cat", "dog", mode="RGB", size=(64, 64))
    for label in ("cat", "dog"):
        for number in range(6, 300):
            shutil.copy(folder / label / f"{number % 6}.png", folder / label / f"{number}.png")
    monkeypatch.setattr(large_arrays, "MEMORY_SHARE", 0)

    def anonymous_memory():
        with open("/proc/self/status") as status:
            (line,) = [line for line in status if line.startswith("RssAnon")]
        return 1024 * int(line.split()[1])

    before = anonymous_memory()
    data = load(folder)
    assert data.train.inputs.nbytes + data.test.inputs.nbytes > 24e6
    assert anonymous_memory() - before < 12e6


def test_sound_of_several_rates_is_brought_to_the_most_frequent(tmp_path):
    for label, hertz in (("high", 880), ("low", 220)):
        for number in range(6):
            write_tone(tmp_path / "tones" / label / f"{number}.wav", hertz)
        write_tone(tmp_path / "tones" / label / "fast.wav", hertz, rate=44_100, channels=2)
    data = load(tmp_path / "tones")
    assert (data.kind, data.labels, data.input.sample_rate) == ("sequences", ("high", "low"), 8000)
    assert data.train.inputs.shape[1] == 800
    assert set(np.concatenate([data.train.lengths, data.test.lengths])) == {800}
    assert "2 of them resampled" in data.source
    assert "8,000 samples a second" in data.input.description
    slow = load(tmp_path / "tones", sample_rate=4000)
    assert (slow.input.sample_rate, slow.train.inputs.shape[1]) == (4000, 400)


def test_a_recording_that_is_no_wav_is_an_error_that_names_it(tmp_path):
    for label in ("yes", "no"):
        for number in range(6):
            write_tone(tmp_path / label / f"{number}.wav", 440)
    (tmp_path / "yes" / "9.flac").write_bytes(b"fLaC" + bytes(100))
    with pytest.raises(DataError, match=r"9\.flac: not a WAV file: FLAC"):
        load(tmp_path)
