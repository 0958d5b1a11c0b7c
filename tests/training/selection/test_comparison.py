"""Recipes compared: ranked by validation rows alone, resumable, honest about chance."""

import dataclasses

import numpy as np
import pytest

from neurona_training.data.catalogue import load
from neurona_training.errors import DataError, FitError
from neurona_training.recipes import RECIPES
from neurona_training.selection.comparison import (
    Candidate,
    Plan,
    RecipeComparison,
    Standing,
    compare,
)
from neurona_training.selection.page import comparison_page, comparison_table
from neurona_training.selection.records import RecordFile

PLAN = Plan(seeds=(0, 1), folds=2)


def candidate(recipe, data, **changes):
    settings = RECIPES[recipe].settings(data, data.name)
    return Candidate(RECIPES[recipe], settings.with_changes(changes))


@pytest.fixture(scope="module")
def iris():
    return load("iris")


@pytest.fixture(scope="module")
def candidates(iris):
    """One that learns, and one that hardly does."""
    return [
        candidate("mlp", iris, epochs=1, learning_rate=1e-6),
        candidate("feedforward", iris, epochs=12),
    ]


def names(comparison):
    return [standing.name for standing in comparison.standings if standing.is_network]


def metrics(comparison):
    return {standing.name: standing.metrics for standing in comparison.standings}


@pytest.fixture(scope="module")
def complete(iris, candidates, tmp_path_factory):
    path = tmp_path_factory.mktemp("complete") / "comparison.json"
    return compare(candidates, iris, PLAN, RecordFile(path))


def test_the_better_one_on_validation_is_first(complete):
    assert names(complete) == ["feedforward", "mlp"]
    best = complete.standings[0]
    assert len(best.metrics) == 4
    assert set(best.metrics[0]) == {"accuracy", "balanced_accuracy", "auc", "nll"}
    assert best.summary("accuracy").mean > 0.85


def test_the_test_rows_have_no_part_in_it(iris, candidates, complete, tmp_path):
    test = dataclasses.replace(
        iris.test,
        inputs=np.full_like(iris.test.inputs, 1e6),
        targets=np.zeros_like(iris.test.targets),
    )
    other = dataclasses.replace(iris, test=test)
    comparison = compare(candidates, other, PLAN, RecordFile(tmp_path / "comparison.json"))
    assert metrics(comparison) == metrics(complete)


def test_a_comparison_that_was_stopped_goes_on_where_it_was(iris, candidates, complete, tmp_path):
    path = tmp_path / "comparison.json"
    lines = []

    def stop_after_three(line):
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(
            candidates,
            iris,
            PLAN,
            RecordFile(path),
            checkpoints=tmp_path,
            report=stop_after_three,
        )
    comparison = compare(candidates, iris, PLAN, RecordFile(path), report=lines.append)
    assert metrics(comparison) == metrics(complete)
    assert lines[3:6] == lines[:3]  # those that were read are reported too
    assert list(tmp_path.iterdir()) == [path]  # no checkpoint is left


def test_other_settings_are_trained_anew(iris, tmp_path):
    path, plan = tmp_path / "comparison.json", Plan()
    small = [candidate("mlp", iris, epochs=1)]
    first = compare(small, iris, plan, RecordFile(path))
    other = compare([candidate("mlp", iris, epochs=2)], iris, plan, RecordFile(path))
    assert metrics(first) != metrics(other)


def test_a_regression_is_ranked_by_its_smallest_error(tmp_path):
    data = load("diabetes")
    poor = candidate("mlp", data, epochs=1, learning_rate=1e-6)
    good = candidate("adaline", data, epochs=20)
    comparison = compare([poor, good], data, Plan(), RecordFile(tmp_path / "comparison.json"))
    assert names(comparison) == ["adaline", "mlp"]
    assert comparison.verdict().startswith("best on validation: ")
    assert "RMSE" in comparison.verdict()


def test_a_candidate_that_fails_is_named_and_the_others_are_ranked(iris, tmp_path):
    def fail(*_):
        raise FitError("validation loss is nan after 3 epochs")

    good = candidate("mlp", iris, epochs=1)
    bad = Candidate(dataclasses.replace(RECIPES["mlp"], name="bad", learner=fail), good.settings)
    comparison = compare([bad, good], iris, Plan(), RecordFile(tmp_path / "comparison.json"))
    assert names(comparison)[-1] == "bad"
    assert comparison.standings[-1].failure == "validation loss is nan after 3 epochs"
    with pytest.raises(FitError, match="bad: validation loss is nan"):
        compare([bad], iris, Plan(), RecordFile(tmp_path / "other.json"))


def test_a_metric_that_is_undefined_is_an_error(iris, tmp_path):
    keep = iris.validation.targets > 0
    split = dataclasses.replace(
        iris.validation,
        inputs=iris.validation.inputs[keep],
        targets=iris.validation.targets[keep],
    )
    data = dataclasses.replace(iris, validation=split)
    with pytest.raises(DataError, match="auc is undefined"):
        compare(
            [candidate("mlp", iris, epochs=1)],
            data,
            Plan(metric="auc"),
            RecordFile(tmp_path / "comparison.json"),
        )


def standing(name, *accuracies):
    return Standing(name, name, True, tuple({"accuracy": one} for one in accuracies))


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ([("a", 0.9, 0.92), ("b", 0.5, 0.52)], "best on validation: a, accuracy 91.00 ± 1.41 %"),
        (
            [("a", 0.9, 0.92), ("b", 0.895, 0.905), ("c", 0.1, 0.1)],
            "best on validation: a, accuracy 91.00 ± 1.41 %; within one standard deviation of it: "
            "b (the difference may be chance)",
        ),
        (
            [("a", 0.9), ("b", 0.8)],
            "best on validation: a, accuracy 90.00 %; one training each, which cannot tell a "
            "difference from chance (--seeds 5)",
        ),
        ([("a", 0.9), ("b", 0.8, 0.82)], "best on validation: a, accuracy 90.00 %"),
    ],
)
def test_the_verdict_says_what_may_be_chance(standings, expected):
    ranked = tuple(standing(*one) for one in standings)
    assert RecipeComparison("iris", "accuracy", "", ranked, Plan()).verdict() == expected


def test_the_page_has_the_verdict_in_its_own_letters_and_long_times_in_full():
    values = ({"rmse": 0.5}, {"rmse": 0.7})
    ranked = (dataclasses.replace(standing("LSTM"), metrics=values, seconds=4321.5),)
    comparison = RecipeComparison("prices", "rmse", "EUR", ranked, Plan(seeds=(0, 1)))
    assert "Best on validation: LSTM, RMSE 0.6 ± 0.1 EUR." in comparison_page(comparison, [])
    assert comparison_table(comparison) == [
        ["", "candidate", "validation RMSE", "parameters", "time"],
        ["1", "LSTM", "0.6 ± 0.1 EUR", "", "4,322 s"],
    ]
