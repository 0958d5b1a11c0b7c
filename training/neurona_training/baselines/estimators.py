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
from collections.abc import Callable, Iterator, Sequence
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

from neurona_training.baselines.features import make_columns, sample_rows
from neurona_training.baselines.model import BaselineModel, LastSeason, answer, constant
from neurona_training.baselines.seasons import find_season, training_series
from neurona_training.data import Dataset, Split
from neurona_training.learning.evaluation import accuracy, predict, rmse

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
        validation_metrics: accuracy or rmse, and log_loss of a classification.
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

    classes: how many; 0 of a regression.
    available: training rows in the data, of which `train` may be a sample.
    """

    data: Dataset
    train: _Rows
    validation: _Rows
    classes: int
    available: int
    seed: int

    def sample(self, numbers: int) -> tuple[_Rows, str]:
        """Training rows with so many numbers at most, and a note if they are not all."""
        rows = self.train
        limit = min(len(rows.columns), max(1, numbers // max(1, rows.columns.shape[1])))
        if limit < len(rows.columns):
            drawn = sample_rows(Split(rows.columns, rows.targets), limit, self.seed)
            rows = _Rows(drawn.inputs, drawn.targets)
        used = len(rows.columns)
        note = f"{used:,} of the {self.available:,} training rows"
        return rows, "" if used == self.available else note


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
        return tuple(_measured(*fitted, data) for fitted in _fit_all(data, seed))


def choose_best(baselines: Sequence[Baseline]) -> Baseline:
    """The best on the validation rows: the test rows are not for choosing."""

    def error(baseline: Baseline) -> tuple[float, float]:
        metrics = baseline.validation_metrics
        return metrics.get("rmse", -metrics.get("accuracy", 0)), metrics.get("log_loss", 0)

    return min(baselines, key=error)


def _measured(name: str, title: str, note: str, model: BaselineModel, data: Dataset) -> Baseline:
    predictions = predict(model, data.test).numpy()
    validation = predict(model, data.validation).numpy()
    return Baseline(
        name,
        title,
        note,
        model,
        predictions,
        _measure(validation, data.validation.targets),
        _measure(predictions, data.test.targets),
    )


def _measure(predictions: NDArray[np.float64], targets: NDArray[Any]) -> dict[str, float]:
    if targets.dtype != np.int64:
        return {"rmse": rmse(predictions, targets)}
    of_target = predictions[np.arange(len(targets)), targets]
    log_loss = -np.log(np.clip(of_target, np.finfo(np.float64).eps, 1)).mean()
    return {"accuracy": accuracy(predictions, targets), "log_loss": float(log_loss)}


Fitted = tuple[str, str, str, BaselineModel]  # name, title, note


def _fit_all(data: Dataset, seed: int) -> Iterator[Fitted]:
    columns = make_columns(data)
    offset = LastSeason(1, data.train.targets.shape[1]) if data.is_series else None
    problem = _make_problem(data, columns, offset, seed)
    classes = problem.classes
    of_what = {"images": " on pixels", "sequences": " on resampled steps"}.get(data.kind, "")
    for fit in _learners(data):
        fitted = fit(problem)
        if fitted is not None:
            name, title, note, estimator = fitted
            if data.is_series:
                title = {"linear": "linear autoregression"}.get(name, title)
            else:
                title += of_what
            yield name, title, note, BaselineModel(columns, estimator, offset, classes)
    if data.is_series:
        yield from _persistence(data)
    title = "always the most frequent class" if classes else "always the mean"
    model = BaselineModel(None, None, constant(data), classes)
    yield "majority" if classes else "mean", title, "", model


def _make_problem(
    data: Dataset, columns: nn.Module, offset: nn.Module | None, seed: int
) -> _Problem:
    """Makes the columns of as many training rows as are used at most, and of those that choose."""
    width = predict(columns, sample_rows(data.train, 1)).shape[1]
    limit = max(1, min(_MAX_ROWS, _MAX_NUMBERS // max(1, width)))

    def rows(split: Split, count: int) -> _Rows:
        drawn = sample_rows(split, count, seed)
        targets = drawn.targets
        if offset is not None:
            targets = targets - predict(offset, drawn).numpy()
        return _Rows(predict(columns, drawn).numpy(), targets)

    return _Problem(
        data,
        rows(data.train, limit),
        rows(data.validation, min(limit, _MAX_VALIDATION_ROWS)),
        len(data.labels),
        len(data.train),
        seed,
    )


_Learned = tuple[str, str, str, BaseEstimator]  # name, title, note


def _learners(data: Dataset) -> tuple[Callable[[_Problem], _Learned | None], ...]:
    linear = _logistic_regression if data.is_classification else _ridge
    if data.is_series:
        return linear, _gradient_boosting
    if data.kind == "rows":
        return linear, _gradient_boosting, _nearest_neighbours
    if data.kind == "images" and data.is_classification:
        return linear, _nearest_neighbours, _support_vectors
    return linear, _nearest_neighbours


def _logistic_regression(problem: _Problem) -> _Learned:
    rows, note = problem.sample(_MAX_LOGISTIC_NUMBERS // problem.classes)
    candidates = [
        (
            LogisticRegression(C=inverse_penalty, max_iter=_MAX_ITERATIONS),
            f"C = {inverse_penalty:g}",
        )
        for inverse_penalty in _INVERSE_PENALTIES
    ]
    # Less and less penalty: what has become worse once does not become better.
    estimator, setting = _choose(candidates, rows, problem, by="log_loss", is_path=True)
    return "linear", "logistic regression", _join(setting, note), estimator


def _ridge(problem: _Problem) -> _Learned:
    rows, note = problem.sample(_MAX_NUMBERS)
    candidates = [(Ridge(penalty), f"penalty {penalty:g}") for penalty in _RIDGE_PENALTIES]
    estimator, setting = _choose(candidates, rows, problem)
    return "linear", "ridge regression", _join(setting, note), estimator


def _nearest_neighbours(problem: _Problem) -> _Learned:
    rows, note = problem.sample(_MAX_NEIGHBOUR_NUMBERS)
    kind = KNeighborsClassifier if problem.classes else KNeighborsRegressor
    candidates = [
        (kind(count), f"{count} neighbour{'s' * (count > 1)}")
        for count in _NEIGHBOURS
        if count == 1 or count <= len(rows.columns) // 2
    ]
    estimator, setting = _choose(candidates, rows, problem)
    return "nearest_neighbours", "nearest neighbours", _join(setting, note), estimator


def _gradient_boosting(problem: _Problem) -> _Learned | None:
    rows, note = problem.sample(_MAX_NUMBERS)
    values = 1 if problem.classes else rows.targets.shape[1]
    if values > _MAX_BOOSTED_VALUES:
        return None
    trees_a_round = values if problem.classes <= 2 else problem.classes
    settings = {
        "max_iter": max(10, min(_MAX_ROUNDS, _MAX_TREES // trees_a_round)),
        "early_stopping": True,
        "n_iter_no_change": _PATIENCE,
        "random_state": problem.seed,
    }
    validation = problem.validation
    if problem.classes:
        known = np.isin(validation.targets, rows.targets)
        boosted = [
            HistGradientBoostingClassifier(**settings).fit(
                rows.columns,
                rows.targets,
                X_val=validation.columns[known],
                y_val=validation.targets[known],
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
    return (
        "gradient_boosting",
        "gradient boosting",
        _join(setting, note),
        boosted[0] if len(boosted) == 1 else _join_values(boosted),
    )


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


def _support_vectors(problem: _Problem) -> _Learned | None:
    rows, note = problem.sample(_MAX_NUMBERS)
    if problem.available > _MAX_SUPPORT_ROWS or _smallest_class(rows) < _FOLDS:
        return None
    # The classes are decided by votes; a sigmoid fitted in folds says how sure a vote is.
    candidates = [
        (CalibratedClassifierCV(SVC(C=penalty), cv=_FOLDS, ensemble=False), f"C = {penalty:g}")
        for penalty in (1.0, 10.0)
    ]
    estimator, setting = _choose(candidates, rows, problem)
    return "support_vectors", "support vector machine", _join(setting, note), estimator


_Candidate = tuple[BaseEstimator, str]  # not fitted, and how it is set up


def _choose(
    candidates: Sequence[_Candidate],
    rows: _Rows,
    problem: _Problem,
    by: Literal["accuracy", "log_loss"] = "accuracy",
    *,
    is_path: bool = False,
) -> _Candidate:
    """Fits the candidate with the smallest error on rows that it has not learned from.

    These are the validation rows; or, where they are few, the training rows in five folds.

    Args:
        candidates: of which the first of equal ones is taken.
        rows: from which they learn.
        problem: has the validation rows.
        by: what counts first of a classification. The log loss changes with every row, accuracy
            in steps; but it is huge for votes of few neighbours, some of which are never wrong.
        is_path: the rest need not be tried once the error grows.

    Returns:
        The fitted estimator, and how it is set up.
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
    estimator, setting = best[1]
    return (estimator.fit(rows.columns, rows.targets) if is_small else estimator), setting


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
        wrong, log_loss = 1 - measured["accuracy"], measured["log_loss"]
        return (wrong, log_loss) if by == "accuracy" else (log_loss, wrong)
    # Each value counts the same, whatever its unit.
    spread = problem.train.targets.std(axis=0)
    scaled = (predictions - rows.targets) / np.where(spread > 0, spread, 1)
    return float(np.square(scaled).mean()), 0.0


def _persistence(data: Dataset) -> Iterator[Fitted]:
    """Rules that forecast by values of the window alone."""
    horizon, window = data.train.targets.shape[1], data.train.inputs.shape[1]
    season = find_season(training_series(data))
    if season is not None:
        seasonal = LastSeason(season, horizon)
        if seasonal.steps <= window:
            title = f"the value {season} steps before"
            note = f"a season of {season} steps"
            yield "seasonal_persistence", title, note, BaselineModel(None, None, seasonal)
    title = "the last value again"
    yield "persistence", title, "", BaselineModel(None, None, LastSeason(1, horizon))


def _join(*texts: str) -> str:
    return "; ".join(text for text in texts if text)
