"""A user's images and sequences: what they become, and which file or array has an error."""

import pickle

import numpy as np
import pytest
from PIL import Image
from support.pictures import SIDE, peculiar_picture

from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData, is_path
from neurona_training.errors import DataError


def _error_line(user_data):
    with pytest.raises(DataError) as caught:
        load_user_data(user_data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _images(folder, *, size=(6, 6), mode="L", classes=("cat", "dog"), count=6):
    random = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{number}.png")
    return folder


def test_the_folders_of_images_are_the_classes(tmp_path):
    folder = _images(tmp_path / "pets")
    (folder / "cat" / ".hidden").write_text("no image")
    data = load_user_data(UserData(folder)).training_view
    assert (data.labels, data.kind, data.train.inputs.shape[1:]) == (
        ("cat", "dog"),
        "images",
        (6, 6),
    )
    read = np.asarray(Image.open(folder / "cat" / "0.png"), np.float32)
    all_images = np.concatenate([part.inputs for part in (data.train, data.validation, data.test)])
    assert (all_images == read).all(axis=(1, 2)).sum() == 1


def test_colours_and_sizes(tmp_path):
    folder = _images(tmp_path / "pets", size=(6, 9), mode="RGB")
    assert load_user_data(UserData(folder)).training_view.train.inputs.shape[1:] == (3, 6, 9)
    data = load_user_data(UserData(folder, image_size=4)).training_view
    assert data.train.inputs.shape[1:] == (3, 4, 4)
    assert "central square brought to 4 x 4" in data.input.description
    Image.new("L", (3, 3)).save(folder / "cat" / "z.png")
    line = _error_line(UserData(folder))
    assert (
        f"{folder / 'cat' / 'z.png'}: 3 x 3 pixels (expected 9 x 6 as in 0.png); --image-size"
        in line
    )


def test_an_error_in_images_names_the_file_or_folder(tmp_path):
    folder = _images(tmp_path / "pets")
    (folder / "emu").mkdir()
    assert f"{folder / 'emu'}: no file for class 'emu'" in _error_line(UserData(folder))
    for number in range(2, 6):
        Image.new("L", (6, 6)).save(folder / "emu" / f"{number}.png")
    broken = folder / "emu" / "1.png"
    broken.write_text("not an image")
    assert f"{broken}: unknown image format" in _error_line(UserData(folder))
    broken.write_bytes((folder / "cat" / "0.png").read_bytes()[:60])
    assert f"{broken}: unreadable image" in _error_line(UserData(folder))
    alone = _images(tmp_path / "alone", classes=("cat",))
    assert "one class only, 'cat'" in _error_line(UserData(alone))
    (tmp_path / "empty").mkdir()
    assert "no folders (expected one" in _error_line(UserData(tmp_path / "empty"))


def test_peculiar_metadata_is_no_error(tmp_path):
    folder = _images(tmp_path / "pets", size=(SIDE, SIDE))
    (folder / "cat" / "peculiar.jpg").write_bytes(peculiar_picture())
    data = load_user_data(UserData(folder)).training_view
    parts = (data.train, data.validation, data.test)
    assert any((row == 51).all() for part in parts for row in part.inputs)


def _sequences(path, **changed):
    lengths = np.array([3, 5, 2, 4] * 5)
    arrays = {
        "inputs": np.arange(2.0 * lengths.sum()).reshape(-1, 2),
        "lengths": lengths,
        "targets": np.array(["up", "down"] * 10),
        **changed,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_concatenated_and_padded_sequences_are_equal(tmp_path):
    joined = load_user_data(UserData(_sequences(tmp_path / "a.npz"))).training_view
    assert joined.train.inputs.shape[1:] == (5, 2)
    assert joined.labels == ("down", "up")
    lengths, padded = np.array([3, 5, 2, 4] * 5), np.full((20, 7, 2), np.nan)
    padded[np.arange(7) < lengths[:, None]] = np.arange(2.0 * lengths.sum()).reshape(-1, 2)
    again = load_user_data(UserData(_sequences(tmp_path / "b.npz", inputs=padded))).training_view
    np.testing.assert_array_equal(again.test.inputs, joined.test.inputs)
    np.testing.assert_array_equal(again.test.lengths, joined.test.lengths)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"targets": None}, "no array 'targets'; available: inputs, lengths (expected targets or"),
        ({"inputs": None}, "no array 'inputs'; available: lengths, targets (expected inputs or X)"),
        ({"X": np.zeros((20, 2))}, "arrays 'inputs' and 'X' mean the same"),
        ({"y_test": np.zeros(3)}, "no array 'inputs' for test"),
        ({"lengths": np.array([1.5] * 20)}, "lengths: float64 of shape [20] (expected integers"),
        ({"lengths": np.array([3, 0, 2, 4] * 5)}, "lengths: row 1 has 0 steps"),
        ({"inputs": np.zeros((69, 2))}, "inputs: 69 steps (expected 70"),
        ({"inputs": np.zeros((20, 4, 2))}, "for 20 lengths of up to 5 steps"),
        (
            {"inputs": np.zeros(70)},
            "expected numbers of shape (rows, time, channels) or (steps, channels)",
        ),
        ({"inputs": np.full((70, 2), np.nan)}, "inputs: row 0, step 0, channel 0 is not finite"),
        ({"inputs": np.full((70, 2), 1e300)}, "inputs: row 0, step 0, channel 0 is not finite"),
        ({"targets": np.zeros(3)}, "targets: float64 of shape [3]"),
        ({"targets": np.array([0.5] * 19 + [np.nan])}, "targets: row 19 is not finite"),
        ({"targets": np.array(["up"] * 20)}, "one class only, 'up'"),
        (
            {"targets": np.array([None] * 20)},
            "array 'targets' has Python objects, which could run code",
        ),
        ({"channels": np.array(["x"])}, "channels: 1 names for 2 channels"),
    ],
)
def test_an_error_in_sequences_names_the_array(tmp_path, changed, expected):
    path = _sequences(tmp_path / "data.npz", **changed)
    line = _error_line(UserData(path))
    assert line.startswith(str(path))
    assert expected in line


def test_a_pickle_is_not_read_whatever_its_name(tmp_path):
    for name in ("data.pkl", "data.npz", "data.csv"):
        (tmp_path / name).write_bytes(pickle.dumps({"inputs": [1.0]}))
        line = _error_line(UserData(tmp_path / name, target="x" if name == "data.csv" else None))
        assert "a pickle, which could run code (expected" in line
        assert is_path(str(tmp_path / name))


def test_a_file_that_is_not_npz_is_rejected(tmp_path):
    path = tmp_path / "data.npz"
    path.write_text("x,y")
    assert f"{path}: content is no array (expected" in _error_line(UserData(path))
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert f"{path}: one array (expected an .npz file" in _error_line(UserData(path))
