"""Rows that their user has divided into training, validation and test.

It is alone because files in folders and arrays in a file are divided in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from neurona_training.data.splits import TEST, VALIDATION, RowIndices, Target
from neurona_training.errors import DataError

_TITLES = (("train", "training"), ("validation", "validation"), ("test", "the test"))
_SEED = 1957  # of rows that are taken from the training part, the same on each call


def divide(
    target: Target, parts: Sequence[str], where: str
) -> tuple[RowIndices, RowIndices, RowIndices]:
    """Returns the rows for training, validation and test.

    A part that no row has is taken from the training rows, of each class in proportion.

    Args:
        target: of all rows.
        parts: "train", "validation" or "test" for each row.
        where: file or folder, for errors.

    Raises:
        DataError: no rows for training, or none of a class.
    """
    names = np.array(parts)
    train, validation, test = (np.flatnonzero(names == part) for part, _ in _TITLES)
    if not len(test):
        train, test = _take_from(train, target, TEST)
    if not len(validation):
        train, validation = _take_from(train, target, VALIDATION / (1 - TEST))
    counts = np.bincount(_codes(target)[train], minlength=max(1, len(target.labels)))
    if not counts.all():
        name = f"class {target.labels[int(counts.argmin())]!r}" if target.labels else "the data"
        raise DataError(f"{where}: {name} has nothing for training (expected some)")
    return train, validation, test


def describe_division(parts: Sequence[str]) -> str:
    """Says how many rows each part has, and which is taken from training."""
    counts = Counter(parts)
    texts = [f"{counts[part]:,} for {title}" for part, title in _TITLES if counts[part]]
    missing = [title for part, title in _TITLES if not counts[part]]
    taken = f"; those for {' and '.join(missing)} taken from the first" if missing else ""
    return f"divided by their user: {', '.join(texts)}{taken}"


def _take_from(rows: RowIndices, target: Target, share: float) -> tuple[RowIndices, RowIndices]:
    """Divides rows into those that remain and a share of each class, at least one."""
    generator = np.random.default_rng(_SEED)
    codes = _codes(target)[rows]
    by_class = [generator.permutation(rows[codes == code]) for code in np.unique(codes)]
    moved = [one[: max(1, round(share * len(one)))] for one in by_class]
    remaining = [one[len(part) :] for one, part in zip(by_class, moved, strict=True)]
    return np.sort(np.concatenate(remaining)), np.sort(np.concatenate(moved))


def _codes(target: Target) -> RowIndices:
    """The class of each row; 0 for all rows of a regression."""
    if target.labels:
        return target.targets.astype(np.int64)
    return np.zeros(len(target.targets), np.int64)
