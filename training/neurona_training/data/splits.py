"""Rows divided once and for all: training 65 %, validation 15 %, test 20 %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Split, Task, Value
from neurona_training.errors import DataError

TRAIN, VALIDATION, TEST = 0.65, 0.15, 0.20
LEAST_ROWS = 10  # of a regression
LEAST_ROWS_OF_A_CLASS = 5  # one for validation, one for the test, three to learn from
_MOST_WHOLE_NUMBERS = 10  # that are taken for classes
_MOST_CLASSES = 1000
_SPLIT_SEED = 1957  # the same rows whatever the seed of a training run

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """As `Split.targets`, `Dataset.labels` and `Dataset.values` have it."""

    targets: NDArray[np.int64] | NDArray[np.float32]
    labels: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()


def classes(names: Sequence[str], where: str) -> Target:
    """Each row's class by its name; the order of the classes is that of their names.

    Raises DataError, beginning with `where`, for one class only, and for one of few rows.
    """
    labels, codes, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
    if all(label.removeprefix("-").isdecimal() for label in labels):
        order = np.argsort(labels.astype(np.int64), kind="stable")  # 2 before 10
        labels, counts, codes = labels[order], counts[order], np.argsort(order)[codes]
    if len(labels) == 1:
        raise DataError(f"{where}: one class only, {str(labels[0])!r}; two are the least")
    if len(labels) > _MOST_CLASSES:
        raise DataError(f"{where}: {len(labels)} classes; {_MOST_CLASSES} are the most")
    fewest = int(counts.argmin())
    if counts[fewest] < LEAST_ROWS_OF_A_CLASS:
        raise DataError(
            f"{where}: class {str(labels[fewest])!r} has {counts[fewest]} of the {len(codes)} "
            f"rows; {LEAST_ROWS_OF_A_CLASS} are the least"
        )
    return Target(codes.astype(np.int64), labels=tuple(str(label) for label in labels))


def found_task(texts: Sequence[str], *, numbers: bool) -> Task:
    """What a column of these cells asks for when its user has not said it."""
    if not numbers:
        return "classification"
    different = {float(text) for text in texts}
    few = len(different) <= _MOST_WHOLE_NUMBERS and all(one.is_integer() for one in different)
    return "classification" if few else "regression"


def divided(target: Target, where: str) -> tuple[Rows, Rows, Rows]:
    """The rows of training, validation and test: by chance, each class in the same parts.

    Raises DataError for few rows, and for a value that never changes.
    """
    count = len(target.targets)
    if not target.labels and count < LEAST_ROWS:
        raise DataError(f"{where}: {count} rows; {LEAST_ROWS} are the least")
    if not target.labels and (target.targets == target.targets[0]).all():
        raise DataError(f"{where}: the same in all rows; there is nothing to learn")
    chance = np.random.default_rng(_SPLIT_SEED)
    codes = target.targets if target.labels else np.zeros(count, np.int64)
    parts: tuple[list[Rows], list[Rows], list[Rows]] = ([], [], [])
    for code in range(int(codes.max()) + 1):
        rows = chance.permutation(np.flatnonzero(codes == code))
        test = max(1, round(TEST * len(rows)))
        validation = max(1, round(VALIDATION * len(rows)))
        bounds = [len(rows) - test - validation, len(rows) - test]
        for part, some in zip(parts, np.split(rows, bounds), strict=True):
            part.append(some)
    train, validating, testing = (np.sort(np.concatenate(part)) for part in parts)
    return train, validating, testing


def least_squares(
    inputs: NDArray[np.float32], targets: NDArray[Any], asked: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the linear function that fits `targets` best answers to `asked`: a baseline."""

    def with_one(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)

    weights, *_ = np.linalg.lstsq(with_one(inputs), targets, rcond=None)
    answered: NDArray[np.float32] = (with_one(asked) @ weights).astype(np.float32)
    return answered


_TEST, _VALIDATION = 0.20, 0.15
_SEED = 1998  # the test rows are the same whatever the seed of a training run


def parts(
    inputs: NDArray[Any], targets: NDArray[Any], *, seed: int = _SEED
) -> tuple[Split, Split, Split]:
    """Training, validation and test; each class has its share of each of them.

    inputs: rows along axis 0. targets: as `Split.targets`.
    """
    from sklearn.model_selection import train_test_split

    classes = targets if targets.dtype == np.int64 else None
    rest, test = train_test_split(
        np.arange(len(targets)), test_size=_TEST, stratify=classes, random_state=seed
    )
    train, validation = train_test_split(
        rest,
        test_size=_VALIDATION / (1 - _TEST),
        stratify=None if classes is None else classes[rest],
        random_state=seed,
    )
    train_part, validation_part, test_part = (
        Split(inputs[rows], targets[rows]) for rows in (train, validation, test)
    )
    return train_part, validation_part, test_part
