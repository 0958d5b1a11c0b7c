"""A digest of a data set, by which a model says on what it was trained.

It is alone because neither the catalogue nor a user's files have a part in it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from neurona_training.data import Dataset

_ROWS_AT_ONCE = 1024


def data_digest(data: Dataset) -> str:
    """Returns the SHA-256 of all rows, inputs and targets, and of their names, in hexadecimal.

    Two data sets with equal rows in the same parts have the same digest, whatever their names
    and files. A text is a number in the rows, so the texts count too.
    """
    categories = [described.categories for described in data.inputs]
    names = (data.labels, data.values, *([categories] if any(categories) else []))
    digest = hashlib.sha256(repr(names).encode())
    for split in (data.train, data.validation, data.test):
        for array in (*split.arrays, split.targets):
            digest.update(f"{array.dtype} {array.shape}".encode())
            for start in range(0, len(array), _ROWS_AT_ONCE):
                digest.update(np.ascontiguousarray(array[start : start + _ROWS_AT_ONCE]).data)
    return digest.hexdigest()
