"""Synthetic inputs for a signature, to run a model before its first request.

The file is alone since warm-up, the check of batching and the settings for warm-up use it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Array
from neurona_server.models.signature import TensorSpec

FREE_SIZES = (8, 64, 224)
"""Sizes to try for free axes except axis 0, such as steps, tokens or pixels."""

MAX_ELEMENTS = 1 << 26
"""Limit for one array; five free axes of 224 would exceed any machine's memory."""


class UnsuitableError(Exception):
    """Inputs of this size are not generated."""


def has_free_rows(spec: TensorSpec) -> bool:
    return bool(spec.shape) and not isinstance(spec.shape[0], int)


def make_inputs(inputs: Sequence[TensorSpec], rows: int, free: int) -> dict[str, Array]:
    """Return small values of the right dtypes and shapes, the same in every call.

    Args:
        inputs: Inputs to generate.
        rows: Size of axis 0 where it is free.
        free: Size of the other free axes.

    Raises:
        UnsuitableError: An array would have more than `MAX_ELEMENTS` elements.
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
            arrays[spec.name] = _random_array(random, NUMPY_DTYPES[spec.dtype], shape)
    return arrays


def _random_array(random: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    bits = random.integers(0, 2, shape)  # 0 and 1 are valid indices, lengths and booleans
    return bits.astype(str).astype(object) if dtype.kind == "O" else bits.astype(dtype)
