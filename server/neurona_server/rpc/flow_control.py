"""Answers that a stream's reader has not taken: how many bytes they are, and will be."""

import math
from weakref import WeakKeyDictionary

from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.batch import RowSlice
from neurona_server.batching.request import Outputs
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorSpec

FREE = 1024
"""Elements along an axis of free size, for all that is known before the first answer."""


class ResponseSizeEstimate:
    """Bytes of a row of a model's outputs: what they had lately; at first, what its signature
    says."""

    def __init__(self, model: Model) -> None:
        self.row = float(sum([_row_bytes(spec) for spec in model.signature.outputs]))

    def observe(self, outputs: Outputs, size: int) -> None:
        """An answer with all of them has so many bytes. Large ones count at once, and are
        forgotten slowly."""
        row = size / outputs.rows if isinstance(outputs, RowSlice) else float(size)
        self.row = max(row, 0.9 * self.row + 0.1 * row)


def size_estimate_of(model: Model) -> ResponseSizeEstimate:
    """The one of a model, which all protocols share."""
    sizes = _sizes.get(model)
    if sizes is None:
        sizes = _sizes[model] = ResponseSizeEstimate(model)
    return sizes


_sizes: WeakKeyDictionary[Model, ResponseSizeEstimate] = WeakKeyDictionary()


def _row_bytes(spec: TensorSpec) -> int:
    sizes = [size if isinstance(size, int) else FREE for size in spec.shape[1:]]
    return math.prod(sizes) * NUMPY_DTYPES[spec.dtype].itemsize


MAX_BYTES = 32 << 20
"""Of the answers of one stream that wait for the reader and those that are expected: then nothing
more of it is begun or read."""


class StreamWindow:
    """For the transport's thread alone."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def reserve(self, expected: int) -> None:
        """An answer will come, of so many bytes as far as one can tell."""
        self._bytes += expected

    def settle(self, expected: int, size: int) -> None:
        """It waits, and has so many."""
        self._bytes += size - expected

    def release(self, size: int) -> None:
        """It waits no more."""
        self._bytes -= size

    @property
    def full(self) -> bool:
        return self._bytes >= MAX_BYTES

    @property
    def low(self) -> bool:
        """So much has gone that it is worth it to begin more: single ones would not share runs."""
        return self._bytes < MAX_BYTES // 2
