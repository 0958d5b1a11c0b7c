"""Fits the baselines of a data set: simple rules and scikit-learn's estimators.

| kind      | fitted                                                                        |
|-----------|-------------------------------------------------------------------------------|
| rows      | logistic or ridge regression, gradient boosting, nearest neighbours           |
| images    | logistic or ridge regression, nearest neighbours, support vectors (few rows)   |
| sequences | logistic or ridge regression, nearest neighbours; on resampled steps, n-grams  |
| series    | persistence, seasonal persistence, linear autoregression, gradient boosting   |

and the most frequent class or the mean for all of them. Time and memory are bounded: of large
data a sample of the training rows is used, and `Baseline.note` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from neurona_training.baselines.model import BaselineModel, LastSeason, constant
from neurona_training.baselines.problem import (
    FOLDS,
    MAX_NUMBERS,
    Choice,
    Problem,
    choose_estimator,
    make_problems,
    measure,
)
from neurona_training.baselines.seasons import find_season, training_series
from neurona_training.data import Dataset
from neurona_training.learning.evaluation import predict

_MAX_NEIGHBOUR_NUMBERS = 4_000_000  # nearest neighbours keep them: 16 MB of a file
_MAX_SUPPORT_ROWS = 3_000  # the time of a support vector machine grows with their square
_MAX_BOOSTED_VALUES = 48  # each has trees of its own
_MAX_TREES = 3_000  # over all classes or values
_MAX_ROUNDS = 500  # of boosting; the validation rows stop it earlier
_PATIENCE = 20  # rounds without a better validation loss


_NEIGHBOURS = (1, 3, 5, 10, 20)
_INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # of logistic regression
_RIDGE_PENALTIES = tuple(10.0**power for power in range(-3, 6))
_MAX_LOGISTIC_NUMBERS = 80_000_000  # times the classes, each of which has weights of its own
_SPARSE_COST = 8  # times the time of a number in columns that are not sparse
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Baseline:
    """What a network has to beat, and how good it is on the same rows.

    Args:
        name: one of `baselines.TITLES`, as in metrics: NAME_accuracy or NAME_rmse.
        title: one line for readers.
        note: how it was set up, and of how many rows it learned if not of all.
        model: takes the arrays of the data set's splits.
        predictions: for the test rows: probabilities (rows, classes), or values (rows, values).
        validation_metrics: accuracy or rmse, and nll of a classification.
        test_metrics: the same of the test rows.
    """

    name: str
    title: str
    note: str
    model: BaselineModel
    predictions: NDArray[np.float64]
    validation_metrics: dict[str, float]
    test_metrics: dict[str, float]

    @property
    def estimator(self) -> BaseEstimator | None:
        """Of scikit-learn; None of a rule without learning."""
        return self.model.estimator


def fit_baselines(data: Dataset, seed: int = 0) -> tuple[Baseline, ...]:
    """Fits and measures all baselines that suit the data.

    The same data and seed give the same baselines on a machine. One thread is used.

    Args:
        data: the view that a network is trained on, in which all inputs are numbers or codes.
        seed: of what is drawn: a sample of the rows of large data.

    Returns:
        The learned ones first; what has no learning last.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        # Estimators warn of iterations that were not enough, and of classes that a part lacks.
        warnings.simplefilter("ignore")
        problems = make_problems(data, seed)
        return tuple(
            _measure_baseline(name, _fit_best(fit, problems), data)
            for name, fit in _baselines(data).items()
        )


def baseline_names(data: Dataset) -> tuple[str, ...]:
    """The names of the baselines that `fit_baselines` fits, without fitting them."""
    return tuple(_baselines(data))


def baseline_figures(baselines: Sequence[Baseline]) -> dict[str, float]:
    """What a model's file says about its baselines: NAME_accuracy or NAME_rmse, on test rows."""
    return {
        f"{baseline.name}_{metric}": value
        for baseline in baselines
        for metric, value in baseline.test_metrics.items()
        if metric in ("accuracy", "rmse")
    }


def choose_best(baselines: Sequence[Baseline]) -> Baseline:
    """The best on the validation rows: the test rows are not for choosing."""

    def error(baseline: Baseline) -> tuple[float, float]:
        metrics = baseline.validation_metrics
        return metrics.get("rmse", -metrics.get("accuracy", 0)), metrics.get("nll", 0)

    return min(baselines, key=error)


