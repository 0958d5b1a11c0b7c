"""Arrays by the names that libraries give them: X and y, parts, images, equal lengths."""

import numpy as np
import pytest

from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

RANDOM = np.random.default_rng(0)
CLASSES = np.arange(40) % 2
MOTIONS = RANDOM.normal(size=(40, 7, 3))


@pytest.fixture
def load(tmp_path):
    def load(task=None, image_size=None, **arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        own = UserData(tmp_path / "data.npz", task=task, image_size=image_size)
        return load_user_data(own).training_view

    return load


def rows(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


@pytest.mark.parametrize("names", [("X", "y"), ("inputs", "targets"), ("data", "labels")])
def test_sequences_of_one_length_need_no_lengths(load, names):
    data = load(**dict(zip(names, (MOTIONS, CLASSES), strict=True)))
    assert (data.kind, data.labels) == ("sequences", ("0", "1"))
    assert data.train.lengths is None
    assert [one.name for one in data.inputs] == ["sequence"]
    assert data.train.inputs.shape[1:] == (7, 3)
    assert "sequences of 7 steps" in data.source


def test_steps_of_nan_at_the_end_are_padding(load):
    padded = MOTIONS.copy()
    padded[3, 4:] = padded[5, 6:] = np.nan
    data = load(X=padded, y=CLASSES)
    lengths = np.concatenate([part.lengths for part in (data.train, data.validation, data.test)])
    assert sorted(lengths)[:3] == [4, 6, 7]
    assert np.isfinite(data.train.inputs).all()
    padded[2, 1, 1] = np.nan
    with pytest.raises(DataError, match="row 2, step 1, channel 1 is not finite"):
        load(X=padded, y=CLASSES)


def test_arrays_for_parts_are_kept_apart(load):
    data = load(
        x_train=MOTIONS[:20],
        y_train=CLASSES[:20],
        x_val=MOTIONS[20:28, :5],
        y_val=CLASSES[20:28],
        x_test=MOTIONS[28:],
        y_test=CLASSES[28:],
    )
    assert rows(data) == [20, 8, 12]
    np.testing.assert_array_equal(data.test.inputs, MOTIONS[28:].astype(np.float32))
    assert set(data.validation.lengths) == {5}  # shorter than the others
    assert (
        "divided by their user: 20 for training, 8 for validation, 12 for the test" in data.source
    )


def test_a_test_part_alone_leaves_validation_to_be_taken_from_training(load):
    data = load(
        X_train=MOTIONS[:30], y_train=CLASSES[:30], X_test=MOTIONS[30:], y_test=CLASSES[30:]
    )
    assert rows(data) == [24, 6, 10]
    assert "those for validation taken from the first" in data.source


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("X", "y"), (40, 6, 9), (6, 9)),
        (("X", "y"), (40, 6, 9, 1), (6, 9)),
        (("X", "y"), (40, 6, 9, 3), (3, 6, 9)),
        (("images", "labels"), (40, 3, 6, 9), (3, 6, 9)),
    ],
)
def test_images_have_their_colours_first(load, names, shape, expected):
    levels = RANDOM.integers(0, 256, shape, np.uint8)
    data = load(**dict(zip(names, (levels, CLASSES[:, None]), strict=True)))
    assert (data.kind, data.train.inputs.shape[1:]) == ("images", expected)
    assert (data.input.unit, data.train.inputs.dtype) == ("level 0..255", np.float32)
    assert "9 x 6 pixels: 0 is black, 255 is the brightest" in data.input.description


def test_images_of_parts_as_medical_collections_name_them(load):
    levels = RANDOM.integers(0, 256, (40, 6, 6), np.uint8)
    data = load(
        train_images=levels[:20],
        train_labels=CLASSES[:20, None],
        val_images=levels[20:30],
        val_labels=CLASSES[20:30, None],
        test_images=levels[30:],
        test_labels=CLASSES[30:, None],
    )
    assert (data.kind, rows(data), data.labels) == ("images", [20, 10, 10], ("0", "1"))


