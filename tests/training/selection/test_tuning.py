"""Settings found by Optuna: never worse than the recipe's, the same after a kill."""

import dataclasses
import subprocess
import sys

import numpy as np
import optuna
import pytest

from neurona_training.data.catalogue import load
from neurona_training.errors import FitError, OptionError
from neurona_training.recipes import RECIPES
from neurona_training.selection.page import tuning_page
from neurona_training.selection.search_space import search_space
from neurona_training.selection.tuning import tune

TRIALS = 8
MLP = RECIPES["mlp"]


@pytest.fixture(scope="module")
def iris():
    return load("iris")


@pytest.fixture(scope="module")
def settings(iris):
    """Bad ones, so that there is something to find."""
    return MLP.settings(iris, "iris").with_changes({"epochs": 8, "learning_rate": 1e-3})


def run(data, settings, path, **options):
    return tune(MLP, data, settings, **{"trials": TRIALS, "seed": 3, "path": path, **options})


@pytest.fixture(scope="module")
def complete(iris, settings, tmp_path_factory):
    return run(iris, settings, tmp_path_factory.mktemp("tuning") / "tuning.db")


def test_the_first_trial_has_the_settings_as_they_are_and_the_best_is_better(
    iris, settings, complete
):
    from neurona_training.learning.run import Run

    first = complete.trials[0]
    assert first.loss == MLP.fit(iris, settings, Run("alone", 3)).validation_loss
    assert len(complete.trials) == TRIALS
    assert complete.best.loss < first.loss / 2
    changed = settings.with_changes(complete.changes)
    assert complete.best.loss == MLP.fit(iris, changed, Run("again", 3)).validation_loss


def test_trials_that_are_worse_than_the_median_are_stopped(complete):
    stopped = [trial for trial in complete.trials if trial.loss is None]
    assert stopped
    assert all(trial.epochs < 8 for trial in stopped)


def test_the_test_rows_have_no_part_in_it(iris, settings, complete, tmp_path):
    test = dataclasses.replace(iris.test, inputs=np.full_like(iris.test.inputs, 1e6))
    other = dataclasses.replace(iris, test=test)
    assert run(other, settings, tmp_path / "tuning.db") == complete


def test_a_killed_tuning_finds_the_same_settings(complete, tmp_path):
    """Killed for good in the middle of a trial, in a process of its own."""
    path = tmp_path / "a folder?" / "tuning.db"
    code = f"""if True:
        import os
        from pathlib import Path
        from neurona_training.recipes import RECIPES
        from neurona_training.selection import tuning
        recipe = RECIPES["mlp"]
        data = recipe.load("iris")
        changes = {{"epochs": 8, "learning_rate": 1e-3}}
        settings = recipe.settings(data, "iris").with_changes(changes)
        fit, calls = type(recipe).fit, []
        def die(*arguments):
            calls.append(1)
            return fit(*arguments) if len(calls) < 4 else os._exit(9)
        type(recipe).fit = die
        tuning.tune(recipe, data, settings, trials=8, seed=3, path=Path({str(path)!r}))
    """
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == 9, killed.stderr
    iris = load("iris")
    settings = MLP.settings(iris, "iris").with_changes({"epochs": 8, "learning_rate": 1e-3})
    lines = []
    assert run(iris, settings, path, resume=True, report=lines.append) == complete
    assert len(lines) == TRIALS - 3


def test_a_file_of_another_tuning_is_refused_or_replaced(iris, settings, tmp_path):
    path = tmp_path / "tuning.db"
    run(iris, settings, path, trials=1)
    other = settings.with_changes({"epochs": 2})
    with pytest.raises(FitError, match=r"tuning\.db has a tuning of another training: .*epochs=8"):
        run(iris, other, path, trials=1, resume=True)
    assert len(run(iris, other, path, trials=1).trials) == 1


def test_the_journal_of_a_killed_process_does_not_undo_a_new_study(iris, settings, tmp_path):
    path = tmp_path / "tuning.db"
    journal = tmp_path / "tuning.db-journal"
    journal.write_bytes(b"pages of a file that is no more")
    assert len(run(iris, settings, path, trials=1).trials) == 1
    assert not journal.exists()


def test_folds_judge_a_trial_by_their_mean(iris, settings, tmp_path):
    tuning = run(iris, settings, tmp_path / "tuning.db", trials=2, folds=3)
    (first, *_) = tuning.trials
    study = optuna.load_study(study_name="tuning", storage=f"sqlite:///{tmp_path / 'tuning.db'}")
    values = study.trials[0].intermediate_values
    assert list(values) == [1, 2, 3]
    assert values[3] == first.loss


def test_what_the_user_chose_is_not_tried(iris, settings):
    space = search_space(MLP, settings, iris, {"units": (5,)})
    assert set(space) == {"learning_rate", "weight_decay", "layers", "dropout"}
    digits = load("digits")
    assert set(search_space(RECIPES["lenet5"], settings, digits, {})) >= {
        *("batch_rows", "pixels", "degrees"),
    }


def test_a_rule_without_settings_has_nothing_to_tune(tmp_path):
    recipe = RECIPES["mcculloch-pitts"]
    data = load("and")
    with pytest.raises(OptionError, match="recipe 'mcculloch-pitts' has nothing to tune"):
        tune(
            recipe,
            data,
            recipe.settings(data, "and"),
            trials=1,
            seed=0,
            path=tmp_path / "tuning.db",
        )


def test_the_page_shows_each_trial_and_the_settings(complete):
    page = tuning_page("Tuning of mlp", complete, ["A note."])
    assert f"Best: trial {complete.best.number} of {TRIALS}" in page
    assert "learning rate" in page
    assert "stopped at" in page
    assert "A note." in page
