"""The first run of a session, which shows whether its provider can run the model at all.

A provider may load a model and then fail: it has no kernel for this kind of GPU, a library that is
opened late is missing, or the device has too little memory for a single row.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import onnxruntime

from neurona_server.batching.request import Array
from neurona_server.models.load_cancellation import LoadCancellation

TRIAL_SIZES: Final = (1, 8, 64, 224)
"""Sizes of the free axes to try, in this order: some models fail on small ones."""

MAX_TRIAL_ELEMENTS: Final = 1 << 26
"""Limit for one input of a trial."""

COMPILING_SECONDS: Final = 3600.0
"""Time that a provider may take to compile a model, in which the load counts as getting on."""

_HEARTBEAT_SECONDS = 1.0
_FATAL = 4  # log_severity_level
_TYPES: Final[Mapping[str, Any]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}


def try_run(
    session: onnxruntime.InferenceSession, cancellation: LoadCancellation, largest_rows: int = 0
) -> Exception | None:
    """Run a session once with inputs of ones.

    Args:
        session: The session.
        cancellation: Ends the run early.
        largest_rows: If not 0, such a batch is run before.

    Returns:
        The error of the smallest inputs, if it fails with all that were tried; None if it runs, or
        no inputs can be made for it.

    Raises:
        LoadError: The load was cancelled.
    """
    first_error: Exception | None = None
    for size in TRIAL_SIZES:
        try:
            for rows in [largest_rows, size] if largest_rows > size else [size]:
                inputs = make_ones(session, rows, size)
                if inputs is None:
                    return first_error
                with long_step(cancellation):
                    run_once(session, inputs, cancellation)
        except Exception as error:
            cancellation.raise_if_cancelled()
            first_error = first_error or error
        else:
            return None
    return first_error


def run_once(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, Array],
    cancellation: LoadCancellation,
) -> list[Any]:
    """Run a session as a step of a load, which can be cancelled; return all outputs."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL  # it is raised
    options.add_run_config_entry("gpu_graph_id", "-1")  # capture no CUDA graph
    with cancellation.interrupting(partial(_terminate, options)):
        outputs: list[Any] = session.run(None, inputs, options)
    return outputs


def make_ones(
    session: onnxruntime.InferenceSession, rows: int, size: int
) -> dict[str, Array] | None:
    """Return inputs of ones, or None for types of which no arrays can be made and for large ones.

    Ones are valid as lengths of sequences, and as indices of all but the smallest tables.

    Args:
        session: Whose inputs.
        rows: Size of axis 0, where it is free.
        size: Size of the other free axes.
    """
    inputs: dict[str, Array] = {}
    for node in session.get_inputs():
        if node.type not in _TYPES:
            return None
        shape = [axis if isinstance(axis, int) else size for axis in node.shape]
        if shape and not isinstance(node.shape[0], int):
            shape[0] = rows
        if math.prod(shape) > MAX_TRIAL_ELEMENTS:
            return None
        values = np.full(shape, "1", object) if node.type == "tensor(string)" else np.ones(shape)
        inputs[node.name] = values.astype(_TYPES[node.type])
    return inputs


@contextmanager
def long_step(cancellation: LoadCancellation) -> Iterator[None]:
    """Note progress during a step in which a provider compiles, which takes minutes in one call.

    The limit for the time of a step is for models that never end; compiling ends, but says nothing
    meanwhile. So its limit is COMPILING_SECONDS.
    """
    ended = threading.Event()

    def note_progress() -> None:
        for _ in range(int(COMPILING_SECONDS / _HEARTBEAT_SECONDS)):
            if ended.wait(_HEARTBEAT_SECONDS):
                return
            cancellation.note_progress()

    thread = threading.Thread(target=note_progress, name="compiling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _terminate(options: Any) -> None:
    options.terminate = True
