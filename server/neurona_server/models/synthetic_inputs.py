"""Synthetic inputs for a signature, to run a model before its first request.

The file is alone since warm-up, the check of batching and the settings for warm-up use it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Array
from neurona_server.models.signature import TensorSpec

FREE_SIZES = (8, 64, 224)
"""Sizes to try for free axes except axis 0, such as steps, tokens or pixels."""

MAX_ELEMENTS = 1 << 26
"""Limit for one array; five free axes of 224 would exceed any machine's memory."""


RANKS = (2, 1, 3, 4, 0)
"""Numbers of axes to try for inputs without a declared shape."""


class UnsuitableError(Exception):
    """Inputs of this size are not generated."""


def has_free_rows(spec: TensorSpec) -> bool:
    """Return whether its axis 0 may have any size; one without a declared shape may have one."""
    return spec.any_shape or (bool(spec.shape) and not isinstance(spec.shape[0], int))


def suppose_shapes(inputs: Sequence[TensorSpec]) -> Iterator[Sequence[TensorSpec]]:
    """Yield the inputs with a number of axes for those without a declared shape, each in RANKS."""
    if not any(spec.any_shape for spec in inputs):
        yield inputs
        return
    for rank in RANKS:
        yield [
            replace(spec, shape=(None,) * rank, any_shape=False) if spec.any_shape else spec
            for spec in inputs
        ]


def make_inputs(
    inputs: Sequence[TensorSpec], rows: int, free: int, *, positive: bool = False, seed: int = 1
) -> dict[str, Array]:
    """Return small values of the right dtypes and shapes, the same in every call.

    Args:
        inputs: Inputs to generate, all with a shape.
        rows: Size of axis 0 where it is free.
        free: Size of the other free axes.
        positive: Whether floats are between 0.5 and 1.5, instead of normally distributed.
        seed: Chooses the values.

    Raises:
        UnsuitableError: An array would have more than `MAX_ELEMENTS` elements.
    """
    random = np.random.default_rng(seed)
    arrays = {}
    for spec in inputs:
        shape = [size if isinstance(size, int) else free for size in spec.shape]
        if has_free_rows(spec):
            shape[0] = rows
        if math.prod(shape) > MAX_ELEMENTS:
            raise UnsuitableError(f"input {spec.name!r} would have shape {shape}")
        if spec.dtype == DataType.DATA_TYPE_BFLOAT16:
            floats = _random_floats(random, shape, positive=positive).astype(np.float32)
            arrays[spec.name] = (floats.view(np.uint32) >> 16).astype(np.uint16)
        else:
            dtype = NUMPY_DTYPES[spec.dtype]
            arrays[spec.name] = _random_array(random, dtype, shape, positive=positive)
    return arrays


def _random_floats(
    random: np.random.Generator, shape: Sequence[int], *, positive: bool
) -> NDArray[np.float64]:
    values = random.uniform(0.5, 1.5, shape) if positive else random.standard_normal(shape)
    return np.asarray(values)


def _random_array(
    random: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int], *, positive: bool
) -> Array:
    if dtype.kind == "f":
        return _random_floats(random, shape, positive=positive).astype(dtype)
    bits = np.asarray(random.integers(0, 2, shape))  # valid indices, lengths and booleans
    return bits.astype(str).astype(object) if dtype.kind == "O" else bits.astype(dtype)
