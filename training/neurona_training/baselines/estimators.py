"""Fits the baselines of a data set: simple rules and scikit-learn's estimators.

| kind      | fitted                                                                        |
|-----------|-------------------------------------------------------------------------------|
| rows      | logistic or ridge regression, gradient boosting, nearest neighbours           |
| images    | logistic or ridge regression, nearest neighbours, support vectors (few rows)   |
| sequences | logistic or ridge regression, nearest neighbours, on resampled steps           |
| series    | persistence, seasonal persistence, linear autoregression, gradient boosting   |

and the most frequent class or the mean for all of them. Time and memory are bounded: of large
data a sample of the training rows is used, and `Baseline.note` says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import nn

from neurona_training.baselines.features import make_columns, predict_rows, sample_rows
from neurona_training.baselines.model import BaselineModel, LastSeason, answer, constant
from neurona_training.baselines.seasons import find_season, training_series
from neurona_training.data import Dataset, Split
from neurona_training.learning.evaluation import accuracy, negative_log_likelihood, predict, rmse

_MAX_ROWS = 50_000  # of which an estimator learns ...
_MAX_NUMBERS = 8_000_000  # ... and numbers in all their columns
_MAX_NEIGHBOUR_NUMBERS = 4_000_000  # nearest neighbours keep them: 16 MB of a file
_MAX_SUPPORT_ROWS = 3_000  # the time of a support vector machine grows with their square
_MAX_BOOSTED_VALUES = 48  # each has trees of its own
_MAX_TREES = 3_000  # over all classes or values
_MAX_ROUNDS = 500  # of boosting; the validation rows stop it earlier
_PATIENCE = 20  # rounds without a better validation loss

_FOLDS = 5
_MAX_CROSS_VALIDATED = 1_000  # rows: validation rows beside more of them are enough to choose by
_MIN_CROSS_VALIDATED = 20
_MAX_VALIDATION_ROWS = 4_000  # by which settings are chosen

_NEIGHBOURS = (1, 3, 5, 10, 20)
_INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # of logistic regression
_RIDGE_PENALTIES = tuple(10.0**power for power in range(-3, 6))
_MAX_LOGISTIC_NUMBERS = 80_000_000  # times the classes, each of which has weights of its own
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


@dataclass(frozen=True)
class _Rows:
    """Columns and targets; the targets of a series are changes from its last value."""

    columns: NDArray[np.float32]
    targets: NDArray[Any]


@dataclass(frozen=True)
class _Problem:
    """What the estimators learn.

    columns_title: what the columns are.
    columns: makes them of the inputs.
    offset: what the targets are changes from; None if they are the values themselves.
    train: training rows, or a sample of them.
    validation: rows by which settings are chosen.
    classes: how many; 0 of a regression.
    seed: of samples.
    """

    data: Dataset
    columns_title: str
    columns: nn.Module
    offset: nn.Module | None
    train: _Rows
    validation: _Rows
    classes: int
    seed: int

    def title(self, estimator: str) -> str:
        """An estimator's title, with what it reads of inputs that are no rows of columns."""
        return estimator if self.data.kind == "rows" else f"{estimator} on {self.columns_title}"

    def model(self, estimator: BaseEstimator) -> BaselineModel:
        """A fitted estimator as a function of the data's inputs."""
        return BaselineModel(self.columns, estimator, self.offset, self.classes)

    def sample(self, numbers: int) -> tuple[_Rows, str]:
        """Training rows with so many numbers at most, and a note if they are not all."""
        rows = self.train
        limit = min(len(rows.columns), max(1, numbers // max(1, rows.columns.shape[1])))
        if limit < len(rows.columns):
            drawn = sample_rows(Split(rows.columns, rows.targets), limit, self.seed)
            rows = _Rows(rows.columns[drawn], rows.targets[drawn])
        used, available = len(rows.columns), len(self.data.train)
        note = f"{used:,} of the {available:,} training rows"
        return rows, "" if used == available else note


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
        problems = _make_problems(data, seed)
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
        validation_metrics=_measure(validation, data.validation.targets),
        test_metrics=_measure(predictions, data.test.targets),
    )


def _measure(predictions: NDArray[np.float64], targets: NDArray[Any]) -> dict[str, float]:
    if targets.dtype != np.int64:
        return {"rmse": rmse(predictions, targets)}
    nll = negative_log_likelihood(predictions, targets)
    return {"accuracy": accuracy(predictions, targets), "nll": nll}


@dataclass(frozen=True)
class _Fitted:
    """A baseline before it is measured.

    error: on rows from which it has not learned, if it is chosen from several.
    """

    title: str
    note: str
    model: BaselineModel
    error: tuple[float, float] = (0.0, 0.0)


def _baselines(data: Dataset) -> dict[str, Callable[[_Problem], _Fitted]]:
    """What suits the data, by name, in the order of the report."""
    fits: dict[str, Callable[[_Problem], _Fitted]] = {
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
    """Few images, with a row of each class for each fold."""
    if data.kind != "images" or not data.is_classification or len(data.train) > _MAX_SUPPORT_ROWS:
        return False
    return int(np.unique(data.train.targets, return_counts=True)[1].min()) >= _FOLDS


def _fit_best(fit: Callable[[_Problem], _Fitted], problems: Sequence[_Problem]) -> _Fitted:
    """Fits a baseline on each kind of columns; returns the one with the smallest error."""
    return min((fit(problem) for problem in problems), key=lambda fitted: fitted.error)


def _make_problems(data: Dataset, seed: int) -> tuple[_Problem, ...]:
    """Makes columns of as many training rows as are used at most, and of those that choose."""
    return tuple(
        _make_problem(data, title, columns, seed) for title, columns in make_columns(data).items()
    )


def _make_problem(data: Dataset, title: str, columns: nn.Module, seed: int) -> _Problem:
    offset = LastSeason(1, len(data.values)) if data.is_series else None
    width = predict_rows(columns, data.train, np.arange(1)).shape[1]
    limit = max(1, min(_MAX_ROWS, _MAX_NUMBERS // max(1, width)))

    def rows(split: Split, count: int) -> _Rows:
        drawn = sample_rows(split, count, seed)
        targets = split.targets[drawn]
        if offset is not None:
            targets = targets - predict_rows(offset, split, drawn)
        return _Rows(predict_rows(columns, split, drawn), targets)

    return _Problem(
        data=data,
        columns_title=title,
        columns=columns,
        offset=offset,
        train=rows(data.train, limit),
        validation=rows(data.validation, min(limit, _MAX_VALIDATION_ROWS)),
        classes=len(data.labels),
        seed=seed,
    )


def _logistic_regression(problem: _Problem) -> _Fitted:
    rows, note = problem.sample(_MAX_LOGISTIC_NUMBERS // problem.classes)
    candidates = [
        (
            LogisticRegression(C=inverse_penalty, max_iter=_MAX_ITERATIONS),
            f"C = {inverse_penalty:g}",
        )
        for inverse_penalty in _INVERSE_PENALTIES
    ]
    # Less and less penalty: what has become worse once does not become better.
    best = _choose(candidates, rows, problem, by="nll", is_path=True)
    return _fitted(problem.title("logistic regression"), best, note, problem)


def _ridge(problem: _Problem) -> _Fitted:
    rows, note = problem.sample(_MAX_NUMBERS)
    candidates = [(Ridge(penalty), f"penalty {penalty:g}") for penalty in _RIDGE_PENALTIES]
    is_series = problem.data.is_series
    title = "linear autoregression" if is_series else problem.title("ridge regression")
    return _fitted(title, _choose(candidates, rows, problem), note, problem)


def _nearest_neighbours(problem: _Problem) -> _Fitted:
    rows, note = problem.sample(_MAX_NEIGHBOUR_NUMBERS)
    kind = KNeighborsClassifier if problem.classes else KNeighborsRegressor
    candidates = [
        (kind(count), f"{count} neighbour{'s' * (count > 1)}")
        for count in _NEIGHBOURS
        if count == 1 or count <= len(rows.columns) // 2
    ]
    best = _choose(candidates, rows, problem)
    return _fitted(problem.title("nearest neighbours"), best, note, problem)


def _gradient_boosting(problem: _Problem) -> _Fitted:
    rows, note = problem.sample(_MAX_NUMBERS)
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
    return _Fitted("gradient boosting", _join(setting, note), problem.model(estimator))


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


def _support_vectors(problem: _Problem) -> _Fitted:
    rows, note = problem.sample(_MAX_NUMBERS)
    # The classes are decided by votes; a sigmoid fitted in folds says how sure a vote is.
    candidates = [
        (CalibratedClassifierCV(SVC(C=penalty), cv=_FOLDS, ensemble=False), f"C = {penalty:g}")
        for penalty in (1.0, 10.0)
    ]
    best = _choose(candidates, rows, problem)
    return _fitted(problem.title("support vector machine"), best, note, problem)


_Candidate = tuple[BaseEstimator, str]  # and how it is set up


@dataclass(frozen=True)
class _Choice:
    """The estimator that was chosen, how it is set up, and its error where it did not learn."""

    estimator: BaseEstimator
    setting: str
    error: tuple[float, float]


def _fitted(title: str, choice: _Choice, note: str, problem: _Problem) -> _Fitted:
    model = problem.model(choice.estimator)
    return _Fitted(title, _join(choice.setting, note), model, choice.error)


def _choose(
    candidates: Sequence[_Candidate],
    rows: _Rows,
    problem: _Problem,
    by: Literal["accuracy", "nll"] = "accuracy",
    *,
    is_path: bool = False,
) -> _Choice:
    """Fits the candidate with the smallest error on rows that it has not learned from.

    These are the validation rows; or, where they are few, the training rows in five folds.

    Args:
        candidates: of which the first of equal ones is taken.
        rows: from which they learn.
        problem: has the validation rows.
        by: what counts first of a classification. The NLL changes with every row, accuracy
            in steps; but it is huge for votes of few neighbours, some of which are never wrong.
        is_path: the rest need not be tried once the error grows.

    Returns:
        The fitted estimator.
    """
    is_small = len(rows.columns) <= _MAX_CROSS_VALIDATED and not problem.data.is_series
    if problem.classes:
        is_small = is_small and _smallest_class(rows) >= _FOLDS
    else:
        is_small = is_small and len(rows.columns) >= _MIN_CROSS_VALIDATED
    best: tuple[tuple[float, float], _Candidate] | None = None
    for estimator, setting in candidates:
        if is_small:
            error = _error_in_folds(estimator, rows, problem, by)
        else:
            estimator.fit(rows.columns, rows.targets)
            error = _error(estimator, problem.validation, problem, by)
        if best is None or error < best[0]:
            best = error, (estimator, setting)
        elif is_path:
            break
    if best is None:
        raise ValueError("no candidates")
    error, (estimator, setting) = best
    if is_small:
        estimator.fit(rows.columns, rows.targets)
    return _Choice(estimator, setting, error)


def _smallest_class(rows: _Rows) -> int:
    """Rows of the class that has the fewest, of those that have any."""
    return int(np.unique(rows.targets, return_counts=True)[1].min())


def _error_in_folds(
    estimator: BaseEstimator, rows: _Rows, problem: _Problem, by: str
) -> tuple[float, float]:
    folds = (StratifiedKFold if problem.classes else KFold)(_FOLDS, shuffle=True, random_state=0)
    errors = []
    for train, validation in folds.split(rows.columns, rows.targets):
        estimator.fit(rows.columns[train], rows.targets[train])
        part = _Rows(rows.columns[validation], rows.targets[validation])
        errors.append(_error(estimator, part, problem, by))
    first, second = np.mean(errors, axis=0)
    return float(first), float(second)


def _error(
    estimator: BaseEstimator, rows: _Rows, problem: _Problem, by: str
) -> tuple[float, float]:
    """What a classification is chosen by, and what decides between equal ones."""
    predictions = answer(estimator, rows.columns, problem.classes)
    if problem.classes:
        measured = _measure(predictions, rows.targets)
        wrong, nll = 1 - measured["accuracy"], measured["nll"]
        return (wrong, nll) if by == "accuracy" else (nll, wrong)
    # Each value counts the same, whatever its unit.
    spread = problem.train.targets.std(axis=0)
    scaled = (predictions - rows.targets) / np.where(spread > 0, spread, 1)
    return float(np.square(scaled).mean()), 0.0


def _season_in_window(data: Dataset) -> int | None:
    """The season of a series, if its window has the values of a season before."""
    season = find_season(training_series(data))
    if season is None:
        return None
    steps = LastSeason(season, len(data.values)).steps
    return season if steps <= data.train.inputs.shape[1] else None


def _seasonal_persistence(problem: _Problem) -> _Fitted:
    season = _season_in_window(problem.data)
    if season is None:
        raise ValueError("no season")
    model = BaselineModel(None, None, LastSeason(season, len(problem.data.values)))
    title, note = f"the value {season} steps before", f"a season of {season} steps"
    return _Fitted(title, note, model)


def _persistence(problem: _Problem) -> _Fitted:
    model = BaselineModel(None, None, LastSeason(1, len(problem.data.values)))
    return _Fitted("the last value again", "", model)


def _constant(problem: _Problem) -> _Fitted:
    title = "always the most frequent class" if problem.classes else "always the mean"
    return _Fitted(title, "", BaselineModel(None, None, constant(problem.data), problem.classes))


def _join(*texts: str) -> str:
    return "; ".join(text for text in texts if text)
