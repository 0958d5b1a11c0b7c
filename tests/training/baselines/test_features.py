"""Columns made of inputs: what they must not depend on, and that they are bounded."""

import numpy as np
import pytest
import torch

from neurona_training.baselines.features import MAX_COLUMNS, make_columns, sample_rows
from neurona_training.data import Dataset, Input, Split, Value

RANDOM = np.random.default_rng(6)


def dataset(inputs, axes, lengths=None, window=0):
    split = Split(inputs, RANDOM.normal(size=(len(inputs), 1)).astype(np.float32), lengths)
    described = Input("x", axes, "", "", window=window)
    return Dataset("d", "", split, split, split, described, values=(Value("y", ""),))


def columns_of(data):
    return next(iter(make_columns(data).values()))


def test_a_constant_column_counts_for_nothing():
    inputs = RANDOM.normal(size=(50, 3)).astype(np.float32)
    inputs[:, 1] = 0.1
    columns = columns_of(dataset(inputs, ("batch", "c")))
    inputs[:, 1] = 1e9
    made = columns(torch.from_numpy(inputs)).numpy()
    np.testing.assert_array_equal(made[:, 1], 0)
    np.testing.assert_allclose(made[:, [0, 2]].std(axis=0), 1, rtol=1e-5)


def test_large_pictures_are_averaged():
    pictures = RANDOM.integers(0, 256, (4, 3, 90, 160)).astype(np.float32)
    pictures[0] = 7
    made = columns_of(dataset(pictures, ("batch", "channel", "height", "width")))(
        torch.from_numpy(pictures)
    ).numpy()
    assert made.shape[1] <= MAX_COLUMNS
    expected = (7 - pictures.mean()) / pictures.std()
    np.testing.assert_allclose(made[0], expected, rtol=1e-4)
    np.testing.assert_allclose(made.mean(), 0, atol=1e-4)  # each pixel counts the same


@pytest.mark.parametrize("length", [1, 2, 17])
def test_a_sequence_and_its_padding(length):
    inputs = RANDOM.normal(size=(6, 17, 2)).astype(np.float32)
    lengths = np.array([17, 1, 2, 9, 17, 5], np.int32)
    columns = columns_of(dataset(inputs, ("batch", "time", "c"), lengths))
    row = torch.from_numpy(inputs[:1, :length])
    alone = columns(row, torch.tensor([length], dtype=torch.int32))
    noise = torch.full((1, 9, 2), 1e9)
    padded = columns(torch.cat([row, noise], 1), torch.tensor([length], dtype=torch.int32))
    torch.testing.assert_close(alone, padded)
    assert torch.isfinite(alone).all()


def test_a_window_is_relative_to_its_last_value():
    inputs = RANDOM.normal(size=(30, 5, 1)).astype(np.float32)
    columns = columns_of(dataset(inputs, ("batch", "time", "c"), window=5))
    made = columns(torch.from_numpy(inputs))
    higher = columns(torch.from_numpy(inputs + 64))
    torch.testing.assert_close(made[:, :-1], higher[:, :-1], atol=1e-4, rtol=0)
    longer = torch.cat([torch.zeros(30, 3, 1), torch.from_numpy(inputs)], dim=1)
    torch.testing.assert_close(columns(longer), made)  # only the last five are read


def test_a_sample_has_each_class_in_its_share():
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    split = Split(np.arange(1000, dtype=np.float32)[:, None], targets)
    sample = sample_rows(split, 100)
    np.testing.assert_array_equal(np.bincount(targets[sample]), [90, 9, 1])
    np.testing.assert_array_equal(sample_rows(split, 1000), np.arange(1000))
    np.testing.assert_array_equal(sample, sample_rows(split, 100))
