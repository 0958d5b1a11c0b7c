"""Decides before a model serves whether its device ranks the classes of its answer.

A response with the best classes of many needs a few numbers of each row: so the device that has
computed the values can rank them, in place of a copy of all to the host, which ranks them there.
That pays for large batches of many classes only, so both ways are run and timed, from the largest
batch size down, and their answers compared.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np

from neurona_protos.prediction_pb2 import DataType, Task
from neurona_server.batching.ranking import DeviceRanking, RankedRows, rank_rows, ranked_rows
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.class_ranker import RANKED_TYPES
from neurona_server.models.onnx.session import Session
from neurona_server.models.signature import Signature, TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs, suppose_shapes
from neurona_server.models.task import TaskOutput

log = logging.getLogger(__name__)

DEVICE_KINDS = ("cuda",)
"""Kinds of devices whose memory is not the host's."""

MIN_VALUES = 1 << 16
"""Values of a batch below which nothing is measured: the copy of 256 KB takes less time than the
start of the kernels that rank them."""

MAX_COUNT = 128
"""Classes of a row up to which the device ranks them."""

MIN_GAIN = 0.1
"""Part of the time that ranking on the device must save."""

TOLERANCE = 0.01
"""Relative to the largest value: two runs on a device round differently."""

_MEASURED_COUNT = 5
_MEASURED_RUNS = 3  # of each way, in turn
_BUDGET_SECONDS = 2.0

Run = Callable[[Inputs, int], Outputs]
"""Runs the model; with a number of classes, the device may rank them."""


def find_ranking(
    model: str,
    sessions: Sequence[Session],
    signature: Signature,
    answer: TaskOutput,
    batch_sizes: Sequence[int],
    cancellation: LoadCancellation,
) -> DeviceRanking | None:
    """Return when the device ranks the answer, None if never; the sessions can rank it then.

    Args:
        model: The model, for the log.
        sessions: All of its sessions, whose inputs and outputs have the shapes of requests.
        signature: Its signature.
        answer: Its task.
        batch_sizes: Sizes of its batches.
        cancellation: Ends this early.
    """
    if not _may_rank(sessions, signature, answer):
        return None
    started = time.monotonic()
    try:
        ranking = _measure(model, sessions, signature, answer, batch_sizes, cancellation)
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        cancellation.raise_if_cancelled()
        log.info("%s: its classes are ranked on the host: %s", model, error)
        ranking = None
    if ranking is None:
        for session in sessions:
            session.close_ranker()
    log.debug("%s: measured the ranking in %.1f s", model, time.monotonic() - started)
    return ranking


def _may_rank(sessions: Sequence[Session], signature: Signature, answer: TaskOutput) -> bool:
    if answer.metadata.task != Task.TASK_CLASSIFICATION or not signature.batched:
        return False
    session = sessions[0]
    others = (DataType.DATA_TYPE_STRING, DataType.DATA_TYPE_BFLOAT16)  # have no plain arrays
    tensors = [*session.inputs, *session.optional, *session.outputs]
    return (
        all(one.device.kind in DEVICE_KINDS for one in sessions)
        and session.outputs[answer.index].dtype in RANKED_TYPES
        and not session.class_labels  # of maps
        and not any(spec.dtype in others for spec in tensors)
    )


def _measure(
    model: str,
    sessions: Sequence[Session],
    signature: Signature,
    answer: TaskOutput,
    batch_sizes: Sequence[int],
    cancellation: LoadCancellation,
) -> DeviceRanking | None:
    new_run = sessions[0].runs_of_slots()[0]  # as batches run

    def run(inputs: Inputs, count: int) -> Outputs:
        cancellation.raise_if_cancelled()
        graph_run = new_run()
        if count:
            graph_run.rank(count)
        with cancellation.interrupting(graph_run.terminate):
            return graph_run(inputs)

    make, class_count = _find_inputs(signature, answer.index, run)
    sizes = [size for size in batch_sizes if size * class_count >= MIN_VALUES]
    if not sizes:
        return None
    for session in sessions:  # not before: it takes time and memory of the device
        session.open_ranker(answer.index, logits=answer.softmax)
    smallest, end = 0, time.monotonic() + _BUDGET_SECONDS
    for size in sorted(sizes, reverse=True):
        host, device = _compare(make, size, answer, run)
        if device > (1 - MIN_GAIN) * host:
            break
        smallest = size
        log.info(
            "%s: batches of %d rows rank their %d classes on the device: %.2f ms, on the host "
            "%.2f ms",
            *(model, size, class_count, 1000 * device, 1000 * host),
        )
        if time.monotonic() > end:
            break
    return DeviceRanking(smallest, MAX_COUNT) if smallest else None


def _find_inputs(
    signature: Signature, index: int, run: Run
) -> tuple[Callable[[int, int], Mapping[str, Array]], int]:
    """Return a function that makes inputs of rows and a seed, and the number of classes."""
    error: Exception | None = None
    for supposed, size in itertools.product(suppose_shapes(signature.inputs), FREE_SIZES):

        def make(
            rows: int, seed: int, supposed: Sequence[TensorSpec] = supposed, size: int = size
        ) -> Mapping[str, Array]:
            return make_inputs(supposed, rows, size, seed=seed)

        try:
            return make, run(make(1, 1), 0)[index].shape[1]
        except Exception as raised:  # the model does not support this size, perhaps another one
            error = raised
    raise error or ValueError("no inputs can be made")


def _compare(
    make: Callable[[int, int], Mapping[str, Array]], rows: int, answer: TaskOutput, run: Run
) -> tuple[float, float]:
    """Return the seconds of a batch that the host ranks, and of one that the device ranks.

    The latter are infinite if the answers differ.
    """
    for seed in (1, 2):
        inputs = make(rows, seed)
        values = run(inputs, 0)[answer.index]
        ranked = ranked_rows(run(inputs, _MEASURED_COUNT)[answer.index])
        if ranked is None or not _agree(values, ranked):
            log.info("the ranking of %d rows on the device differs from the host's", rows)
            return 0.0, math.inf
    seconds: tuple[list[float], list[float]] = ([], [])
    for _, count in itertools.product(range(_MEASURED_RUNS), (0, _MEASURED_COUNT)):
        started = time.perf_counter()
        output = run(inputs, count)[answer.index]
        if not count:
            _rank_on_host(output, answer)
        seconds[bool(count)].append(time.perf_counter() - started)
    return median(seconds[0]), median(seconds[1])


def _rank_on_host(values: Array, answer: TaskOutput) -> None:
    """Do what the writer of a response does."""
    if answer.softmax:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values = values / values.sum(axis=1, keepdims=True)
    np.isnan(values).any()
    rank_rows(-values, _MEASURED_COUNT)


def _agree(values: Array, ranked: RankedRows) -> bool:
    """Return whether the best values of two runs are the same, as far as these round equally."""
    count = ranked.values.shape[1]
    expected = np.take_along_axis(values, rank_rows(-values, count), axis=1)
    at_indices = np.take_along_axis(values, ranked.indices, axis=1)
    bound = TOLERANCE * max(1e-30, float(np.abs(values).max()))
    return all(
        bool((np.abs(one.astype(np.float32) - ranked.values) <= bound).all())
        for one in (expected, at_indices)
    )