def test_arrays_of_images_are_brought_to_the_size_that_is_asked_for(load):
    levels = RANDOM.integers(0, 256, (40, 8, 6), np.uint8)
    data = load(image_size=4, X=levels, y=CLASSES)
    assert data.train.inputs.shape[1:] == (4, 4)
    assert data.input.description.endswith("; brought to 4 x 4 from 6 x 8")
    with pytest.raises(DataError, match="no images to resize"):
        load(image_size=4, X=MOTIONS, y=CLASSES)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_targets_may_have_a_1_for_the_class_of_each_row(load, dtype):
    classes = np.arange(40) % 12  # more than integers may be for classes
    data = load(X=MOTIONS, y=np.eye(12)[classes % 4].astype(dtype)[:, :4])
    assert data.labels == ("0", "1", "2", "3")
    same = load(X=MOTIONS, y=classes % 4)
    np.testing.assert_array_equal(data.test.targets, same.test.targets)
    assert load(X=MOTIONS, y=np.eye(2)[CLASSES], task="regression").values


def test_a_column_of_targets_is_the_same_as_a_row(load):
    for column in (CLASSES.astype(np.float32), RANDOM.normal(size=40)):
        flat, nested = load(X=MOTIONS, y=column), load(X=MOTIONS, y=column[:, None])
        assert nested.labels == flat.labels
        np.testing.assert_array_equal(nested.train.targets, flat.train.targets)


def test_classes_may_be_bytes(load):
    data = load(X=MOTIONS, y=np.array(["Bär".encode(), b"ox"])[CLASSES])
    assert data.labels == ("Bär", "ox")


def test_floats_from_0_to_1_are_images_where_they_are_called_so(load):
    data = load(images=RANDOM.random((40, 6, 6)), y=CLASSES)
    assert (data.kind, data.input.unit) == ("images", "level 0..1")


def test_two_axes_are_rows_of_a_table(load):
    table = RANDOM.normal(size=(40, 2))
    data = load(X=table, y=table @ [1, 2] + 3, feature_names=["width", "height"])
    assert (data.kind, data.input.columns) == ("rows", ("width", "height"))
    expected = data.test.inputs @ np.array([[1], [2]]) + 3
    np.testing.assert_allclose(data.test.targets, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X_test": MOTIONS, "y_test": CLASSES}, "expected one array of inputs, or some for train"),
        ({"x": MOTIONS.astype(str), "y": CLASSES}, r"inputs: <U\d+ of shape \[40, 7, 3\]"),
        ({"x": np.zeros((40, 5, 6, 7), np.uint8), "y": CLASSES}, "expected images: "),
        (
            {
                "x_train": MOTIONS,
                "y_train": CLASSES,
                "x_test": MOTIONS[:, :, :2],
                "y_test": CLASSES,
            },
            r"inputs: parts of shapes \[40, 7, 3\], \[40, 7, 2\]",
        ),
        (  # all rows together have as many targets as inputs
            {
                "x_train": MOTIONS[:20],
                "y_train": CLASSES[:21],
                "x_test": MOTIONS[20:],
                "y_test": CLASSES[21:],
            },
            r"train targets: int64 of shape \[21\] for inputs: float64 of shape \[20, 7, 3\]",
        ),
        ({"x": MOTIONS, "y": np.array(1)}, r"targets: int64 of shape \[\]"),
        (
            {"x_train": MOTIONS, "y_train": CLASSES, "x_test": MOTIONS[:, 0], "y_test": CLASSES},
            r"inputs: parts of shapes \[40, 7, 3\], \[40, 3\]",
        ),
        (
            {
                "x_train": MOTIONS.astype(str),
                "y_train": CLASSES,
                "x_test": MOTIONS[:9].astype(str),
                "y_test": CLASSES[:9],
            },
            r"inputs: <U\d+ of shape",
        ),
        (
            {"x_train": MOTIONS, "y_train": CLASSES * 0, "x_test": MOTIONS, "y_test": CLASSES},
            "class '1' has no row for training",
        ),
    ],
)
def test_an_error_names_the_array(load, arrays, message):
    with pytest.raises(DataError, match=message):
        load(**arrays)
