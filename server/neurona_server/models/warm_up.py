"""The first runs of a model: they make it quick, and show what a run costs."""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from neurona_protos.prediction_pb2 import DataType, Tensor
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, to_array
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import InvalidArgumentError, LoadError
from neurona_server.models.batching_check import Run
from neurona_server.models.repository.settings import WarmUpInput, WarmUpSample
from neurona_server.models.signature import Signature, TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs

log = logging.getLogger(__name__)

MOST_BYTES = 256 << 20
"""Of a file with the values of an input."""


def run_samples(
    model: str, samples: Sequence[WarmUpSample], signature: Signature, run: Run
) -> None:
    """Raises LoadError when one does not fit the model, or the model fails on it."""
    for sample in samples:
        where = f"its warm-up sample {sample.name!r}"
        try:
            inputs = {name: _make(name, one) for name, one in sample.inputs.items()}
            described = {name: (one.dtype, one.shape) for name, one in sample.inputs.items()}
            signature.check(described)
        except (InvalidArgumentError, TensorError) as error:
            raise LoadError(f"{where} cannot be run: {error}") from error
        try:
            for _ in range(sample.count):
                run(inputs)
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            log.exception("%s: %s fails", model, where)
            raise LoadError(f"{where} fails; the server's log says why") from error


def _make(name: str, one: WarmUpInput) -> Array:
    if one.file is not None:
        return _read(name, one)
    if one.random:
        return make_inputs([TensorSpec(name, one.dtype, one.shape)], 1, 1)[name]
    if one.dtype == DataType.DATA_TYPE_STRING:
        return np.full(one.shape, "", object)
    return np.zeros(one.shape, NUMPY_DTYPES[one.dtype])


def _read(name: str, one: WarmUpInput) -> Array:
    """The bytes of a file, laid out like those of a Tensor: of one row, which all rows have
    then, or of all rows."""
    assert one.file is not None  # noqa: S101  for the type alone
    try:
        with one.file.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise LoadError(
            f"the warm-up file {one.file.name!r} cannot be read: {error.strerror}"
        ) from error
    if len(data) > MOST_BYTES:
        raise LoadError(f"the warm-up file {one.file.name!r} has more than {MOST_BYTES} bytes")
    try:
        return to_array(Tensor(name=name, dtype=one.dtype, shape=one.shape, data=data))
    except TensorError:
        if one.rows <= 1:
            raise
    row = to_array(Tensor(name=name, dtype=one.dtype, shape=(1, *one.shape[1:]), data=data))
    return np.repeat(row, one.rows, axis=0)


def warm_up(
    inputs: Sequence[TensorSpec], run: Callable[[Inputs], Outputs], batcher: Batcher
) -> bool:
    """Runs each batch size and has the batcher learn what it costs.

    False when made-up inputs do not suit the model: it learns from its first requests then.
    """
    for size in FREE_SIZES:

        def time_run(rows: int, size: int = size) -> float:
            made = make_inputs(inputs, rows, size)
            started = time.perf_counter()
            run(made)
            return time.perf_counter() - started

        try:
            one = make_inputs(inputs, 1, size)
            group = tuple([array.shape[1:] for array in one.values()])
            batcher.cost_model.measure(time_run, group)
            batcher.padding.measure(time_run, batcher.cost_model.seconds)
        except Exception as error:  # this size does not suit the model; another one may
            log.debug("cannot warm up with free axes of %d: %s", size, error)
        else:
            batcher.tune()
            return True
    return False
