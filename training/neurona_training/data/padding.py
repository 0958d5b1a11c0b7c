"""Sequences of different lengths as one array."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def padded(
    sequences: Sequence[NDArray[Any]], filler: float = 0
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Rows padded at their end to the longest one, and how many steps are each row's own.

    sequences: (time,) or (time, features), all of one type; at least one.
    """
    lengths = np.array([len(one) for one in sequences], np.int32)
    first = sequences[0]
    rows = np.full((len(sequences), lengths.max(), *first.shape[1:]), filler, first.dtype)
    for row, one in zip(rows, sequences, strict=True):
        row[: len(one)] = one
    return rows, lengths
