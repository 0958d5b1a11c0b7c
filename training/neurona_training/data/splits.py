"""Rows divided into 65 % training, 15 % validation and 20 % test, the same on each call.

Bundled data sets are divided by scikit-learn (`stratified_split`), a user's own data by
`split_rows`, which puts at least one row of each class into each part. Both stay: the
published results of the recipes depend on the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Split, Task, Value
from neurona_training.errors import DataError

TRAIN, VALIDATION, TEST = 0.65, 0.15, 0.20
MIN_ROWS = 10  # of a regression
MIN_ROWS_PER_CLASS = 5  # one for validation, one for the test, three for training
_MAX_INTEGER_CLASSES = 10  # different integers that are taken for classes
_MAX_CLASSES = 1000
_BUNDLED_SEED = 1998  # the same rows whatever the seed of a training run
_USER_SEED = 1957

RowIndices = NDArray[np.int64]


def stratified_split(
    inputs: NDArray[Any], targets: NDArray[Any], *, seed: int = _BUNDLED_SEED
) -> tuple[Split, Split, Split]:
    """Divides rows at random; each class has its share of each part.

    Args:
        inputs: rows along axis 0.
        targets: as in `Split.targets`; int64 targets are classes.
        seed: of the random division.

    Returns:
        Training, validation and test.
    """
    train, validation, test = stratified_indices(targets, seed)
    return (
        Split(inputs[train], targets[train]),
        Split(inputs[validation], targets[validation]),
        Split(inputs[test], targets[test]),
    )


def stratified_indices(
    targets: NDArray[Any], seed: int
) -> tuple[RowIndices, RowIndices, RowIndices]:
    """Indices of the training, validation and test rows; see `stratified_split`."""
    from sklearn.model_selection import train_test_split

    classes = targets if targets.dtype == np.int64 else None
    rest, test = train_test_split(
        np.arange(len(targets)), test_size=TEST, stratify=classes, random_state=seed
    )
    train, validation = train_test_split(
        rest,
        test_size=VALIDATION / (1 - TEST),
        stratify=None if classes is None else classes[rest],
        random_state=seed,
    )
    return train, validation, test


@dataclass(frozen=True)
class Target:
    """What is predicted, in the form of `Split.targets`, `Dataset.labels` and `.values`."""

    targets: NDArray[np.int64] | NDArray[np.float32]
    labels: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()


def encode_classes(names: Sequence[str], where: str) -> Target:
    """Encodes each row's class; classes are sorted by name, numbers by their value.

    Args:
        names: the class of each row.
        where: file and column, for error messages.

    Raises:
        DataError: fewer than two classes, too many, or one with too few rows.
    """
    labels, codes, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
    if all(label.removeprefix("-").isdecimal() for label in labels):
        order = np.argsort(labels.astype(np.int64), kind="stable")  # 2 before 10
        labels, counts, codes = labels[order], counts[order], np.argsort(order)[codes]
    if len(labels) == 1:
        raise DataError(f"{where}: one class only, {str(labels[0])!r} (expected at least 2)")
    if len(labels) > _MAX_CLASSES:
        raise DataError(f"{where}: {len(labels)} classes (expected at most {_MAX_CLASSES})")
    smallest = int(counts.argmin())
    if counts[smallest] < MIN_ROWS_PER_CLASS:
        raise DataError(
            f"{where}: class {str(labels[smallest])!r} has {counts[smallest]} of the "
            f"{len(codes)} rows (expected at least {MIN_ROWS_PER_CLASS})"
        )
    return Target(codes.astype(np.int64), labels=tuple(str(label) for label in labels))


def infer_task(cells: Sequence[str | float], *, numeric: bool) -> Task:
    """Guesses the task from the target: text and few different integers are classes."""
    if not numeric:
        return "classification"
    different = {float(cell) for cell in cells}
    integers = all(number.is_integer() for number in different)
    few = len(different) <= _MAX_INTEGER_CLASSES
    return "classification" if few and integers else "regression"


def split_rows(target: Target, where: str) -> tuple[RowIndices, RowIndices, RowIndices]:
    """Divides rows at random, each class in the same proportions.

    Args:
        target: of all rows.
        where: file and column, for error messages.

    Returns:
        Indices of the training, validation and test rows, sorted.

    Raises:
        DataError: a regression with too few rows or a constant target.
    """
    count = len(target.targets)
    if not target.labels and count < MIN_ROWS:
        raise DataError(f"{where}: {count} rows (expected at least {MIN_ROWS})")
    if not target.labels and (target.targets == target.targets[0]).all():
        raise DataError(f"{where}: the same value in all rows, nothing to learn")
    generator = np.random.default_rng(_USER_SEED)
    codes = target.targets if target.labels else np.zeros(count, np.int64)
    parts: tuple[list[RowIndices], list[RowIndices], list[RowIndices]] = ([], [], [])
    for code in range(int(codes.max()) + 1):
        rows = generator.permutation(np.flatnonzero(codes == code))
        test = max(1, round(TEST * len(rows)))
        validation = max(1, round(VALIDATION * len(rows)))
        bounds = [len(rows) - test - validation, len(rows) - test]
        for part, indices in zip(parts, np.split(rows, bounds), strict=True):
            part.append(indices)
    train_rows, validation_rows, test_rows = (np.sort(np.concatenate(part)) for part in parts)
    return train_rows, validation_rows, test_rows
