"""Made-up inputs for a signature, to run a model before anybody asks it anything."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Array
from neurona_server.models.signature import TensorSpec

FREE_SIZES = (8, 64, 224)
"""Tried in turn for free axes other than axis 0: steps, tokens, pixels."""

MAX_ELEMENTS = 1 << 26
"""Of one made-up array; five free axes of 224 would be more than a machine has."""


class UnsuitableError(Exception):
    """No inputs of this size are made up."""


def has_free_rows(spec: TensorSpec) -> bool:
    return bool(spec.shape) and not isinstance(spec.shape[0], int)


def make_inputs(inputs: Sequence[TensorSpec], rows: int, free: int) -> dict[str, Array]:
    """Small values of the right dtypes and shapes, the same at every call.

    Raises UnsuitableError when they would be huge.
    """
    random = np.random.default_rng(1)
    arrays = {}
    for spec in inputs:
        shape = [size if isinstance(size, int) else free for size in spec.shape]
        if has_free_rows(spec):
            shape[0] = rows
        if math.prod(shape) > MAX_ELEMENTS:
            raise UnsuitableError(f"input {spec.name!r} would have shape {shape}")
        if spec.dtype == DataType.DATA_TYPE_BFLOAT16:
            floats = random.standard_normal(shape).astype(np.float32)
            arrays[spec.name] = (floats.view(np.uint32) >> 16).astype(np.uint16)
        else:
            arrays[spec.name] = _values(random, NUMPY_DTYPES[spec.dtype], shape)
    return arrays


def _values(random: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    ones = random.integers(0, 2, shape)  # valid as indices, lengths and truths
    return ones.astype(str).astype(object) if dtype.kind == "O" else ones.astype(dtype)
