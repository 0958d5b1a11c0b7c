"""The classification extension: the best classes of each row as text."""

import math
from collections.abc import Sequence

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.request import Array
from neurona_server.errors import InvalidError

MOST = 100_000
"""Results of one output: each is a string that is written by itself, a microsecond or more, in
the thread that answers others too."""


def best_classes(
    name: str,
    array: Array,
    dtype: DataType,
    count: int,
    labels: Sequence[str],
    *,
    batched: bool,
) -> Array:
    """`"<value>:<index>[:<label>]"` of the `count` greatest values of each row, the greatest
    first; of equals, the first comes first, and NaN comes last.

    Shape (rows, count), or (count) without a batch axis; all other axes are one. A value is
    written with as many digits as tell it from every other one of its type.
    Raises InvalidError when there would be too many.
    """
    if dtype == DataType.DATA_TYPE_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    size = math.prod(array.shape[1:]) if batched else array.size
    rows = array.reshape(array.shape[0] if batched else 1, size)
    count = min(count, size)
    if len(rows) * count > MOST:
        raise InvalidError(
            f"output {name!r}: {len(rows)} times {count} classes; expected at most {MOST} results"
        )
    # Turned round without an overflow: unsigned numbers have no negative, a minimum neither.
    keys = -rows if rows.dtype.kind == "f" else ~rows
    order = np.argsort(keys, axis=1, kind="stable")[:, :count]
    texts = np.empty(order.shape, dtype=object)
    for row, indices in enumerate(order.tolist()):
        for column, index in enumerate(indices):
            text = f"{rows[row, index]!s}:{index}"
            texts[row, column] = text + f":{labels[index]}" if index < len(labels) else text
    return texts if batched else texts[0]
