"""What an estimator learns, and which of its settings are the best where it has not learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from torch import nn

from neurona_training.baselines.features import (
    make_columns,
    make_estimator_columns,
    predict_rows,
    sample_rows,
)
from neurona_training.baselines.model import BaselineModel, LastSeason, answer
from neurona_training.data import Dataset, Split
from neurona_training.learning.evaluation import accuracy, negative_log_likelihood, rmse

FOLDS = 5
MAX_ROWS = 50_000  # of which an estimator learns ...
MAX_NUMBERS = 8_000_000  # ... and numbers in all their columns
_MAX_VALIDATION_ROWS = 4_000  # by which settings are chosen
_MAX_CROSS_VALIDATED = 1_000  # rows: validation rows beside more of them are enough to choose by
_MIN_CROSS_VALIDATED = 20
_FEW_ROWS = 64  # that show how many numbers a row has


@dataclass(frozen=True)
class EstimatorRows:
    """Columns and targets; the targets of a series are changes from its last value.

    columns: (rows, columns), sparse if nearly all are 0.
    groups: of rows that must stay together, (rows,), if there are any.
    """

    columns: NDArray[np.float32] | sparse.csr_array
    targets: NDArray[Any]
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def numbers(self) -> int:
        """Numbers in all columns, without those of sparse ones that are 0."""
        columns = self.columns
        return columns.size if isinstance(columns, np.ndarray) else int(columns.nnz)

    def take(self, rows: NDArray[np.int64]) -> EstimatorRows:
        """Returns some rows."""
        groups = None if self.groups is None else self.groups[rows]
        return EstimatorRows(self.columns[rows], self.targets[rows], groups)


@dataclass(frozen=True)
class Problem:
    """What the estimators learn.

    Args:
        data: the view in which all inputs are numbers or codes.
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
    train: EstimatorRows
    validation: EstimatorRows
    classes: int
    seed: int

    @property
    def is_sparse(self) -> bool:
        """Whether nearly all numbers in the columns are 0, and only the others are kept."""
        return bool(sparse.issparse(self.train.columns))

    def title(self, estimator: str) -> str:
        """An estimator's title, with what it reads of inputs that are no rows of columns."""
        return estimator if self.data.kind == "rows" else f"{estimator} on {self.columns_title}"

    def model(self, estimator: BaseEstimator) -> BaselineModel:
        """A fitted estimator as a function of the data's inputs."""
        return BaselineModel(self.columns, estimator, self.offset, self.classes)

    def sample(self, numbers: int) -> tuple[EstimatorRows, str]:
        """Training rows with so many numbers at most, and a note if they are not all."""
        rows = self.train
        limit = max(1, numbers * len(rows) // max(1, rows.numbers))
        if limit < len(rows):
            drawn = sample_rows(Split(rows.targets, rows.targets), limit, self.seed)
            rows = rows.take(drawn)
        used, available = len(rows), len(self.data.train)
        note = f"{used:,} of the {available:,} training rows"
        return rows, "" if used == available else note


def make_problems(data: Dataset, seed: int) -> tuple[Problem, ...]:
    """Makes columns of as many training rows as are used at most, and of those that choose."""
    return tuple(
        _make_problem(data, title, columns, seed) for title, columns in make_columns(data).items()
    )


def _make_problem(data: Dataset, title: str, columns: nn.Module, seed: int) -> Problem:
    offset = LastSeason(1, len(data.values)) if data.is_series else None
    few = np.arange(min(len(data.train), _FEW_ROWS))
    numbers = EstimatorRows(make_estimator_columns(columns, data.train, few), few).numbers
    limit = max(1, min(MAX_ROWS, MAX_NUMBERS * len(few) // max(1, numbers)))

    def rows(split: Split, count: int) -> EstimatorRows:
        drawn = sample_rows(split, count, seed)
        targets = split.targets[drawn]
        if offset is not None:
            targets = targets - predict_rows(offset, split, drawn)
        groups = None if split.groups is None else split.groups[drawn]
        return EstimatorRows(make_estimator_columns(columns, split, drawn), targets, groups)

    return Problem(
        data=data,
        columns_title=title,
        columns=columns,
        offset=offset,
        train=rows(data.train, limit),
        validation=rows(data.validation, min(limit, _MAX_VALIDATION_ROWS)),
        classes=len(data.labels),
        seed=seed,
    )


def measure(
    predictions: NDArray[np.float64], targets: NDArray[Any], scales: NDArray[np.float64]
) -> dict[str, float]:
    """Measures predictions: rmse of values, or accuracy and nll of probabilities.

    scales: of the errors of values, `Dataset.error_scales`.
    """
    if targets.dtype != np.int64:
        return {"rmse": rmse(predictions, targets, scales)}
    nll = negative_log_likelihood(predictions, targets)
    return {"accuracy": accuracy(predictions, targets), "nll": nll}


Candidate = tuple[BaseEstimator, str]  # and how it is set up


@dataclass(frozen=True)
class Choice:
    """The estimator that was chosen, how it is set up, and its error where it did not learn."""

    estimator: BaseEstimator
    setting: str
    error: tuple[float, float]


def choose_estimator(
    candidates: Sequence[Candidate],
    rows: EstimatorRows,
    problem: Problem,
    by: Literal["accuracy", "nll"] = "accuracy",
    *,
    is_path: bool = False,
) -> Choice:
    """Fits the candidate with the smallest error on rows that it has not learned from.

    These are the validation rows; or, where they are few, the training rows in five folds that
    keep groups together. Rows that follow each other in time are judged by later ones: the
    validation rows.

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
    is_small = len(rows) <= _MAX_CROSS_VALIDATED
    is_small = is_small and not (problem.data.is_series or problem.data.in_time_order)
    if rows.groups is not None:
        is_small = is_small and len(np.unique(rows.groups)) >= FOLDS
    if problem.classes:
        is_small = is_small and _smallest_class(rows) >= FOLDS
    else:
        is_small = is_small and len(rows) >= _MIN_CROSS_VALIDATED
    best: tuple[tuple[float, float], Candidate] | None = None
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
    return Choice(estimator, setting, error)


def _smallest_class(rows: EstimatorRows) -> int:
    """Rows of the class that has the fewest, of those that have any."""
    return int(np.unique(rows.targets, return_counts=True)[1].min())


def _error_in_folds(
    estimator: BaseEstimator, rows: EstimatorRows, problem: Problem, by: str
) -> tuple[float, float]:
    if rows.groups is None:
        divider = StratifiedKFold if problem.classes else KFold
    else:
        divider = StratifiedGroupKFold if problem.classes else GroupKFold
    folds = divider(FOLDS, shuffle=True, random_state=0)
    errors = []
    for train, validation in folds.split(rows.columns, rows.targets, rows.groups):
        if problem.classes and len(np.unique(rows.targets[train])) < 2:
            continue  # all groups of a class are in this fold
        estimator.fit(rows.columns[train], rows.targets[train])
        errors.append(_error(estimator, rows.take(validation), problem, by))
    first, second = np.mean(errors, axis=0)
    return float(first), float(second)


def _error(
    estimator: BaseEstimator, rows: EstimatorRows, problem: Problem, by: str
) -> tuple[float, float]:
    """What a classification is chosen by, and what decides between equal ones."""
    predictions = answer(estimator, rows.columns, problem.classes)
    if problem.classes:
        measured = measure(predictions, rows.targets, problem.data.error_scales)
        wrong, nll = 1 - measured["accuracy"], measured["nll"]
        return (wrong, nll) if by == "accuracy" else (nll, wrong)
    # Each value counts the same, whatever its unit.
    spread = problem.train.targets.std(axis=0)
    scaled = (predictions - rows.targets) / np.where(spread > 0, spread, 1)
    return float(np.square(scaled).mean()), 0.0
