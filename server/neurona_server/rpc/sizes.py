"""How large the answers of a model are, before they are there."""

import math

from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.batch import Part
from neurona_server.batching.request import Outputs
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorSpec

FREE = 1024
"""Elements along an axis of free size, for all that is known before the first answer."""


class Sizes:
    """Bytes of a row of a model's outputs: what they had lately; at first, what its signature
    says."""

    def __init__(self, model: Model) -> None:
        self.row = float(sum([_row_bytes(spec) for spec in model.signature.outputs]))

    def learn(self, outputs: Outputs, size: int) -> None:
        """An answer with all of them has so many bytes. Large ones count at once, and are
        forgotten slowly."""
        row = size / outputs.rows if isinstance(outputs, Part) else float(size)
        self.row = max(row, 0.9 * self.row + 0.1 * row)


def sizes_of(model: Model) -> Sizes:
    sizes: Sizes | None = model.notes.get(Sizes)
    if sizes is None:
        sizes = model.notes[Sizes] = Sizes(model)
    return sizes


def _row_bytes(spec: TensorSpec) -> int:
    sizes = [size if isinstance(size, int) else FREE for size in spec.shape[1:]]
    return math.prod(sizes) * NUMPY_DTYPES[spec.dtype].itemsize
