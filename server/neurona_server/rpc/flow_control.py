"""Flow control of streams, by the bytes of responses that a stream has outstanding."""

import math
from weakref import WeakKeyDictionary

from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.batch import RowSlice
from neurona_server.batching.request import Outputs
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorSpec

MAX_BYTES = 32 << 20
"""Bytes of one stream's responses, expected or not yet read by the client, from which on no more
of its requests are started or read."""


class StreamWindow:
    """The bytes of a stream's responses that are expected or not yet sent.

    Only the transport's thread uses it.
    """

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0

    def reserve(self, expected_bytes: int) -> None:
        """Reserve the expected bytes of a response."""
        self.bytes += expected_bytes

    def settle(self, expected_bytes: int, actual_bytes: int) -> None:
        """Replace the reserved bytes of a response by its actual ones."""
        self.bytes += actual_bytes - expected_bytes

    def release(self, actual_bytes: int) -> None:
        """Release the bytes of responses that are sent."""
        self.bytes -= actual_bytes

    @property
    def full(self) -> bool:
        return self.bytes >= MAX_BYTES

    @property
    def low(self) -> bool:
        """Whether enough is free to start many requests at once.

        Requests that start one by one would not share runs.
        """
        return self.bytes < MAX_BYTES // 2


ASSUMED_AXIS_SIZE = 1024
"""Elements along an axis of free size, until the first response shows more."""


class ResponseSizeEstimate:
    """Expected bytes per row of responses with all outputs of a model.

    At first they follow from the signature, later from the latest responses.
    """

    def __init__(self, model: Model) -> None:
        self.row_bytes = float(sum([_row_bytes(spec) for spec in model.signature.outputs]))

    def observe(self, outputs: Outputs, response_bytes: int) -> None:
        """Learn from a response: large ones count at once, and their weight decays slowly."""
        rows = outputs.rows if isinstance(outputs, RowSlice) else 1
        row_bytes = response_bytes / rows
        self.row_bytes = max(row_bytes, 0.9 * self.row_bytes + 0.1 * row_bytes)


_estimates: WeakKeyDictionary[Model, ResponseSizeEstimate] = WeakKeyDictionary()


def size_estimate_of(model: Model) -> ResponseSizeEstimate:
    """Return the estimate of a model, which all protocols share."""
    estimate = _estimates.get(model)
    if estimate is None:
        estimate = _estimates[model] = ResponseSizeEstimate(model)
    return estimate


def _row_bytes(spec: TensorSpec) -> int:
    sizes = [size if isinstance(size, int) else ASSUMED_AXIS_SIZE for size in spec.shape[1:]]
    return math.prod(sizes) * NUMPY_DTYPES[spec.dtype].itemsize
