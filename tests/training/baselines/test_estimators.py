"""Baselines of every kind of data: which there are, what they reach, and that they are bounded."""

import time
from dataclasses import replace

import numpy as np
import pytest
from support.datasets import make_dataset, make_windows

from neurona_training.baselines.estimators import choose_best, fit_baselines
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.catalogue import load

RANDOM = np.random.default_rng(5)


def errors(data, seed=0):
    return {
        one.name: one.test_metrics.get("rmse", one.test_metrics.get("accuracy"))
        for one in fit_baselines(data, seed)
    }


def test_a_table_of_values():
    inputs = RANDOM.normal(size=(1500, 4)).astype(np.float32) * [1, 1000, 1, 0] + [0, 5000, 0, 7]
    targets = (inputs[:, [1]] + 900 * np.sign(inputs[:, [0]] * inputs[:, [2]])).astype(np.float32)
    data = make_dataset(
        inputs.astype(np.float32), targets, ("batch", "c"), values=(Value("y", "EUR"),)
    )
    found = errors(data)
    assert list(found) == ["linear", "gradient_boosting", "nearest_neighbours", "mean"]
    assert found["gradient_boosting"] < found["nearest_neighbours"] < found["linear"]
    assert found["linear"] == pytest.approx(900, rel=0.1)
    assert found["mean"] == pytest.approx(1345, rel=0.1)


def test_targets_of_different_sizes_each_count():
    inputs = RANDOM.normal(size=(400, 2)).astype(np.float32)
    targets = np.stack([1000 * inputs[:, 0], abs(inputs[:, 1])], axis=1)
    data = make_dataset(inputs, targets, ("batch", "c"), values=(Value("a", "m"), Value("b", "km")))
    boosting = fit_baselines(data)[1]
    scaled = (boosting.predictions - data.test.targets) / data.test.targets.std(axis=0)
    assert (np.sqrt(np.square(scaled).mean(axis=0)) < 0.35).all()