def _measure_baseline(name: str, fitted: _Fitted, data: Dataset) -> Baseline:
    predictions = predict(fitted.model, data.test).numpy()
    validation = predict(fitted.model, data.validation).numpy()
    return Baseline(
        name=name,
        title=fitted.title,
        note=fitted.note,
        model=fitted.model,
        predictions=predictions,
        validation_metrics=measure(validation, data.validation.targets, data.error_scales),
        test_metrics=measure(predictions, data.test.targets, data.error_scales),
    )


@dataclass(frozen=True)
class _Fitted:
    """A baseline before it is measured.

    error: on rows from which it has not learned, if it is chosen from several.
    """

    title: str
    note: str
    model: BaselineModel
    error: tuple[float, float] = (0.0, 0.0)


def _baselines(data: Dataset) -> dict[str, Callable[[Problem], _Fitted]]:
    """What suits the data, by name, in the order of the report."""
    fits: dict[str, Callable[[Problem], _Fitted]] = {
        "linear": _logistic_regression if data.is_classification else _ridge
    }
    values = 1 if data.is_classification else len(data.values)
    if (data.kind == "rows" or data.is_series) and values <= _MAX_BOOSTED_VALUES:
        fits["gradient_boosting"] = _gradient_boosting
    if not data.is_series:
        fits["nearest_neighbours"] = _nearest_neighbours
    if _suits_support_vectors(data):
        fits["support_vectors"] = _support_vectors
    if data.is_series:
        if _season_in_window(data) is not None:
            fits["seasonal_persistence"] = _seasonal_persistence
        fits["persistence"] = _persistence
    fits["majority" if data.is_classification else "mean"] = _constant
    return fits


