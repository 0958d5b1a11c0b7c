"""The first runs of a model: they make it quick, and prove that it can be batched.

A free axis 0 need not be a batch axis: it may be time, and rows of two requests joined
along it would answer each other's questions. So a model is batched only when a run of
two rows gave what two runs of one row gave.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.models.signature import TensorSpec

log = logging.getLogger(__name__)

Run = Callable[[Inputs], Outputs]

FREE_SIZES = (8, 64, 224)
"""Tried in turn for free axes other than axis 0: steps, tokens, pixels."""


def can_batch(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: Run) -> bool:
    """Whether the rows of several requests may share a run, found out by running it."""
    if not inputs or not all(has_free_rows(spec) for spec in [*inputs, *outputs]):
        return False
    for size in FREE_SIZES:
        try:
            return _two_rows_are_two_runs(inputs, run, size)
        except Exception as error:  # this size does not suit the model; another one may
            log.debug("cannot run with free axes of %d: %s", size, error)
    return False


def warm_up(inputs: Sequence[TensorSpec], run: Run, batcher: Batcher) -> bool:
    """Runs each batch size and has the batcher learn what it costs.

    False when made-up inputs do not suit the model: it learns from its first requests then.
    """
    for size in FREE_SIZES:

        def time_run(rows: int, size: int = size) -> float:
            made = make_inputs(inputs, rows, size)
            started = time.perf_counter()
            run(made)
            return time.perf_counter() - started

        one = make_inputs(inputs, 1, size)
        group = tuple([array.shape[1:] for array in one.values()])
        row_bytes = sum([array.nbytes for array in one.values()])
        try:
            batcher.curve.measure(time_run, group, row_bytes)
            batcher.padding.measure(time_run, batcher.curve.seconds)
        except Exception as error:  # as above
            log.debug("cannot warm up with free axes of %d: %s", size, error)
        else:
            batcher.tune()
            return True
    return False


def has_free_rows(spec: TensorSpec) -> bool:
    return bool(spec.shape) and not isinstance(spec.shape[0], int)


def make_inputs(inputs: Sequence[TensorSpec], rows: int, free: int) -> dict[str, Array]:
    """Small made-up values of the right dtypes and shapes, the same at every call."""
    random = np.random.default_rng(1)
    arrays = {}
    for spec in inputs:
        shape = [size if isinstance(size, int) else free for size in spec.shape]
        if has_free_rows(spec):
            shape[0] = rows
        arrays[spec.name] = _values(random, NUMPY_DTYPES[spec.dtype], shape)
    return arrays


def _values(random: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    ones = random.integers(0, 2, shape)  # valid as indices, lengths and truths
    return ones.astype(str).astype(object) if dtype.kind == "O" else ones.astype(dtype)


def _two_rows_are_two_runs(inputs: Sequence[TensorSpec], run: Run, free: int) -> bool:
    both = make_inputs(inputs, 2, free)
    first = run({name: array[:1] for name, array in both.items()})
    second = run({name: array[1:] for name, array in both.items()})
    try:
        together = run(both)
    except Exception as error:
        log.debug("one row runs, two do not: %s", error)
        return False
    return all(
        joint.shape == (2, *one.shape[1:])
        and one.shape[:1] == two.shape[:1] == (1,)
        and _equal(joint, np.concatenate([one, two]))
        for joint, one, two in zip(together, first, second, strict=True)
    )


def _equal(left: Array, right: Array) -> bool:
    if left.dtype.kind != "f":
        return bool(np.array_equal(left, right))
    return bool(np.allclose(left, right, rtol=1e-3, atol=1e-4, equal_nan=True))
