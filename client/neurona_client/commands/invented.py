"""Inputs that a model's description allows, for whoever has none at hand."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from neurona_protos.tensors import NUMPY_DTYPES

if TYPE_CHECKING:
    from neurona_client.descriptions import Description, TensorSpec
    from neurona_client.inputs import Inputs

VARIANTS = 16
"""Different requests, which take turns."""

_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)")


def invented(described: "Description", rows: int, steps: int) -> "list[Inputs]":
    """rows: along the batch axis.  steps: along any other axis that is free. The same numbers
    at each call. Numbers are in the range that the input's unit names, else from 0 to 1;
    whole ones without a range are 0, which every table has."""
    random = np.random.default_rng(0)
    needed = [one for one in described.inputs if not one.optional]
    return [
        {one.name: _tensor(one, _shape(one, rows, steps), random) for one in needed}
        for _ in range(VARIANTS)
    ]


def _shape(spec: "TensorSpec", rows: int, steps: int) -> tuple[int, ...]:
    free = [rows if place == 0 else steps for place in range(len(spec.shape))]
    return tuple(own if size < 0 else size for own, size in zip(free, spec.shape, strict=True))


def _tensor(spec: "TensorSpec", shape: tuple[int, ...], random: np.random.Generator) -> Any:
    if spec.dtype == "STRING":
        return np.full(shape, "a", dtype=object)
    if spec.dtype == "BOOL":
        return random.random(shape) < 0.5
    found = _RANGE.search(spec.unit)
    whole = "INT" in spec.dtype
    low, high = (float(found[1]), float(found[2])) if found else (0.0, 0.0 if whole else 1.0)
    values = random.uniform(low, high, shape)
    if spec.dtype == "BFLOAT16":
        return values.astype(np.float32)
    return (np.rint(values) if whole else values).astype(NUMPY_DTYPES[spec.number])
