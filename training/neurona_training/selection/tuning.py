"""Settings found by Optuna: each trial is a training, judged by its validation loss.

The first trial has the recipe's own settings, so that the result is never worse than they are on
the validation rows. Later ones are drawn by the tree-structured Parzen estimator (J. Bergstra and
others, Algorithms for hyper-parameter optimization, 2011); a trial whose loss is above the median
of the earlier ones at the same epoch is stopped.

The study is an SQLite file, which Optuna's own tools read too. A tuning that was killed and
continues leads to the same settings as one that was not: the draw of a trial depends on the seed
and the finished trials alone, and a trial that was interrupted begins anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from neurona_training.data import Dataset
from neurona_training.data.digest import data_digest
from neurona_training.errors import FitError, OutputError
from neurona_training.learning.initial_weights import describe_weights
from neurona_training.learning.run import Epoch, InitialWeights, Run
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Changes, Settings
from neurona_training.selection.comparison import validation_parts
from neurona_training.selection.search_space import (
    Range,
    as_changes,
    initial_values,
    search_space,
)

if TYPE_CHECKING:
    import optuna

_FINGERPRINT = "fingerprint"  # attribute of a study: what is tuned
_TRIALS_BEFORE_PRUNING = 5


@dataclass(frozen=True)
class TunedTrial:
    """One training of a tuning.

    Args:
        number: from 1, among the finished ones.
        values: the settings that were tried; of the first trial those that lie in the ranges.
        loss: of the best epoch on the validation rows; None if the trial was stopped early.
        epochs: that were trained.
    """

    number: int
    values: Mapping[str, int | float]
    loss: float | None
    epochs: int


@dataclass(frozen=True)
class Tuning:
    """The finished trials and the best settings.

    Args:
        trials: in order.
        best: the trial with the smallest loss.
        changes: its settings, to be applied to the recipe's.
        space: the ranges from which the settings were drawn.
    """

    trials: tuple[TunedTrial, ...]
    best: TunedTrial
    changes: Changes
    space: Mapping[str, Range]


def tune(
    recipe: Recipe,
    data: Dataset,
    settings: Settings,
    *,
    trials: int,
    seed: int,
    path: Path,
    fixed: Changes | None = None,
    initial_weights: InitialWeights | None = None,
    folds: int | None = None,
    resume: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Tuning:
    """Searches settings with a small loss on the validation rows; the test is not looked at.

    Args:
        recipe: whose network and learner.
        data: training and validation rows are used.
        settings: of the first trial, around which the others lie.
        trials: how many trainings in all, those of an earlier, interrupted tuning included.
        seed: of weights, order, and the draws of settings.
        path: of the study's file.
        fixed: settings of the user's choice, which are not tried.
        initial_weights: of each trial; None starts from random ones.
        folds: of a cross-validation, whose mean loss judges a trial; None takes the data set's
            own validation rows.
        resume: continue the study in the file.
        report: gets a line about each trial.

    Raises:
        OptionError: the recipe has nothing to tune.
        FitError: no trial has a finite loss, or the file has a study of another training.
        OutputError: Optuna is not installed, or the file cannot be written.
    """
    space = search_space(recipe, settings, data, fixed or {})
    parts = list(validation_parts(data, folds))
    what = f"{recipe.name}, {data_digest(data)}, {settings}, {space}, folds {folds}, seed {seed}"
    if initial_weights:
        what += f", {describe_weights(initial_weights)}"
    with _open_study(path, what, resume) as study:
        import optuna  # it is there: the study is open

        while (done := len(_finished(study))) < trials:
            study.sampler, study.pruner = _sampler(seed, done), _pruner(settings, len(parts))
            trial, values = _next_trial(study, space, recipe, settings, is_first=not done)
            title = f"{recipe.name}, trial {done + 1} of {trials}"
            try:
                changed = settings.with_changes(as_changes(values))
                run = Run(title, seed, initial_weights=initial_weights)
                loss = _validation_loss(recipe, parts, changed, run, trial)
            except (_StoppedTrial, FitError) as stop:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                report(f"{title}: {format_values(values)}: {stop}")
            else:
                study.tell(trial, loss)
                report(f"{title}: {format_values(values)}: validation loss {loss:.4g}")
        return _summarise(study, space)


def _next_trial(
    study: optuna.Study,
    space: Mapping[str, Range],
    recipe: Recipe,
    settings: Settings,
    *,
    is_first: bool,
) -> tuple[optuna.Trial, dict[str, int | float]]:
    """Returns a trial and its values; the first one has the settings as they are.

    Of these, what lies outside the ranges has no value.
    """
    if not is_first:
        trial = study.ask()
        return trial, {name: values.suggest(name, trial) for name, values in space.items()}
    values = initial_values(space, recipe, settings)
    study.enqueue_trial(values)
    trial = study.ask()
    return trial, {name: space[name].suggest(name, trial) for name in values}


class _StoppedTrial(Exception):  # noqa: N818 a stopped trial is no error
    """The trial is worse than the median of the earlier ones."""


def _validation_loss(
    recipe: Recipe,
    parts: Sequence[Dataset],
    settings: Settings,
    run: Run,
    trial: optuna.Trial,
) -> float:
    """Trains on each part; returns the mean of their smallest losses.

    Raises:
        _StoppedTrial: the pruner wants no more of it: after an epoch, or with folds after a fold.
    """
    torch.set_num_threads(settings.hyperparameters.threads)
    losses: list[float] = []

    def stop_or_continue(step: int, value: float) -> None:
        trial.report(value, step)
        if trial.should_prune():
            raise _StoppedTrial("stopped, above the median")

    def after_epoch(epoch: Epoch) -> None:
        if len(parts) == 1:
            stop_or_continue(epoch.number, epoch.validation_loss)

    for fold, part in enumerate(parts, start=1):
        title = f"{run.name}, fold {fold}" if len(parts) > 1 else run.name
        this_run = dataclasses.replace(run, name=title, listeners=(after_epoch,))
        losses.append(recipe.fit(part, settings, this_run).validation_loss)
        if len(parts) > 1:
            stop_or_continue(fold, float(np.mean(losses)))
    return float(np.mean(losses))


@contextlib.contextmanager
def _open_study(path: Path, fingerprint: str, resume: bool) -> Iterator[optuna.Study]:
    """Opens the study in the file, and closes the file afterwards."""
    try:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError
        from sqlalchemy.pool import NullPool
    except ModuleNotFoundError as error:
        raise OutputError(
            f"--tune needs the package {error.name} (expected: pip install 'neurona[tuning]')"
        ) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it says, `report` says too
    storage = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            path.unlink(missing_ok=True)
            # Of a process that was killed while it wrote: SQLite would undo the new file by it.
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        # Through a function, because a URL would read a part of the path as its query.
        storage = optuna.storages.RDBStorage(
            "sqlite://",
            engine_kwargs={
                "creator": lambda: sqlite3.connect(path, check_same_thread=False),
                "poolclass": NullPool,
            },
        )
        study = optuna.create_study(
            storage=storage, study_name="tuning", load_if_exists=True, direction="minimize"
        )
        earlier = study.user_attrs.get(_FINGERPRINT, fingerprint)
        if earlier != fingerprint:
            raise FitError(
                f"{path} has a tuning of another training: {earlier} (expected {fingerprint})"
            )
        study.set_user_attr(_FINGERPRINT, fingerprint)
        for trial in study.get_trials(deepcopy=False):
            if not trial.state.is_finished():  # the process was killed in it
                storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        yield study
    except (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OutputError(f"cannot use the file of the tuning {path}: {reason}") from error
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _sampler(seed: int, done: int) -> optuna.samplers.BaseSampler:
    """A sampler for one trial: its draws do not depend on how often the tuning was continued."""
    import optuna

    (draw,) = np.random.SeedSequence((seed, done)).generate_state(1)
    return optuna.samplers.TPESampler(seed=int(draw))


def _pruner(settings: Settings, parts: int) -> optuna.pruners.BasePruner:
    """Compares trials after a quarter of the epochs, or after the first of several folds."""
    import optuna

    warm_up = settings.hyperparameters.epochs // 4 if parts == 1 else 1
    return optuna.pruners.MedianPruner(_TRIALS_BEFORE_PRUNING, warm_up)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    import optuna

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def _summarise(study: optuna.Study, space: Mapping[str, Range]) -> Tuning:
    import optuna

    trials = tuple(
        TunedTrial(
            number=number,
            values=dict(trial.params),
            loss=trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None,
            epochs=max(trial.intermediate_values, default=0),
        )
        for number, trial in enumerate(_finished(study), start=1)
    )
    complete = [trial for trial in trials if trial.loss is not None]
    if not complete:
        raise FitError(f"none of {len(trials)} trials has a finite validation loss")
    best = min(complete, key=lambda trial: trial.loss or 0.0)
    return Tuning(trials, best, as_changes(best.values), space)


def format_values(values: Mapping[str, int | float]) -> str:
    """Formats the settings of a trial: `learning rate 0.003, units 32`."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
