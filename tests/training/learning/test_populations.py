"""Whether validation and test rows are of one population."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.learning.populations import compare_populations, summarise_inputs


class _Constant(nn.Module):
    """Knows nothing: the same outputs for each row."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, *inputs):
        return torch.zeros(len(inputs[0]), self.outputs) + torch.arange(self.outputs)


def _divided(inputs, targets, axes, seed):
    """Random divisions, in which the classes have no fixed shares."""
    order = np.random.default_rng(seed).permutation(len(inputs))
    parts = [Split(inputs[rows], targets[rows]) for rows in np.array_split(order, 3)]
    described = Input("x", axes, "inputs", "unit")
    if targets.dtype == np.int64:
        labels = tuple(str(label) for label in np.unique(targets))
        return Dataset("data", "drawn", *parts, described, labels=labels)
    return Dataset("data", "drawn", *parts, described, values=(Value("value", "unit"),))


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    return bunch.images.astype(np.float32), bunch.target.astype(np.int64)


@pytest.fixture(scope="module")
def tumours():
    bunch = load_breast_cancer()
    return bunch.data.astype(np.float32), bunch.target.astype(np.int64)


def test_rows_divided_at_random_raise_no_alarm(digits, tumours):
    for seed in range(3):
        images = _divided(*digits, ("batch", "height", "width"), seed)
        rows = _divided(*tumours, ("batch", "column"), seed)
        assert not compare_populations(_Constant(10), images).differ
        compared = compare_populations(_Constant(2), rows)
        assert not compared.differ
        assert compared.summary == "Validation and test rows look like one population."


def test_other_label_shares_are_seen(tumours):
    data = _divided(*tumours, ("batch", "column"), seed=0)
    healthy = np.flatnonzero(data.test.targets == 1)
    kept = np.setdiff1d(np.arange(len(data.test)), healthy[:70])
    fewer = replace(data, test=Split(data.test.inputs[kept], data.test.targets[kept]))
    compared = compare_populations(_Constant(2), fewer)
    assert compared.differ
    assert compared.tests[0].p_value < 0.001
    assert compared.tests[1].p_value > 0.01  # those of one class are as they were
    assert "'0' is" in compared.summary
    assert "of the test rows (p < 0.001)" in compared.summary


def test_other_inputs_of_the_same_classes_are_seen(digits):
    data = _divided(*digits, ("batch", "height", "width"), seed=1)
    paler = replace(data, test=Split(data.test.inputs * 0.9, data.test.targets))
    compared = compare_populations(_Constant(10), paler)
    assert compared.differ
    assert compared.tests[0].p_value > 0.01
    assert compared.tests[1].p_value < 0.001
    assert "a classifier tells a test row from a validation row in" in compared.summary


def test_a_network_that_is_right_less_often_is_seen(digits):
    """Test rows whose labels are wrong look like the others; only the network shows it."""
    images, targets = digits
    data = _divided(images, targets, ("batch", "height", "width"), seed=2)

    answers = {image.tobytes(): label for image, label in zip(images, targets, strict=True)}

    class _Knows(nn.Module):
        def forward(self, x):
            codes = [answers[image.numpy().tobytes()] for image in x]
            return 4.0 * nn.functional.one_hot(torch.tensor(codes), 10).float()

    noisy = data.test.targets.copy()
    noisy[:60] = np.roll(noisy[:60], 1)
    compared = compare_populations(_Knows(), replace(data, test=Split(data.test.inputs, noisy)))
    assert compared.differ
    assert compared.tests[2].p_value < 0.001
    assert "% right on validation rows but" in compared.summary


def test_values_and_errors_of_a_regression_are_compared():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(900, 3)).astype(np.float32)
    targets = (inputs.sum(axis=1, keepdims=True) + 5).astype(np.float32)
    data = _divided(inputs, targets, ("batch", "column"), seed=0)
    assert not compare_populations(_Constant(1), data).differ
    later = replace(data, test=Split(data.test.inputs + 1, data.test.targets + 3))
    compared = compare_populations(_Constant(1), later)
    assert [test.p_value < 0.001 for test in compared.tests] == [True, True, True]
    assert "the median of the values to predict is" in compared.summary


def test_of_a_series_the_values_beyond_its_range_are_counted():
    steps = np.arange(300, dtype=np.float32)
    targets = steps[:, None]
    inputs = np.stack([steps - 2, steps - 1], axis=1)[..., None]
    parts = [Split(inputs[a:b], targets[a:b]) for a, b in ((0, 200), (200, 250), (250, 300))]
    described = Input("series", ("batch", "time", "channel"), "the last two", "unit", window=2)
    series = Dataset("series", "counted", *parts, described, values=(Value("next", "unit"),))
    compared = compare_populations(_Constant(1), series)
    assert not compared.tests
    assert not compared.differ
    assert compared.summary == (
        "100 % of the test values are outside the range of the training values."
    )


def test_inputs_are_summarised_by_their_kind():
    photographs = np.arange(2 * 3 * 100 * 80, dtype=np.float32).reshape(2, 3, 100, 80)
    described = Input("photo", ("batch", "colour", "height", "width"), "photographs", "level")
    part = Split(photographs, np.array([0, 1]))
    data = Dataset("photos", "drawn", part, part, part, described, labels=("a", "b"))
    summary = summarise_inputs(data, part)
    assert summary.shape == (2, 3 * 14 * 11)  # blocks of 7 x 7 pixels
    assert summary[0, 0] == photographs[0, 0, :7, :7].mean()

    texts = np.array([[0, 1, 1, 0], [2, 0, 0, 0]])
    part = Split(texts, np.array([0, 1]), np.array([3, 1], np.int32))
    described = Input("text", ("batch", "time"), "words", "character", categories=("a", "b"))
    data = Dataset("texts", "typed", part, part, part, described, labels=("x", "y"))
    assert summarise_inputs(data, part).tolist() == [[3, 1, 2, 0], [1, 0, 0, 1]]


def test_the_errors_of_all_values_are_compared_whatever_their_units():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(900, 3)).astype(np.float32)
    targets = (random.normal(size=(900, 2)) * [1, 1000]).astype(np.float32)
    data = replace(
        _divided(inputs, targets, ("batch", "column"), seed=0),
        values=(Value("small", "m"), Value("large", "mm")),
    )
    assert not compare_populations(_Constant(2), data).differ
    others = data.test.targets * np.array([6, 1], np.float32)
    compared = compare_populations(
        _Constant(2), replace(data, test=Split(data.test.inputs, others))
    )
    assert compared.tests[2].p_value < 0.001
    assert "standard deviations on validation rows" in compared.tests[2].finding
