"""How long the exported model of a recurrent network takes for sequences of each length.

The steps of a sequence cannot be computed side by side, so the time grows with the length, and a
batch takes as long as its longest sequence.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import onnxruntime
from matplotlib.figure import Figure
from torch.nn.modules.rnn import RNNBase

from neurona_training.data import LENGTHS
from neurona_training.export.parity import Arrays, caller_inputs
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    Section,
    make_picture,
    new_figure,
    style_plot,
)
from neurona_training.report.results import RunResults

BATCH_ROWS = 16
MAX_LENGTHS = 6
REPEATS = 5
MAX_SECONDS = 2.0
"""For all runs. Of a model that needs more, the shorter lengths are shown."""


def latency_section(results: RunResults) -> Section | None:
    """Time by length; None without recurrent layers, the file, or more than one length.

    A forecast of a series has none either: it reads as many steps whatever it is sent.
    """
    is_recurrent = any(isinstance(one, RNNBase) for one in results.network.modules())
    if not is_recurrent or not results.model or results.is_series:
        return None
    if "time" not in results.data.input.axes:
        return None
    seconds = measure_latency(results)
    if len(seconds) < 2:
        return None
    lengths = list(seconds)
    alone = [seconds[length][0] for length in lengths]
    batch = [seconds[length][1] for length in lengths]
    per_step = (alone[-1] - alone[0]) / (lengths[-1] - lengths[0])
    caption = (
        f"The exported model on one CPU core of the machine that trained it, in ONNX Runtime. One "
        f"sequence of {lengths[-1]:,} steps takes {_milliseconds(alone[-1])}"
    )
    if per_step > 0:
        caption += f", each step {1e6 * per_step:,.3g} µs"
    share = batch[-1] / BATCH_ROWS / alone[-1]
    caption += (
        f"; in a batch of {BATCH_ROWS} a sequence costs {share:.0%} of that. A batch takes as long "
        "as its longest sequence."
    )
    figure = latency_plot(results, lengths, alone, batch)
    picture = make_picture(figure, "time of one sequence and of a batch by number of steps")
    return Section("Time by length", caption, (picture,), words=("batch",))


def measure_latency(results: RunResults) -> dict[int, tuple[float, float]]:
    """Runs the exported model on the longest test rows, cut to each length.

    Returns:
        By length: seconds of a run of one row, and of one of BATCH_ROWS rows.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors are raised as exceptions
    session = onnxruntime.InferenceSession(
        results.model, options, providers=["CPUExecutionProvider"]
    )
    seconds: dict[int, tuple[float, float]] = {}
    remaining_seconds = MAX_SECONDS
    for length in lengths_to_show(results):
        pair = []
        for rows in (1, BATCH_ROWS):
            inputs = caller_inputs(_rows_of_length(results, rows, length), results.data)
            session.run(None, inputs)  # the first run of a shape reserves memory
            samples = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                session.run(None, inputs)
                samples.append(time.perf_counter() - start)
            pair.append(median(samples))
            remaining_seconds -= sum(samples)
        seconds[length] = pair[0], pair[1]
        if remaining_seconds < 0:
            break
    return seconds


def lengths_to_show(results: RunResults) -> list[int]:
    """Up to MAX_LENGTHS lengths of test rows, the shortest and the longest among them."""
    own = _lengths(results)
    shortest = 1 if results.data.test.lengths is None else int(own.min())
    spread = np.linspace(shortest, int(own.max()), MAX_LENGTHS).astype(int)
    return sorted(set(spread.tolist()))


def latency_plot(
    results: RunResults, lengths: list[int], alone: list[float], batch: list[float]
) -> Figure:
    """Milliseconds by length, above the number of test rows of each length."""
    figure = new_figure(7.0, 3.0)
    axes = figure.subplots()
    axes.plot(lengths, [1e3 * one for one in batch], "o-", color=ORANGE, label=f"{BATCH_ROWS} rows")
    axes.plot(lengths, [1e3 * one for one in alone], "o-", color=BLUE, label="one row")
    style_plot(axes)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("steps", fontsize=9)
    axes.set_ylabel("ms", fontsize=9)
    if results.data.test.lengths is not None:
        middle = float(np.median(_lengths(results)))
        label = f"half of the test rows: {middle:,.0f} steps"
        axes.axvline(middle, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=label)
    axes.legend(fontsize=8.5, framealpha=0.85, edgecolor="none")
    return figure


def _lengths(results: RunResults) -> np.ndarray:
    test, axis = results.data.test, results.data.input.axes.index("time")
    if test.lengths is not None:
        return test.lengths
    return np.full(len(test), test.inputs.shape[axis])


def _rows_of_length(results: RunResults, rows: int, length: int) -> Arrays:
    """The longest test rows, cut to `length` steps, as inputs of the network."""
    data = results.data
    order = np.argsort(-_lengths(results), kind="stable")
    indices = order[np.arange(rows) % len(order)]
    arrays = []
    for described, array in zip(data.inputs, data.test.arrays, strict=True):
        cut = array[indices]
        if described.name == LENGTHS.name:
            cut = np.minimum(cut, length)
        elif "time" in described.axes:
            cut = cut.take(range(min(length, cut.shape[1])), described.axes.index("time"))
        arrays.append(cut)
    return tuple(arrays)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
