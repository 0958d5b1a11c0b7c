"""The best classes of each row of an output, ranked on the host or on a device.

The best class comes first; equal values are in the order of their classes. A device that has
computed the values of many classes can rank them itself, and return the best ones only: then a
`RankedRows` takes the place of the array.
"""

import numpy as np

from neurona_server.batching.request import Array

MIN_SELECTED_KEYS = 1024
"""Keys from which on it pays to select the first of each row and sort only these. On a CPU, 5 of
1,000 keys of 32 rows take 0.05 ms so, and 2 ms if all are sorted."""


def rank_rows(keys: Array, count: int) -> Array:
    """Return the columns of the `count` smallest keys of each row, the smallest first.

    Args:
        keys: Numbers, shape (rows, columns); NaN counts as larger than all others.
        count: How many; more than there are columns returns all.

    Returns:
        Columns, shape (rows, count); those of equal keys are in ascending order.
    """
    if keys.size < MIN_SELECTED_KEYS or not 0 < 4 * count <= keys.shape[1]:
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
