"""Options of the CUDA provider for convolutions, chosen by measuring when a model is loaded.

Which memory layout is faster depends on the network, its type and the GPU: tensor cores compute in
NHWC, and the provider else converts to it and back around each convolution; but other nodes may
lose. So a model with convolutions is loaded once more with each candidate, which is kept if its
answers are equal and it is faster. Options that are set are not measured. Tested with stand-ins for
sessions; not run on a GPU yet.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from neurona_server.batching.request import Array
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.cuda_driver import CudaDriverError, load_driver
from neurona_server.models.onnx.trial_run import TRIAL_SIZES, make_ones, run_once

log = logging.getLogger(__name__)

CANDIDATES: Final[tuple[Mapping[str, str], ...]] = (
    {"prefer_nhwc": "1"},
    {"fuse_conv_bias": "1"},  # convolution, bias and activation as one kernel of cuDNN
)
"""Options to try, each together with those that were kept before."""

MAX_SECONDS_FACTOR: Final = 0.95
"""A candidate is kept if the largest batch takes at most this part of the time."""

MAX_ROW_FACTOR: Final = 1.2
"""And if a single row takes at most this many times as long."""

MAX_DIFFERENCE: Final = 0.01
"""Difference of two answers that counts as equal, relative to the largest value of an output: other
kernels sum in another order, float16 and TF32 have 10 bits of mantissa."""

MIN_EQUAL: Final = 0.95
"""Part of the values of an output without fractions, such as classes, that must be equal."""

TRIAL_ROWS: Final = 32
"""Rows of the large batch."""

BUDGET_SECONDS: Final = 60.0
"""Time after which no further candidate is tried."""

MEMORY_RATIO: Final = 4
MIN_FREE_BYTES: Final = 1 << 30
"""Memory that must be free on the GPU: so many times the size of the file, and so many bytes."""

MAX_DECISIONS: Final = 1024

_OF_A_SESSION = {"device_id", "enable_cuda_graph"}
_RUNS, _SECONDS = 10, 0.5  # limits for the runs of one measurement
_WARM_UP_RUNS = 2  # in the first, cuDNN chooses kernels

LoadWith = Callable[[Mapping[str, str]], onnxruntime.InferenceSession]

_decisions: OrderedDict[tuple[Any, ...], Mapping[str, str]] = OrderedDict()
_decisions_lock = threading.Lock()


@dataclass(frozen=True)
class _LayoutTrial:
    outputs: list[list[Array]]
    """Of two different batches."""

    seconds: float
    row_seconds: float


def remembered_options(path: Path, values: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return what was chosen for a file and these options before, None if nothing was measured.

    So only the first session of a model measures, and all of them round in the same way.
    """
    with _decisions_lock:
        return _decisions.get(_key(path, values))


def has_room(nbytes: int, values: Mapping[str, str]) -> bool:
    """Return whether the GPU has memory left for a second copy of a model of `nbytes`.

    Measuring must not take what other models need for their runs meanwhile.
    """
    try:
        free, _ = load_driver().memory_info(int(values.get("device_id", "0")))
    except CudaDriverError as error:
        log.info("the free memory of a GPU is not known: %s", error)
        return True
    return free >= MEMORY_RATIO * nbytes + MIN_FREE_BYTES


def choose_options(
    path: Path,
    session: onnxruntime.InferenceSession,
    values: Mapping[str, str],
    load_with: LoadWith,
    cancellation: LoadCancellation,
) -> onnxruntime.InferenceSession:
    """Return the fastest session with the same answers, and remember its options.

    Args:
        path: The model's file, for the log.
        session: Loaded with `values`.
        values: The options of the CUDA provider.
        load_with: Loads the model with other options.
        cancellation: Ends the measurement.

    Raises:
        LoadError: The load was cancelled.
    """
    kept: dict[str, str] = {}
    deadline = time.monotonic() + BUDGET_SECONDS
    best = _measure(session, cancellation)
    if best is not None:
        for candidate in CANDIDATES:
            if candidate.keys() & values.keys() or time.monotonic() > deadline:
                continue
            other = _try_candidate(path, load_with, {**values, **kept, **candidate}, cancellation)
            if other is None or _cpu_nodes(other[0]) > _cpu_nodes(session):
                continue
            text = ", ".join(f"{key}={value}" for key, value in candidate.items())
            before, after = f"{best.seconds * 1e3:.3g} ms", f"{other[1].seconds * 1e3:.3g} ms"
            if _is_better(best, other[1]):
                log.info("%s: cuda.%s is faster: %s instead of %s", path, text, after, before)
                session, best = other
                kept |= candidate
            else:
                log.debug("%s: cuda.%s is not better: %s, %s", path, text, after, before)
    with _decisions_lock:
        _decisions[_key(path, values)] = kept
        while len(_decisions) > MAX_DECISIONS:
            _decisions.popitem(last=False)
    return session


