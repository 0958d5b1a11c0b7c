"""Cross-validation: the training and validation rows of a data set divided anew.

The test rows stay where they are and are not looked at. Rows that follow each other in time are
divided in time: each fold is validated on what comes after its training rows (R. Hyndman and
G. Athanasopoulos, Forecasting, section 5.10); other rows at random, each class in proportion, and
rows of a group together, of equal times too.

What a table's reader has learned from the original training rows, the medians that fill missing
values and the names of categories, is the same in all folds; scales, quantiles and weights are
those of each fold's own training rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Split
from neurona_training.errors import DataError

_SEED = 1974  # M. Stone, Cross-validatory choice and assessment of statistical predictions


def cross_validation(data: Dataset, folds: int) -> Iterator[Dataset]:
    """Divides the rows that are not for the test into training and validation rows.

    Args:
        data: any data set.
        folds: number of divisions, at least 2.

    Yields:
        The data set with other training and validation rows, `folds` times; each row is in the
        validation rows once (of a series, the rows of the first part never).

    Raises:
        DataError: fewer rows, or rows of a class, than folds; or a fold whose training rows are
            all of one class.
    """
    rows = join_splits(data.train, data.validation, filler=len(data.input.categories))
    for number, (train, validation) in enumerate(_fold_indices(data, rows, folds), start=1):
        if data.is_classification and len(np.unique(rows.targets[train])) < 2:
            raise DataError(
                f"data set {data.name!r} has one class only in the training rows of fold {number} "
                f"of {folds} (expected fewer folds, or more rows or groups of each class)"
            )
        yield dataclasses.replace(
            data,
            train=take_rows(rows, train),
            validation=take_rows(rows, validation),
            source=f"{data.source}, fold {number} of {folds}",
        )


def join_splits(first: Split, second: Split, filler: int = 0) -> Split:
    """Joins the rows of two parts.

    Args:
        first: its rows come first.
        second: of the same data set.
        filler: pads sequences that are shorter than the longest one of the other part.
    """
    inputs = [first.inputs, second.inputs]
    if first.lengths is not None:
        steps = max(array.shape[1] for array in inputs)
        inputs = [_pad_steps(array, steps, filler) for array in inputs]
    lengths = None
    if first.lengths is not None and second.lengths is not None:
        lengths = np.concatenate([first.lengths, second.lengths])
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = np.concatenate([first.groups, second.groups])
    extra_inputs = zip(first.extra_inputs, second.extra_inputs, strict=True)
    return dataclasses.replace(
        first,
        inputs=np.concatenate(inputs),
        targets=np.concatenate([first.targets, second.targets]),
        lengths=lengths,
        extra_inputs=tuple(np.concatenate(pair) for pair in extra_inputs),
        groups=groups,
    )


def take_rows(split: Split, rows: NDArray[np.int64]) -> Split:
    """Returns some rows of a part, in this order."""
    return dataclasses.replace(
        split,
        inputs=split.inputs[rows],
        targets=split.targets[rows],
        lengths=None if split.lengths is None else split.lengths[rows],
        extra_inputs=tuple(array[rows] for array in split.extra_inputs),
        groups=None if split.groups is None else split.groups[rows],
    )


def _fold_indices(
    data: Dataset, rows: Split, folds: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import (
        GroupKFold,
        KFold,
        StratifiedGroupKFold,
        StratifiedKFold,
        TimeSeriesSplit,
    )

    indices = np.arange(len(rows))
    if data.is_series or data.in_time_order:
        # Windows of a series overlap: they share targets. Rows of the same time stay together.
        gap = len(data.values) - 1 if data.is_series else 0
        moments = indices if rows.groups is None else np.unique(rows.groups)
        expected = max(2 * folds, (folds + 1) * (gap + 1))
        if len(moments) < expected:
            raise _too_few_rows(data, len(moments), expected, folds)
        for train, validation in TimeSeriesSplit(folds, gap=gap).split(moments):
            if rows.groups is None:
                yield train, validation
            else:
                yield (
                    np.flatnonzero(np.isin(rows.groups, moments[train])),
                    np.flatnonzero(np.isin(rows.groups, moments[validation])),
                )
        return
    if rows.groups is not None:
        count = len(np.unique(rows.groups))
        if count < folds:
            raise DataError(
                f"data set {data.name!r} has {count} groups outside the test (expected at least "
                f"{folds}, one for each fold)"
            )
        grouped = StratifiedGroupKFold if data.is_classification else GroupKFold
        divider = grouped(folds, shuffle=True, random_state=_SEED)
        yield from divider.split(indices, rows.targets, rows.groups)
        return
    if data.is_classification:
        smallest = int(np.bincount(rows.targets, minlength=len(data.labels)).min())
        if smallest < folds:
            raise DataError(
                f"data set {data.name!r} has a class with {smallest} rows outside the test "
                f"(expected at least {folds}, one for each fold)"
            )
        stratified = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
        yield from stratified.split(indices, rows.targets)
        return
    if len(rows) < 2 * folds:
        raise _too_few_rows(data, len(rows), 2 * folds, folds)
    yield from KFold(folds, shuffle=True, random_state=_SEED).split(indices)


def _too_few_rows(data: Dataset, count: int, expected: int, folds: int) -> DataError:
    what = "different times" if data.in_time_order else "rows"
    return DataError(
        f"data set {data.name!r} has {count} {what} outside the test (expected at least "
        f"{expected} for {folds} folds)"
    )


def _pad_steps(array: NDArray[Any], steps: int, filler: int) -> NDArray[Any]:
    widths = [(0, 0)] * array.ndim
    widths[1] = (0, steps - array.shape[1])
    return np.pad(array, widths, constant_values=filler)
