"""Data sets: disjoint parts, in a caller's units."""

from dataclasses import replace

import numpy as np
import pytest

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.catalogue import SOURCES, DataOptions, load
from neurona_training.data.sources import digits, sunspots
from neurona_training.errors import DataError
from neurona_training.recipes import RECIPES


@pytest.mark.parametrize("load", [digits.digit_images, digits.digit_rows])
def test_digits_are_split_the_same_on_each_call(load):
    data, again = load(), load()
    parts = (data.train, data.validation, data.test)
    total = sum(len(part) for part in parts)
    assert total == 1797
    assert 0.60 <= len(data.train) / total <= 0.70

    # The 1,797 images differ from each other, so equal rows would be the same image.
    images = [{row.tobytes() for row in part.inputs} for part in parts]
    assert sum(len(part) for part in images) == len(set.union(*images)) == total

    for part in parts:  # stratified: each digit is a tenth of each part
        assert np.abs(np.bincount(part.targets) / len(part) - 0.1).max() < 0.01
        assert part.inputs.dtype == np.float32
        assert (part.inputs.min(), part.inputs.max()) == (0, 16)
    assert np.array_equal(data.test.inputs, again.test.inputs)


def test_sunspots_are_split_in_time_and_targets_follow_their_window():
    from statsmodels.datasets import sunspots as source

    series = source.load().endog.to_numpy(np.float32)
    data = sunspots.yearly_sunspots()
    parts = (data.train, data.validation, data.test)
    targets = np.concatenate([part.targets[:, 0] for part in parts])
    inputs = np.concatenate([part.inputs[:, :, 0] for part in parts])
    assert np.array_equal(targets, series[sunspots.WINDOW :])  # each year once, in order
    for row in (0, 100, len(inputs) - 1):
        assert np.array_equal(inputs[row], series[row : row + sunspots.WINDOW])
    assert 0.60 <= len(data.train) / len(targets) <= 0.70


def test_invalid_data_is_rejected():
    row, target = np.zeros((1, 2), np.float32), np.zeros(1, np.int64)
    with pytest.raises(DataError, match="no rows"):
        Split(row[:0], target[:0])
    with pytest.raises(DataError, match="0 targets for 1 rows of input"):
        Split(row, target[:0])
    with pytest.raises(DataError, match="missing or not finite"):
        Split(row * np.float32("nan"), target)
    split = Split(row, target)
    described = Input("x", ("batch", "feature"), "", "")
    with pytest.raises(DataError, match="either labels or values"):
        Dataset("nothing", "", split, split, split, described)


def test_resized_images_resemble_their_originals():
    data = load("digits", DataOptions(image_size=16))
    small = load("digits")
    assert data.train.inputs.shape == (len(small.train), 16, 16)
    assert data.input.description.endswith("; brought to 16 x 16 from 8 x 8")
    assert np.array_equal(data.test.targets, small.test.targets)
    blocks = data.test.inputs.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    distances = np.abs(blocks[:, None] - small.test.inputs[None]).mean(axis=(2, 3))
    assert np.array_equal(distances.argmin(axis=1), np.arange(len(blocks)))  # its own original
    with pytest.raises(DataError, match="'sunspots' has no images to resize"):
        load("sunspots", DataOptions(image_size=16))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_names_existing_data_sets(recipe):
    assert set(recipe.tuned) <= set(SOURCES)


def test_kind_and_task_decide_which_recipes_fit():
    kinds = {name: load(name).kind for name in ("digits", "digit-rows", "sunspots")}
    assert kinds == {"digits": "images", "digit-rows": "sequences", "sunspots": "sequences"}
    assert load("sunspots").task == "regression"
    regression = replace(load("digits"), labels=(), values=(Value("ink", ""),))
    with pytest.raises(DataError, match="is for regression .*expects classification"):
        RECIPES["lenet5"].check(regression)