def _suits_support_vectors(data: Dataset) -> bool:
    """Few images, with a row of each class for each fold, also without the rows of another one."""
    if data.kind != "images" or not data.is_classification or len(data.train) > _MAX_SUPPORT_ROWS:
        return False
    fewest = int(np.unique(data.train.targets, return_counts=True)[1].min())
    return fewest - -(-fewest // FOLDS) >= FOLDS


def _fit_best(fit: Callable[[Problem], _Fitted], problems: Sequence[Problem]) -> _Fitted:
    """Fits a baseline on each kind of columns; returns the one with the smallest error."""
    if fit is _nearest_neighbours:  # their file has all numbers of the rows, also those that are 0
        problems = [problem for problem in problems if not problem.is_sparse]
    return min((fit(problem) for problem in problems), key=lambda fitted: fitted.error)


def _fitted(title: str, choice: Choice, note: str, problem: Problem) -> _Fitted:
    model = problem.model(choice.estimator)
    return _Fitted(title, _join_notes(choice.setting, note), model, choice.error)


def _logistic_regression(problem: Problem) -> _Fitted:
    cost = problem.classes * (_SPARSE_COST if problem.is_sparse else 1)
    rows, note = problem.sample(_MAX_LOGISTIC_NUMBERS // cost)
    candidates = [
        (
            LogisticRegression(C=inverse_penalty, max_iter=_MAX_ITERATIONS),
            f"C = {inverse_penalty:g}",
        )
        for inverse_penalty in _INVERSE_PENALTIES
    ]
    # Less and less penalty: what has become worse once does not become better.
    best = choose_estimator(candidates, rows, problem, by="nll", is_path=True)
    return _fitted(problem.title("logistic regression"), best, note, problem)


def _ridge(problem: Problem) -> _Fitted:
    rows, note = problem.sample(MAX_NUMBERS)
    candidates = [(Ridge(penalty), f"penalty {penalty:g}") for penalty in _RIDGE_PENALTIES]
    is_series = problem.data.is_series
    title = "linear autoregression" if is_series else problem.title("ridge regression")
    return _fitted(title, choose_estimator(candidates, rows, problem), note, problem)


def _nearest_neighbours(problem: Problem) -> _Fitted:
    rows, note = problem.sample(_MAX_NEIGHBOUR_NUMBERS)
    kind = KNeighborsClassifier if problem.classes else KNeighborsRegressor
    candidates = [
        (kind(count), f"{count} neighbour{'s' * (count > 1)}")
        for count in _NEIGHBOURS
        if count == 1 or count <= len(rows) // 2
    ]
    best = choose_estimator(candidates, rows, problem)
    return _fitted(problem.title("nearest neighbours"), best, note, problem)


def _gradient_boosting(problem: Problem) -> _Fitted:
    rows, note = problem.sample(MAX_NUMBERS)
    values = 1 if problem.classes else rows.targets.shape[1]
    trees_a_round = values if problem.classes <= 2 else problem.classes
    settings = {
        "max_iter": max(10, min(_MAX_ROUNDS, _MAX_TREES // trees_a_round)),
        "early_stopping": True,
        "n_iter_no_change": _PATIENCE,
        "random_state": problem.seed,
    }
    validation = problem.validation
    if problem.classes:
        has_class = np.isin(validation.targets, rows.targets)
        boosted = [
            HistGradientBoostingClassifier(**settings).fit(
                rows.columns,
                rows.targets,
                X_val=validation.columns[has_class],
                y_val=validation.targets[has_class],
            )
        ]
    else:
        boosted = [
            HistGradientBoostingRegressor(**settings).fit(
                rows.columns,
                rows.targets[:, value],
                X_val=validation.columns,
                y_val=validation.targets[:, value],
            )
            for value in range(values)
        ]
    for estimator in boosted:
        _round_thresholds(estimator)
    rounds = "/".join(str(estimator.n_iter_) for estimator in boosted[:3])
    setting = f"{rounds} rounds" if len(boosted) <= 3 else f"{rounds}/… rounds"
    estimator = boosted[0] if len(boosted) == 1 else _join_values(boosted)
    return _Fitted("gradient boosting", _join_notes(setting, note), problem.model(estimator))


def _round_thresholds(estimator: BaseEstimator) -> None:
    """Makes the thresholds of trees float32, which changes no decision about float32 columns.

    x <= threshold is then the same in a file whose thresholds are float32.
    """
    for round_ in estimator._predictors:
        for predictor in round_:
            thresholds = predictor.nodes["num_threshold"]
            rounded = thresholds.astype(np.float32)
            above = rounded > thresholds
            rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
            predictor.nodes["num_threshold"] = rounded


def _join_values(estimators: list[BaseEstimator]) -> BaseEstimator:
    """One estimator of several values, each predicted by one that was stopped by its own rows."""
    joined = MultiOutputRegressor(estimators[0])
    joined.estimators_ = estimators
    return joined


def _support_vectors(problem: Problem) -> _Fitted:
    rows, note = problem.sample(MAX_NUMBERS)
    # The classes are decided by votes; a sigmoid fitted in folds says how sure a vote is.
    fewest = int(np.unique(rows.targets, return_counts=True)[1].min())  # of the sample
    folds = max(2, min(FOLDS, fewest - -(-fewest // FOLDS)))
    candidates = [
        (CalibratedClassifierCV(SVC(C=penalty), cv=folds, ensemble=False), f"C = {penalty:g}")
        for penalty in (1.0, 10.0)
    ]
    best = choose_estimator(candidates, rows, problem)
    return _fitted(problem.title("support vector machine"), best, note, problem)


def _season_in_window(data: Dataset) -> int | None:
    """The season of a series, if its window has the values of a season before."""
    season = find_season(training_series(data))
    if season is None:
        return None
    steps = LastSeason(season, len(data.values)).steps
    return season if steps <= data.train.inputs.shape[1] else None


def _seasonal_persistence(problem: Problem) -> _Fitted:
    season = _season_in_window(problem.data)
    if season is None:
        raise ValueError("no season")
    model = BaselineModel(None, None, LastSeason(season, len(problem.data.values)))
    title, note = f"the value {season} steps before", f"a season of {season} steps"
    return _Fitted(title, note, model)


def _persistence(problem: Problem) -> _Fitted:
    model = BaselineModel(None, None, LastSeason(1, len(problem.data.values)))
    return _Fitted("the last value again", "", model)


def _constant(problem: Problem) -> _Fitted:
    title = "always the most frequent class" if problem.classes else "always the mean"
    return _Fitted(title, "", BaselineModel(None, None, constant(problem.data), problem.classes))


def _join_notes(*texts: str) -> str:
    return "; ".join(text for text in texts if text)
