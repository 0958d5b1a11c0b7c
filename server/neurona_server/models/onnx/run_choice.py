"""Chooses in which way the batches of a session on a GPU run, before it serves.

It makes what each way needs (see run_methods.py), a second session for CUDA graphs among that, and
says in one line of the log what was measured.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Inputs, Outputs
from neurona_server.errors import DeviceLostError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx import loading, runtime
from neurona_server.models.onnx.bindings import (
    BoundRunner,
    GraphTensor,
    MemoryAllocator,
    graph_tensors,
)
from neurona_server.models.onnx.cuda_graphs import GraphRunner
from neurona_server.models.onnx.devices import Device
from neurona_server.models.onnx.external_data import find_external
from neurona_server.models.onnx.host_values import find_host_values
from neurona_server.models.onnx.model_file import read_outline
from neurona_server.models.onnx.provider_options import allows_cuda_graphs
from neurona_server.models.onnx.run_failures import FailureKind, classify_failure
from neurona_server.models.onnx.run_methods import MakeInputs, RunMethod, RunMethods, RunSlot
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.signature import TensorSpec

log = logging.getLogger(__name__)

GRAPH_SECONDS = 0.02
"""Longest run of the fewest rows for which graphs are tried: they save the time to launch kernels,
which is some microseconds each, and need a second session."""

GRAPH_MEMORY_RATIO = 8
"""The device must have this many times the size of the model, its external data included, free to
load it again for graphs."""


_abandoned: list[RunMethods | None] = []
"""What was measured on devices that are lost, which is kept until the process ends: see
`Session.abandon`."""


@dataclass(frozen=True)
class Candidate:
    """A session whose batches may run in another way than the ordinary one."""

    session: onnxruntime.InferenceSession
    path: Path
    options: RuntimeOptions
    device: Device
    specs: Sequence[TensorSpec]
    """Its inputs and outputs that are tensors."""

    plain: Callable[[Inputs, onnxruntime.RunOptions], Outputs]
    """Runs it in the ordinary way."""

    slots: Sequence[RunSlot]
    """One for each run that may be in flight."""


def choose(
    candidate: Candidate,
    memory: MemoryAllocator,
    sizes: Sequence[int],
    make_inputs: MakeInputs,
    cancellation: LoadCancellation,
) -> RunMethods | None:
    """Measure the ways to run a session; None if only the ordinary one is left.

    Args:
        candidate: The session.
        memory: Of its device.
        sizes: The numbers of rows to measure, in ascending order.
        make_inputs: Makes inputs for them that the model accepts.
        cancellation: Ends this early.

    Raises:
        LoadError: It was cancelled.
        Exception: The device is lost.
    """
    where = f"{candidate.path} on {candidate.device.label}"
    methods: RunMethods | None = None
    try:
        memory.prepare_thread()
        tensors = _find_tensors(candidate, candidate.session, memory)
        if tensors is None:
            return None
        runners = {RunMethod.BOUND: BoundRunner(candidate.session, memory, *tensors)}
        methods = RunMethods(
            where, candidate.plain, runners, candidate.slots, memory.prepare_thread
        )
        graphs = _find_graphs(candidate, memory, sizes, make_inputs, cancellation)
        if graphs is not None:
            methods.add(RunMethod.GRAPH, graphs)
        methods.choose(sizes, make_inputs, cancellation.raise_if_cancelled)
    except Exception as error:  # ONNX Runtime has a class for each status; serving goes on
        if isinstance(error, DeviceLostError) or classify_failure(error) is FailureKind.DEVICE_LOST:
            _abandoned.append(methods)
            raise
        cancellation.raise_if_cancelled()
        log.warning("%s: runs are not bound: %s", where, str(error).partition("\n")[0])
        return None
    log.info(
        "%s: runs %s (ms by rows, of a run alone/of each of %d in flight: %s)",
        *(where, methods.describe(), len(candidate.slots)),
        methods.describe_times() or "not measured",
    )
    return methods if methods.runners else None


def _find_graphs(
    candidate: Candidate,
    memory: MemoryAllocator,
    sizes: Sequence[int],
    make_inputs: MakeInputs,
    cancellation: LoadCancellation,
) -> GraphRunner | None:
    """Load the model a second time, for CUDA graphs, if it may have them and they may pay."""
    path, options = candidate.path, candidate.options
    if (
        candidate.session.get_providers()[0] != runtime.CUDA
        or options.run_method == "bound"
        or not allows_cuda_graphs(options.provider_options)
        or options.gpu_memory_bytes  # for one session
        or "gpu_mem_limit" in options.provider_options.get("cuda", {})
        or (host_values := find_host_values(path)) is None
        or GRAPH_MEMORY_RATIO * _count_bytes(path) > memory.free_bytes()
    ):
        return None
    seconds = []
    for _ in range(2):  # the first one prepares the device
        started = time.perf_counter()
        candidate.plain(make_inputs(sizes[0], 1), onnxruntime.RunOptions())
        seconds.append(time.perf_counter() - started)
    if min(seconds) > GRAPH_SECONDS:
        return None
    try:
        session = loading.load_with_cuda_graphs(
            path, options, cancellation, candidate.device.number
        )
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        cancellation.raise_if_cancelled()
        log.info("%s: no CUDA graphs: %s", path, str(error).partition("\n")[0])
        return None
    tensors = _find_tensors(candidate, session, memory)
    if tensors is None or session.get_providers()[0] != runtime.CUDA:
        return None
    return GraphRunner(session, memory, *tensors, host_values=host_values)


def _count_bytes(path: Path) -> int:
    outline = read_outline(path)
    files = {*find_external(path, outline.external).values()}
    return outline.size + sum([file.stat().st_size for file in files])


def _find_tensors(
    candidate: Candidate, session: onnxruntime.InferenceSession, memory: MemoryAllocator
) -> tuple[list[GraphTensor], list[GraphTensor]] | None:
    types = {
        spec.name: (int(spec.dtype), np.dtype(NUMPY_DTYPES[spec.dtype]))
        for spec in candidate.specs
        if spec.dtype != DataType.DATA_TYPE_STRING
    }
    return graph_tensors(session, types, memory)
