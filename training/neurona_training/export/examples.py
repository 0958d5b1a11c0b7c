"""An example of each input for those who try a model: a row that looks like the training data.

It stands alone since it reads the data, where `metadata` only describes them. Of a table it is a
typical row, never one of the file: medians, and the most frequent text of each column. Of series,
texts and sounds it is the first of the test part.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import LENGTHS, Dataset, Input, Split

MAX_EXAMPLE_CHARACTERS = 32 << 10
"""Of the JSON of one example; longer ones are left out."""


def example_of(described: Input, data: Dataset) -> str:
    """Writes one sample of an input as JSON, "" for images and for what is too long.

    Args:
        described: one of `data.inputs`.
        data: in the caller's view.
    """
    if data.kind == "images":
        return ""
    index = data.inputs.index(described)
    if data.kind == "sequences":
        sample = _first_sequence(described, index, data.test)
    else:
        sample = _typical_row(described, data.train.arrays[index])
    text = json.dumps(_to_json(sample, described), ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= MAX_EXAMPLE_CHARACTERS else ""


def _first_sequence(described: Input, index: int, split: Split) -> NDArray[Any]:
    sample: NDArray[Any] = np.asarray(split.arrays[index][0])
    if split.lengths is not None and described.name != LENGTHS.name and sample.ndim:
        sample = sample[: split.lengths[0]]
    return sample


def _typical_row(described: Input, rows: NDArray[Any]) -> NDArray[Any]:
    if described.categories:
        codes = np.asarray(rows, np.int64).reshape(len(rows), -1)
        counts = [np.bincount(column, minlength=1).argmax() for column in codes.T]
        return np.array(counts, np.int64).reshape(rows.shape[1:])
    columns = rows.reshape(len(rows), -1).T
    medians = [_median(column) for column in columns]
    return np.array(medians, np.float64).reshape(rows.shape[1:])


def _median(column: NDArray[Any]) -> float:
    """The lower median, which is a value of the column; NaN if all are missing."""
    values = np.sort(column[np.isfinite(column)])
    return float(values[(len(values) - 1) // 2]) if len(values) else math.nan


def _to_json(sample: NDArray[Any], described: Input) -> Any:
    if sample.ndim:
        return [_to_json(part, described) for part in sample]
    if described.categories:
        code = int(sample)
        return described.categories[code] if code < len(described.categories) else ""
    number = float(sample)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) else float(f"{number:.6g}")
