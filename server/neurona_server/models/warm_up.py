"""The first runs of a model, which load its kernels and measure the cost of a run."""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, decode
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.request import Array
from neurona_server.errors import (
    DeviceLostError,
    DeviceMemoryError,
    InvalidArgumentError,
    LoadError,
)
from neurona_server.models.batching_check import Run
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.sequence_lengths import LengthsInput
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.settings import WarmUpInput, WarmUpSample
from neurona_server.models.signature import Signature, TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs, suppose_shapes
from neurona_server.sequences.cost import SequenceCostModel

log = logging.getLogger(__name__)

LONGER = 8
"""Factor of the steps of sequences that are run to learn what a step costs."""

NO_AXES: Mapping[str, int] = {}

MakeRows = Callable[[int, int], dict[str, Array]]
"""Makes inputs of so many rows and steps."""

MAX_FILE_BYTES = 256 << 20
"""Limit for a file with the values of one input."""


def warm_up(
    signature: Signature,
    run: Run,
    batcher: Batcher,
    lengths: Sequence[LengthsInput] = (),
    time_axes: Mapping[str, int] = NO_AXES,
) -> bool:
    """Run synthetic inputs at each batch size, from which the batcher learns the cost of a run.

    Args:
        signature: Of the model.
        run: Runs it.
        batcher: Learns the cost.
        lengths: Its inputs that hold lengths of sequences: they are all steps.
        time_axes: Of a recurrent model, the axes of steps by input; it runs with more steps, too.

    Returns:
        False if the model rejects synthetic inputs: the batcher learns from requests then.
    """
    for supposed, size in itertools.product(suppose_shapes(signature.inputs), FREE_SIZES):

        def make(
            rows: int, steps: int, supposed: Sequence[TensorSpec] = supposed, size: int = size
        ) -> dict[str, Array]:
            specs = [_with_steps(spec, time_axes.get(spec.name), steps) for spec in supposed]
            arrays = make_inputs(specs, rows, size)
            for one in lengths:
                if one.name in arrays and one.sequences in arrays:
                    arrays[one.name][...] = arrays[one.sequences].shape[one.axis]
            return arrays

        def time_run(rows: int, steps: int = size, make: MakeRows = make) -> float:
            arrays = make(rows, steps)
            started = time.perf_counter()
            try:
                run(arrays)
            except DeviceMemoryError:
                batcher.record_out_of_memory(rows)
                batcher.free_memory()
                raise
            return time.perf_counter() - started

        try:
            group = signature.group(
                {
                    spec.name: (spec.dtype, make(1, size)[spec.name].shape)
                    for spec in signature.inputs
                }
            )
            batcher.cost_model.measure(time_run, group)
            if isinstance(batcher.cost_model, SequenceCostModel):
                _measure_steps(batcher.cost_model, time_run, size)
            batcher.padding.measure(time_run, batcher.cost_model.seconds)
        except DeviceLostError:
            raise
        except Exception as error:  # the model does not support this size, perhaps another one
            if isinstance(error, DeviceMemoryError) and batcher.cost_model.seconds:
                return True  # larger batches do not fit
            log.debug("cannot warm up with free axes of %d: %s", size, error)
        else:
            batcher.tune()
            return True
    return False


def _measure_steps(
    costs: SequenceCostModel, time_run: Callable[[int, int], float], steps: int
) -> None:
    """Learn what more steps cost, by `time_run`, which gets rows and steps."""
    costs.measure_steps(time_run, (steps, LONGER * steps))
    try:
        costs.measure_late_steps(time_run, LONGER * LONGER * steps)
    except DeviceLostError:
        raise
    except Exception as error:  # such as too little memory
        log.debug("cannot measure late steps: %s", error)


def _with_steps(spec: TensorSpec, axis: int | None, steps: int) -> TensorSpec:
    if axis is None:
        return spec
    return replace(spec, shape=(*spec.shape[:axis], steps, *spec.shape[axis + 1 :]))


def choose_run_methods(
    session: Session,
    sizes: Sequence[int],
    lengths: Sequence[LengthsInput],
    cancellation: LoadCancellation,
) -> None:
    """Measure in which way a session on a GPU runs fastest, with synthetic inputs.

    Args:
        session: The session.
        sizes: The batch sizes.
        lengths: Its inputs that hold lengths of sequences: all steps, then half of them.
        cancellation: Ends this early.

    Raises:
        LoadError: It was cancelled.
    """
    for supposed, size in itertools.product(suppose_shapes(session.inputs), FREE_SIZES):

        def make(
            rows: int, seed: int, supposed: Sequence[TensorSpec] = supposed, size: int = size
        ) -> dict[str, Array]:
            arrays = make_inputs(supposed, rows, size, seed=seed)
            for one in lengths:
                if one.name in arrays and one.sequences in arrays:
                    arrays[one.name][...] = max(1, arrays[one.sequences].shape[one.axis] // seed)
            return arrays

        try:
            session.run(make(sizes[0], 1))
        except Exception as error:  # the model does not support this size, perhaps another one
            log.debug("cannot measure methods with free axes of %d: %s", size, error)
        else:
            session.choose_methods(sizes, make, cancellation)
            return


def run_samples(
    model: str, samples: Sequence[WarmUpSample], signature: Signature, run: Run
) -> None:
    """Run the warm-up samples of a model's settings.

    Raises:
        LoadError: A sample does not match the signature, or the model fails on it.
    """
    for sample in samples:
        where = f"its warm-up sample {sample.name!r}"
        try:
            arrays = {name: _make_array(name, tensor) for name, tensor in sample.inputs.items()}
            signature.check(
                {n: (tensor.dtype, tensor.shape) for n, tensor in sample.inputs.items()}
            )
        except (InvalidArgumentError, TensorError) as error:
            raise LoadError(f"{where} cannot be run: {error}") from error
        try:
            for _ in range(sample.count):
                run(arrays)
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            log.exception("%s: %s fails", model, where)
            raise LoadError(f"{where} fails; see the server's log") from error


def _make_array(name: str, tensor: WarmUpInput) -> Array:
    if tensor.file is not None:
        return _read_array(name, tensor)
    if tensor.random:
        return make_inputs([TensorSpec(name, tensor.dtype, tensor.shape)], 1, 1)[name]
    if tensor.dtype == DataType.DATA_TYPE_STRING:
        return np.full(tensor.shape, "", object)
    return np.zeros(tensor.shape, NUMPY_DTYPES[tensor.dtype])


def _read_array(name: str, tensor: WarmUpInput) -> Array:
    """Read a file with the bytes of a Tensor: all rows, or one that is repeated for all rows."""
    assert tensor.file is not None  # noqa: S101  for the type checker
    try:
        with tensor.file.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise LoadError(
            f"the warm-up file {tensor.file.name!r} cannot be read: {error.strerror}"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise LoadError(
            f"the warm-up file {tensor.file.name!r} has more than {MAX_FILE_BYTES} bytes"
        )
    try:
        return decode(name, tensor.dtype, tensor.shape, data)
    except TensorError:
        if tensor.rows <= 1:
            raise
    shape = (1, *tensor.shape[1:])
    row = decode(name, tensor.dtype, shape, data)
    return np.repeat(row, tensor.rows, axis=0)