def test_images_and_what_is_constant_in_them():
    data = load("digits")
    found = errors(data)
    assert list(found) == ["linear", "nearest_neighbours", "support_vectors", "majority"]
    assert found["support_vectors"] > 0.98
    assert found["nearest_neighbours"] > 0.98
    assert found["linear"] > 0.94
    assert found["majority"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("rows", [5, 6, 7])
def test_images_of_a_rare_class_have_baselines(rows):
    """Calibration in folds, inside of folds, needs rows of each class in all of them."""
    targets = np.r_[np.zeros(40), np.ones(rows)].astype(np.int64)
    images = RANDOM.normal(size=(len(targets), 6, 6)).astype(np.float32)
    images[targets == 1, :3] += 3
    part = Split(images, targets)
    described = Input("image", ("batch", "height", "width"), "noise", "grey level")
    data = Dataset("rare", "numpy", part, part, part, input=described, labels=("no", "yes"))
    found = errors(data)
    assert ("support_vectors" in found) == (rows == 7)
    assert found["linear"] > 0.95


def test_sequences_of_different_lengths_are_told_apart_by_their_shape_not_their_padding():
    lengths = RANDOM.integers(5, 40, 300).astype(np.int32)
    kinds = np.arange(300) % 3
    inputs = np.full((300, 40, 2), 1e6, np.float32)  # what pads a sequence may be anything
    for row, (length, kind) in enumerate(zip(lengths, kinds, strict=True)):
        phase = np.linspace(0, 1, length)
        inputs[row, :length, 0] = (phase, 1 - phase, np.sin(np.pi * phase))[kind]
        inputs[row, :length, 1] = RANDOM.normal(size=length)
    data = make_dataset(
        inputs, kinds, ("batch", "time", "c"), lengths=lengths, labels=("up", "down", "arch")
    )
    found = errors(data)
    assert found["linear"] > 0.95
    padded_otherwise = np.where(inputs == 1e6, -3, inputs)
    again = make_dataset(
        padded_otherwise, kinds, ("batch", "time", "c"), lengths=lengths, labels=data.labels
    )
    assert errors(again) == found


def test_sequences_whose_phase_is_random_are_told_apart_by_their_statistics():
    """Motions of different strength: no single step says which it is."""
    kinds = np.arange(120) % 3
    inputs = RANDOM.normal(size=(120, 100, 6)) * (1 + kinds)[:, None, None]
    data = make_dataset(
        inputs.astype(np.float32), kinds, ("batch", "time", "c"), labels=("rest", "walk", "run")
    )
    linear, neighbours, _ = fit_baselines(data)
    assert linear.test_metrics["accuracy"] == 1
    assert neighbours.test_metrics["accuracy"] == 1
    assert neighbours.title == "nearest neighbours on statistics of all steps"


def test_texts_are_told_apart_by_their_characters():
    codes = RANDOM.integers(0, 5, (300, 6))
    targets = (codes[:, -1] == 2).astype(np.int64)  # the last character
    lengths = np.full(300, 6, np.int32)
    data = make_dataset(codes, targets, ("batch", "time"), lengths=lengths, labels=("no", "yes"))
    data = replace(data, input=replace(data.input, categories=tuple("abcde")))
    assert errors(data)["linear"] == 1


def test_texts_are_told_apart_by_the_order_of_their_characters():
    """Words of the same characters: no count of single ones says which it is."""
    codes = np.stack([RANDOM.permutation([0, 1, 2, 3, 4, 5]) for _ in range(600)])
    targets = (np.argmax(codes == 0, axis=1) + 1 == np.argmax(codes == 1, axis=1)).astype(np.int64)
    lengths = np.full(600, 6, np.int32)
    data = make_dataset(codes, targets, ("batch", "time"), lengths=lengths, labels=("no", "yes"))
    data = replace(data, input=replace(data.input, categories=tuple("abcdef")))
    linear = next(iter(fit_baselines(data)))
    assert linear.test_metrics["accuracy"] >= 0.98
    assert linear.title == "logistic regression on n-grams of characters"


def test_a_series_with_a_trend_and_a_season():
    months = np.arange(300)
    series = 100 + 2 * months + 30 * np.sin(months * np.pi / 6) + RANDOM.normal(size=300)
    found = errors(make_windows(series, 18))
    assert list(found) == [
        *("linear", "gradient_boosting", "seasonal_persistence", "persistence", "mean")
    ]
    assert found["linear"] < 3
    assert found["gradient_boosting"] < 6  # although the test values are beyond all others
    assert found["seasonal_persistence"] == pytest.approx(24, abs=1)  # twelve months of trend
    assert found["mean"] > 200


def test_an_autoregression_finds_an_autoregression():
    """x[t] = 0.5 x[t-1] + 0.3 x[t-2] + 1, and noise of variance 1."""
    noise = np.random.default_rng(0).normal(size=2000)
    series = np.zeros(2000)
    for t in range(2, 2000):
        series[t] = 0.5 * series[t - 1] + 0.3 * series[t - 2] + 1 + noise[t]
    data = make_windows(series, 8)
    assert errors(data)["linear"] == pytest.approx(1, rel=0.06)
    *_, persistence, _ = fit_baselines(data)
    np.testing.assert_array_equal(persistence.predictions, data.test.inputs[:, -1])


def test_a_linear_function_is_found_whatever_its_unit():
    inputs = RANDOM.normal(3e4, 2e4, (200, 2)).astype(np.float32)
    targets = inputs @ np.array([[2e3], [-1e3]], np.float32) + 5e7
    data = make_dataset(inputs, targets, ("batch", "c"), values=(Value("y", "EUR"),))
    np.testing.assert_allclose(fit_baselines(data)[0].predictions, data.test.targets, rtol=1e-3)


def test_the_season_of_several_steps_ahead():
    series = np.tile([1, 5, 2, 9], 30) + RANDOM.normal(size=120) * 0.01
    data = make_windows(series, 6, horizon=7)
    (seasonal,) = [one for one in fit_baselines(data) if one.name == "seasonal_persistence"]
    assert seasonal.title == "the value 4 steps before"
    assert seasonal.test_metrics["rmse"] < 0.05


def test_a_window_that_is_shorter_than_the_season_has_no_seasonal_baseline():
    months = np.arange(200)
    series = np.sin(months * np.pi / 6) + 0.1 * RANDOM.normal(size=200)
    assert "seasonal_persistence" not in errors(make_windows(series, 5))


@pytest.mark.parametrize("name", ["xor", "majority", "iris"])
def test_few_rows_are_enough(name):
    assert {"linear", "gradient_boosting", "nearest_neighbours", "majority"} == set(
        errors(load(name))
    )


def test_a_class_without_a_training_row_has_the_probability_0():
    inputs = RANDOM.normal(size=(100, 3)).astype(np.float32)
    targets = np.array([0, 2, *([0, 2] * 29), *([0, 1, 2, 2] * 10)])
    data = make_dataset(inputs, targets, ("batch", "c"), labels=("a", "b", "c"))
    for baseline in fit_baselines(data):
        assert baseline.predictions.shape == (20, 3)
        np.testing.assert_array_equal(baseline.predictions[:, 1], 0)
        np.testing.assert_allclose(baseline.predictions.sum(axis=1), 1)


@pytest.mark.slow
def test_a_large_table_is_learned_from_a_sample_and_the_note_says_so():
    inputs = RANDOM.normal(size=(150_000, 4)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int64)
    data = make_dataset(inputs, targets, ("batch", "c"), labels=("no", "yes"))
    started = time.process_time()
    notes = {one.name: one.note for one in fit_baselines(data)}
    assert time.process_time() - started < 60
    assert "50,000 of the 90,000 training rows" in notes["linear"]
    assert "50,000 of the 90,000 training rows" in notes["gradient_boosting"]


def test_the_same_seed_gives_the_same_baselines():
    data = load("breast-cancer")
    for first, second in zip(fit_baselines(data, 3), fit_baselines(data, 3), strict=True):
        np.testing.assert_array_equal(first.predictions, second.predictions)


def test_the_best_is_chosen_by_the_validation_rows():
    baselines = fit_baselines(load("diabetes"))
    best = min(baselines, key=lambda one: one.validation_metrics["rmse"])
    assert choose_best(baselines) is best


@pytest.mark.parametrize("divided", ["by group", "by time"])
def test_settings_are_chosen_as_the_test_will_ask(divided):
    """Five rows of each patient, or of each week, are nearly the same and have the same outcome.

    One neighbour knows the outcome of a row whose patient it has seen, and only of such a row.
    """
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(200), 5)
    signal = random.normal(size=(200, 1))
    outcome = signal + 3 * random.normal(size=(200, 1))
    inputs = signal[groups] + 1e-3 * random.normal(size=(1000, 1))
    data = make_dataset(
        inputs.astype(np.float32),
        outcome[groups].astype(np.float32),
        ("batch", "c"),
        values=(Value("y", "EUR"),),
    )
    if divided == "by time":
        data = replace(data, in_time_order=True)
    else:
        data = replace(data, train=replace(data.train, groups=groups[:600]))
    neighbours = next(one for one in fit_baselines(data) if one.name == "nearest_neighbours")
    assert neighbours.note == "20 neighbours"


def test_a_class_in_one_group_alone_is_no_obstacle():
    groups = np.arange(100) // 10
    targets = (groups == 2).astype(np.int64)
    inputs = RANDOM.normal(size=(100, 2)).astype(np.float32)
    data = make_dataset(inputs, targets, ("batch", "c"), labels=("a", "b"))
    data = replace(data, train=replace(data.train, groups=groups[:60]))
    assert errors(data)["majority"] == 1
