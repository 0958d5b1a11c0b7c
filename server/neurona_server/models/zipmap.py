"""Class probabilities that scikit-learn's exporters give as a list of maps, as a tensor."""

from collections.abc import Mapping, Sequence

import numpy as np

from neurona_server.batching.request import Array

TYPES = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")


def is_zipped(kind: str) -> bool:
    """Whether an output of this ONNX type is what a ZipMap node gives."""
    return kind in TYPES


def unzip(rows: Sequence[Mapping[int | str, float]]) -> tuple[tuple[str, ...], Array]:
    """The labels, and the probabilities as float32 of shape (rows, classes).

    Every row has the same keys in the same order: the labels that the node was made with.
    """
    labels = tuple(rows[0]) if rows else ()
    values = np.array([list(row.values()) for row in rows], np.float32)
    return tuple(map(str, labels)), values.reshape(len(rows), len(labels))
