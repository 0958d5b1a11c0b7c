"""The best classes of each row of an output, ranked on the host or on a device.

The best class comes first; equal values are in the order of their classes. A device that has
computed the values of many classes can rank them itself and return the best ones only: then
`RankedRows` take the place of the array.
"""

from collections.abc import Sequence
from typing import NoReturn, Protocol

import numpy as np

from neurona_server.batching.request import Array, Request

MIN_SELECTED_KEYS = 1024
MIN_SELECTED_COLUMNS = 100
"""Keys, and keys of a row, from which on it pays to select the first of each row and sort only
these. On a CPU, 5 of 1,000 keys of 32 rows take 0.07 ms so, and 1.1 ms if all are sorted; 2 of 10
keys of 128 rows take 0.023 and 0.015 ms."""


class RankedRows:
    """The best classes of each row, in place of an output of shape (rows, classes).

    None of the values that they were chosen from is NaN or infinite.

    Attributes:
        indices: Classes, the best first, shape (rows, count).
        values: Their values, of the output's dtype, shape (rows, count).
        class_count: Number of all classes.
    """

    __slots__ = ("_totals", "class_count", "indices", "values")

    ndim = 2

    def __init__(
        self, indices: Array, values: Array, class_count: int, totals: Array | None = None
    ) -> None:
        """Make them.

        Args:
            indices: See the attribute.
            values: See the attribute.
            class_count: See the attribute.
            totals: Of logits, the sum of exp(value - best value) over all classes of each row,
                shape (rows, 1).
        """
        self.indices = indices
        self.values = values
        self.class_count = class_count
        self._totals = totals

    @property
    def shape(self) -> tuple[int, int]:
        """That of the whole output."""
        return len(self.values), self.class_count

    def __getitem__(self, rows: slice) -> "RankedRows":
        totals = None if self._totals is None else self._totals[rows]
        return RankedRows(self.indices[rows], self.values[rows], self.class_count, totals)

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("only the best classes are here (expected a reader that takes RankedRows)")

    def softmax(self) -> "RankedRows":
        """Return the best classes of logits with probabilities as values, in float32 or better.

        Different logits may have equal probabilities, whose classes then are in ascending order.
        """
        if self._totals is None:
            raise ValueError("ranked rows have no totals (expected them for logits)")
        values = probabilities_of(self.values, self._totals)
        order = np.lexsort((self.indices, -values))
        return RankedRows(
            np.take_along_axis(self.indices, order, axis=1),
            np.take_along_axis(values, order, axis=1),
            self.class_count,
        )


def probabilities_of(values: Array, totals: Array) -> Array:
    """Return the probabilities of logits, in float32 or better.

    Args:
        values: Some of each row, the best among them, shape (rows, count).
        totals: See `RankedRows`.
    """
    values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
    return np.asarray(np.exp(values - values.max(axis=1, keepdims=True)) / totals)


def ranked_rows(output: object) -> RankedRows | None:
    """Return an output of a run if it is ranked, which the type `Outputs` does not say."""
    return output if isinstance(output, RankedRows) else None


class RankingRun(Protocol):
    """A run that can return the best classes of the answer in place of its values."""

    def rank(self, count: int) -> None:
        """Have the device rank the answer, if it can; `count` classes of each row are wanted."""


class DeviceRanking:
    """When the device ranks the answer: for large batches of which nobody wants all values."""

    def __init__(self, min_rows: int, max_count: int) -> None:
        """Decide so for batches of `min_rows` and up to `max_count` classes of a row."""
        self.min_rows = min_rows
        self.max_count = max_count

    def count_for(self, requests: Sequence[Request], padded_rows: int) -> int:
        """Return how many classes of each row a run is to return; 0 for all values."""
        if padded_rows < self.min_rows:
            return 0
        counts = [request.ranked_classes for request in requests]
        most = max(counts)
        return most if min(counts) and most <= self.max_count else 0


def rank_rows(keys: Array, count: int) -> Array:
    """Return the columns of the `count` smallest keys of each row, the smallest first.

    Args:
        keys: Numbers, shape (rows, columns); NaN counts as larger than all others.
        count: How many; more than there are columns returns all.

    Returns:
        Columns, shape (rows, count); those of equal keys are in ascending order.
    """
    columns = keys.shape[1]
    if (
        columns < MIN_SELECTED_COLUMNS
        or keys.size < MIN_SELECTED_KEYS
        or not 0 < 4 * count <= columns
        or (keys.dtype.kind in "iu" and keys.dtype.itemsize <= 2)  # sorted by their digits
    ):
        return np.argsort(keys, axis=1, kind="stable")[:, :count]
    last = np.partition(keys, count - 1, axis=1)[:, count - 1 : count]
    selected = keys <= last
    exact = np.count_nonzero(selected, axis=1) == count
    if exact.all():
        return _sort_selected(keys, selected, count)
    ranked = np.empty((len(keys), count), np.intp)
    ranked[exact] = _sort_selected(keys[exact], selected[exact], count)
    # Further keys equal the last one, or that is NaN.
    ranked[~exact] = np.argsort(keys[~exact], axis=1, kind="stable")[:, :count]
    return ranked


def _sort_selected(keys: Array, selected: Array, count: int) -> Array:
    columns = (np.flatnonzero(selected) % keys.shape[1]).reshape(len(keys), count)
    order = np.argsort(np.take_along_axis(keys, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)