def _try_candidate(
    path: Path,
    load_with: LoadWith,
    values: Mapping[str, str],
    cancellation: LoadCancellation,
) -> tuple[onnxruntime.InferenceSession, _LayoutTrial] | None:
    try:
        session = load_with(values)
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        cancellation.raise_if_cancelled()
        log.info("%s: cannot be loaded with other options: %s", path, error)
        return None
    measurement = _measure(session, cancellation)
    return None if measurement is None else (session, measurement)


def _measure(
    session: onnxruntime.InferenceSession, cancellation: LoadCancellation
) -> _LayoutTrial | None:
    """Run random inputs; return None if the model fails on all sizes."""
    for size in TRIAL_SIZES:
        first = _random_inputs(session, TRIAL_ROWS, size, 1)
        second = _random_inputs(session, TRIAL_ROWS, size, 2)
        row = _random_inputs(session, 1, size, 1)
        if first is None or second is None or row is None:
            return None
        try:
            outputs = [run_once(session, batch, cancellation) for batch in (first, second)]
            seconds = _time(session, first, cancellation)
            return _LayoutTrial(outputs, seconds, _time(session, row, cancellation))
        except Exception as error:
            cancellation.raise_if_cancelled()
            log.debug("cannot measure with free axes of %d: %s", size, error)
    return None


def _time(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, Array],
    cancellation: LoadCancellation,
) -> float:
    """Return the seconds of the fastest run: what else runs on the device only makes it slower."""
    for _ in range(_WARM_UP_RUNS):
        run_once(session, inputs, cancellation)
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < _SECONDS:
        started = time.perf_counter()
        run_once(session, inputs, cancellation)
        times.append(time.perf_counter() - started)
    return min(times)


def _random_inputs(
    session: onnxruntime.InferenceSession, rows: int, size: int, seed: int
) -> dict[str, Array] | None:
    ones = make_ones(session, rows, size)
    if ones is None:
        return None
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(array.shape).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in ones.items()
    }


def _is_better(best: _LayoutTrial, other: _LayoutTrial) -> bool:
    pairs = zip(best.outputs, other.outputs, strict=True)
    return (
        other.seconds <= MAX_SECONDS_FACTOR * best.seconds
        and other.row_seconds <= MAX_ROW_FACTOR * best.row_seconds
        and all(
            _are_equal(one, two)
            for ones, twos in pairs
            for one, two in zip(ones, twos, strict=True)
        )
    )


def _are_equal(one: Any, two: Any) -> bool:
    one, two = np.asarray(one), np.asarray(two)
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.dtype.kind != "f":
        return bool(one.size == 0 or (one == two).mean() >= MIN_EQUAL)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(two)):
        return False
    wide = [array[finite].astype(np.float64) for array in (one, two)]
    largest = np.abs(wide[0]).max(initial=0)
    return bool(np.abs(wide[0] - wide[1]).max(initial=0) <= MAX_DIFFERENCE * largest)


def _cpu_nodes(session: onnxruntime.InferenceSession) -> int:
    get_assignment = getattr(session, "get_provider_graph_assignment_info", list)
    return sum(
        len(subgraph.get_nodes())
        for subgraph in get_assignment()
        if subgraph.ep_name == "CPUExecutionProvider"
    )


def _key(path: Path, values: Mapping[str, str]) -> tuple[Any, ...]:
    try:
        status = path.stat()
        file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        file = (0, 0, 0, 0)
    others = {key: value for key, value in values.items() if key not in _OF_A_SESSION}
    return (str(path), file, tuple(sorted(others.items())))
