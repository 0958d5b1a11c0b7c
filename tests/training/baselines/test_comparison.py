"""Who wins is said in words, and whether chance explains it."""

from dataclasses import replace

import numpy as np
import pytest
from support.datasets import make_dataset

from neurona_training.baselines.comparison import compare, p_value
from neurona_training.baselines.estimators import fit_baselines
from neurona_training.data import Value
from neurona_training.data.catalogue import load
from neurona_training.learning.evaluation import measure_predictions


@pytest.fixture(scope="module")
def tumours():
    data = load("breast-cancer")
    return data, fit_baselines(data)


def one_hot(classes, count):
    return np.eye(count)[classes]


def test_a_network_that_loses(tumours):
    data, baselines = tumours
    wrong = data.test.targets.copy()
    wrong[:40] = 1 - wrong[:40]
    said = compare(one_hot(wrong, 2), data, baselines)
    assert said.loses
    assert said.beyond_chance
    assert said.best.test_metrics["accuracy"] == max(
        one.test_metrics["accuracy"] for one in baselines
    )
    assert f"{said.best.title} is better than the network".casefold() in said.sentence.casefold()
    assert "against 64.91 % on 114 test rows" in said.sentence
    assert f"--export-baseline {said.best.name}" in said.sentence


def test_a_network_that_wins_by_a_row_or_two_may_owe_it_to_chance(tumours):
    data, baselines = tumours
    said = compare(one_hot(data.test.targets, 2), data, baselines)
    assert not said.loses
    assert not said.beyond_chance
    assert said.sentence.startswith("The network is better than every baseline: accuracy 100.00 %")
    assert "may be chance" in said.sentence


def test_equals(tumours):
    data, baselines = tumours
    best = compare(np.zeros((len(data.test), 2)), data, baselines).best
    assert "equally good" in compare(best.predictions, data, baselines).sentence


def test_a_series_by_its_values():
    data = load("sunspots")
    baselines = fit_baselines(data)
    said = compare(data.test.targets, data, baselines)
    assert not said.loses
    assert said.beyond_chance
    assert "RMSE 0 sunspots on 57 test rows" in said.sentence
    worse = compare(data.test.targets * 0, data, baselines)
    assert worse.loses
    assert worse.beyond_chance


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_values_of_unlike_units_count_the_same(factor):
    """A network that is right about the first value and has learned nothing of the second."""
    random = np.random.default_rng(4)
    inputs = random.normal(size=(300, 2)).astype(np.float32)
    targets = (np.sin(2 * inputs) * [factor, 1.0]).astype(np.float32)
    values = (Value("size", "m"), Value("price", "EUR"))
    data = make_dataset(inputs, targets, ("batch", "column"), values=values)
    predictions = data.test.targets * np.float32([1, 0])
    said = compare(predictions, data, fit_baselines(data))
    assert said.best.name == "nearest_neighbours"
    assert said.loses
    found = measure_predictions(predictions, data)["test_rmse"]
    assert found == pytest.approx(0.707, abs=0.05)  # one of two is off by a standard deviation
    assert f"against {found:.4g} standard deviations on 60 test rows" in said.sentence
    assert data.error_unit == "standard deviations"


def test_four_rows_more_may_be_chance(tumours):
    """McNemar's exact test of 4 against 0 has p = 0.125; a normal approximation has 0.04."""
    data, baselines = tumours
    best = compare(one_hot(data.test.targets, 2), data, baselines).best
    predicted = best.predictions.argmax(axis=1)
    right = np.flatnonzero(predicted == data.test.targets)
    predicted[right[:4]] = 1 - predicted[right[:4]]
    said = compare(one_hot(predicted, 2), data, [best])
    assert said.loses
    assert not said.beyond_chance
    assert "; a difference that may be chance." in said.sentence


def test_the_best_of_several_baselines_was_drawn_several_times(tumours):
    data, baselines = tumours
    best = compare(one_hot(data.test.targets, 2), data, baselines).best
    predicted = best.predictions.argmax(axis=1)
    right = np.flatnonzero(predicted == data.test.targets)
    predicted[right[:6]] = 1 - predicted[right[:6]]  # p = 0.031
    said = compare(one_hot(predicted, 2), data, [best])
    assert said.loses
    assert said.beyond_chance
    assert not compare(one_hot(predicted, 2), data, [best] * 3).beyond_chance


def errors_of_patients(data, patients):
    """20 rows of each patient with the same error; two thirds of the patients have one."""
    random = np.random.default_rng(2)
    of_patient = np.where(np.arange(patients) % 3 < 2, 1.0, -1.0)
    groups = np.repeat(np.arange(patients), 20)
    test = replace(
        data.test,
        inputs=random.normal(size=(len(groups), data.test.inputs.shape[1])).astype(np.float32),
        targets=np.zeros(len(groups), np.int64),
    )
    return of_patient[groups], replace(data, test=test), groups


@pytest.mark.parametrize("in_time_order", [False, True])
def test_rows_of_a_group_are_no_further_evidence(tumours, in_time_order):
    differences, data, groups = errors_of_patients(tumours[0], 9)
    assert p_value(differences, data) < 1e-4
    grouped = replace(data, test=replace(data.test, groups=groups), in_time_order=in_time_order)
    assert p_value(differences, grouped) > 0.1


def test_rows_of_a_table_in_time_order_have_similar_errors(tumours):
    data, _ = tumours
    random = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        walk = np.convolve(random.normal(size=len(data.test) + 5), np.ones(6), "valid")
        rejected += p_value(walk, replace(data, in_time_order=True)) < 0.05
    assert rejected < 40  # as if they were independent: 99


def test_differences_that_are_all_equal_are_judged_by_their_sign(tumours):
    data = replace(tumours[0], in_time_order=True)
    assert p_value(np.full(4, 0.5), data) == 0.125
    assert p_value(np.full(10, 0.5), data) < 0.01
    assert p_value(np.zeros(10), data) == 1
