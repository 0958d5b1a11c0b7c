"""Rows divided into 65 % training, 15 % validation and 20 % test, the same on each call.

Bundled data sets are divided by scikit-learn (`stratified_split`), a user's own data by
`split_rows`, which puts at least one row of each class into each part. Both stay: the
published results of the recipes depend on the first. `divide_rows` also keeps parts that the user
has own_parts, groups that must stay together, and the order of time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Split, Task, Value
from neurona_training.errors import DataError

TRAIN, VALIDATION, TEST = 0.65, 0.15, 0.20
MIN_ROWS = 10  # of a regression
MIN_ROWS_PER_CLASS = 5  # one for validation, one for the test, three for training
_MAX_INTEGER_CLASSES = 10  # different integers that are taken for classes
_MAX_CLASSES = 1000
_MAX_DIGITS = 1000  # of classes that are sorted by their value
_BUNDLED_SEED = 1998  # the same rows whatever the seed of a training run
USER_SEED = 1957  # of the division of a user's rows
_GROUP_DIVISIONS, _MIN_DIVISIONS = 200, 5  # at random; of many groups one is like another
_SUMMED_CELLS = 20_000_000  # groups by classes, in all divisions together

RowIndices = NDArray[np.int64]
Part = Literal["train", "validation", "test"]
_TRAIN, _VALIDATION, _TEST, _UNDECIDED = range(4)
_PART_CODES: Mapping[Part | None, int] = {
    "train": _TRAIN,
    "validation": _VALIDATION,
    "test": _TEST,
    None: _UNDECIDED,
}
_PART_TITLES = (
    "the training rows",
    "the validation rows",
    "the test rows",
    "the rows for training",
)


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
    labels = sorted(set(names))
    if all(label.removeprefix("-").isdecimal() and len(label) < _MAX_DIGITS for label in labels):
        labels.sort(key=int)  # 2 before 10
    codes, counts = _encode(names, labels)
    if len(labels) == 1:
        raise DataError(f"{where}: one class only, {labels[0]!r} (expected at least 2)")
    if len(labels) > _MAX_CLASSES:
        raise DataError(f"{where}: {len(labels)} classes (expected at most {_MAX_CLASSES})")
    smallest = int(counts.argmin())
    if counts[smallest] < MIN_ROWS_PER_CLASS:
        raise DataError(
            f"{where}: class {labels[smallest]!r} has {counts[smallest]} of the "
            f"{len(codes)} rows (expected at least {MIN_ROWS_PER_CLASS})"
        )
    return Target(codes, labels=tuple(labels))


def _encode(
    names: Sequence[str], different: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the position of each name among the different ones, and how often each is there."""
    position = {name: number for number, name in enumerate(different)}
    codes = np.fromiter((position[name] for name in names), np.int64, len(names))
    return codes, np.bincount(codes, minlength=len(different))


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
    return divide_rows(target, where)


def divide_rows(
    target: Target,
    where: str,
    *,
    own_parts: Sequence[Part | None] | None = None,
    groups: Sequence[str] | None = None,
    times: NDArray[np.float64] | None = None,
) -> tuple[RowIndices, RowIndices, RowIndices]:
    """Divides rows; at random, each class in the same proportions, unless something else is asked.

    Args:
        target: of all rows.
        where: file and column, for error messages.
        own_parts: the part of each row, None for a row that may come into any part. Such rows are
            divided among training and the parts that no row was chosen for.
        groups: of each row; the rows of a group come into the same part.
        times: of each row; the latest are for the test, those before them for validation. Rows of
            the same time come into the same part.

    Returns:
        Indices of the training, validation and test rows, sorted.

    Raises:
        DataError: too few rows, groups or times; a constant target; a group in two of the chosen
            parts; or a class without a row for training.
    """
    count = len(target.targets)
    if not target.labels and count < MIN_ROWS:
        raise DataError(f"{where}: {count} rows (expected at least {MIN_ROWS})")
    if not target.labels and (target.targets == target.targets[0]).all():
        raise DataError(f"{where}: the same value in all rows, nothing to learn")
    parts = np.array([_PART_CODES[part] for part in own_parts or [None] * count], np.int64)
    if groups is not None:
        _check_groups(groups, parts, where)
    undecided = np.flatnonzero(parts == _UNDECIDED)
    shares = {
        part: share
        for part, share in ((_VALIDATION, VALIDATION), (_TEST, TEST))
        if not (parts == part).any()
    }
    if len(undecided) and not shares:
        parts[undecided] = _TRAIN
    elif len(undecided):
        whole = TRAIN + sum(shares.values())  # the parts that are chosen take no share of them
        shares = {part: share / whole for part, share in shares.items()}
        if times is not None:
            parts[undecided] = _divide_by_time(times[undecided], shares, where)
        elif groups is not None:
            some = [groups[row] for row in undecided.tolist()]
            parts[undecided] = _divide_groups(some, target.targets[undecided], shares, where)
        else:
            codes = target.targets[undecided] if target.labels else np.zeros(len(undecided), int)
            parts[undecided] = _divide_at_random(codes, shares)
    _check_parts(parts, target, where)
    train, validation, test = (
        np.flatnonzero(parts == part) for part in (_TRAIN, _VALIDATION, _TEST)
    )
    return train, validation, test


