"""Numbers that float32 does not tell apart.

It is alone because rows and series are rounded in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LARGEST_ERROR = 1e-3  # standard deviations of a column


def describe_rounding(names: Sequence[str], values: NDArray[np.float64]) -> list[str]:
    """Says which columns have numbers that become equal in float32.

    Models take float32, which has 24 bits: integers above 16,777,216, such as 20240331 or
    milliseconds since 1970, may become their neighbours.

    Args:
        names: of the columns.
        values: (rows, columns), finite in float32 or NaN.

    Returns:
        A line for each column that loses integers, or a part of its standard deviation.
    """
    notes = []
    for name, column in zip(names, values.T, strict=True):
        exact = column[~np.isnan(column)]
        rounded = exact.astype(np.float32)
        error = np.abs(exact - rounded)
        if not error.any():
            continue
        are_integers = bool((exact == np.floor(exact)).all())
        if not are_integers and error.max() <= _LARGEST_ERROR * exact.std():
            continue
        before, after = len(np.unique(exact)), len(np.unique(rounded))
        if after < before:
            notes.append(
                f"{name!r}: {before} different numbers are {after} in float32, which models take "
                "(expected a constant subtracted, or dates such as 2024-03-31)"
            )
    return notes
