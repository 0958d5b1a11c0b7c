"""Who wins is said in words, and whether chance explains it."""

import numpy as np
import pytest

from neurona_training.baselines.comparison import compare
from neurona_training.baselines.estimators import fit_baselines
from neurona_training.data.catalogue import load


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