def _check_parts(parts: NDArray[np.int64], target: Target, where: str) -> None:
    """Checks that each part has rows, and training those of every class."""
    for part, name in ((_TRAIN, "training"), (_VALIDATION, "validation"), (_TEST, "the test")):
        if not (parts == part).any():
            raise DataError(f"{where}: no rows for {name}")
    learned = target.targets[parts == _TRAIN]
    if not target.labels and (learned == learned[0]).all():
        raise DataError(f"{where}: the same value in all rows for training, nothing to learn")
    for code, label in enumerate(target.labels):
        if not (learned == code).any():
            raise DataError(
                f"{where}: class {label!r} has no row for training (expected rows of each class)"
            )


def _divide_at_random(codes: NDArray[Any], shares: Mapping[int, float]) -> NDArray[np.int64]:
    """Returns a part for each row; at least one row of each class for each part."""
    generator = np.random.default_rng(USER_SEED)
    parts = np.full(len(codes), _TRAIN, np.int64)
    for code in range(int(codes.max()) + 1):
        rows = generator.permutation(np.flatnonzero(codes == code))
        end = len(rows)
        for part in (_TEST, _VALIDATION):
            if part in shares and end > 1:
                size = min(max(1, round(shares[part] * len(rows))), end - 1)
                parts[rows[max(0, end - size) : end]] = part
                end -= size
    return parts


def _divide_by_time(
    times: NDArray[np.float64], shares: Mapping[int, float], where: str
) -> NDArray[np.int64]:
    """Returns a part for each row: the latest for the test, those before for validation."""
    moments, codes, counts = np.unique(times, return_inverse=True, return_counts=True)
    if len(moments) <= len(shares):
        raise DataError(
            f"{where}: {len(moments)} different times (expected at least {len(shares) + 1})"
        )
    # A time belongs where the middle of its rows falls, but each part has at least one.
    middles = (np.cumsum(counts) - counts / 2) / counts.sum()
    parts_of_moments = np.full(len(moments), _TRAIN, np.int64)
    bound, last = 1.0, len(moments)
    for number, part in enumerate(sorted(shares, reverse=True)):
        bound -= shares[part]
        earlier_parts = len(shares) - number
        first = min(max(int(np.searchsorted(middles, bound)), earlier_parts), last - 1)
        parts_of_moments[first:last] = part
        last = first
    return parts_of_moments[codes]


def _divide_groups(
    groups: Sequence[str], targets: NDArray[Any], shares: Mapping[int, float], where: str
) -> NDArray[np.int64]:
    """Returns a part for each row, the same for all rows of a group.

    Of many random divisions it takes the one whose parts are closest to their shares of the rows
    and, in each of them, of each class or of the target's mean.
    """
    names = sorted(set(groups))
    codes, counts = _encode(groups, names)
    if len(names) <= len(shares):
        raise DataError(
            f"{where}: {len(names)} different groups (expected at least {len(shares) + 1})"
        )
    if targets.dtype == np.int64:
        sums = np.zeros((len(names), int(targets.max()) + 1))
        np.add.at(sums, (codes, targets), 1)
    else:
        traits = (targets - targets.mean(axis=0)) / np.maximum(targets.std(axis=0), 1e-30)
        sums = np.zeros((len(names), traits.shape[1]))
        np.add.at(sums, codes, traits)
    whole = {**shares, _TRAIN: 1 - sum(shares.values())}
    generator = np.random.default_rng(USER_SEED)
    best, best_error = np.zeros(len(names), np.int64), np.inf
    for _ in range(min(_GROUP_DIVISIONS, max(_MIN_DIVISIONS, _SUMMED_CELLS // sums.size))):
        order = generator.permutation(len(names))
        middles = (np.cumsum(counts[order]) - counts[order] / 2) / counts.sum()
        bounds = np.cumsum([whole[part] for part in sorted(whole)])[:-1]
        parts = np.empty(len(names), np.int64)
        parts[order] = np.array(sorted(whole))[np.searchsorted(bounds, middles)]
        error = _division_error(parts, counts, sums, whole)
        if error < best_error:
            best, best_error = parts, error
    if not np.isfinite(best_error):
        raise DataError(f"{where}: {len(names)} groups are too few or too unequal to be divided")
    return best[codes]


def _division_error(
    parts: NDArray[np.int64],
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
    shares: Mapping[int, float],
) -> float:
    """How far parts are from their shares; infinite if one of them is empty.

    Args:
        parts: of each group.
        counts: the rows of each group.
        sums: over the rows of each group, of each class or of the standardised targets.
        shares: of each part.
    """
    error = 0.0
    scale = np.maximum(np.abs(sums).sum(axis=0), 1e-30)
    for part, share in shares.items():
        mine = parts == part
        if not mine.any():
            return np.inf
        error += abs(counts[mine].sum() / counts.sum() - share)
        of_part = sums[mine].sum(axis=0)
        error += float(np.abs((of_part - share * sums.sum(axis=0)) / scale).mean())
        if not of_part.all():  # a class without a row in this part
            error += 1.0
    return error


def _check_groups(groups: Sequence[str], parts: NDArray[np.int64], where: str) -> None:
    """Checks that no group has rows in two of the chosen parts."""
    part_of_group: dict[str, int] = {}
    for group, part in zip(groups, parts.tolist(), strict=True):
        other = part_of_group.setdefault(group, part)
        if other != part:
            names = sorted(_PART_TITLES[one] for one in (other, part))
            raise DataError(
                f"{where}: group {group!r} has rows in {' and '.join(names)} (expected in one part)"
            )
