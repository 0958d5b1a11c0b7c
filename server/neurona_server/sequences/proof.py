"""Proves by runs that a rewritten graph gives the answers of the file as it is.

Rows of different lengths are run together, with other values behind their ends, and in pieces with
the state of the piece before; each must have the outputs that the file gives for that row alone.
"""

from collections.abc import Callable, Sequence

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm

TOLERANCE = 1e-5
"""Of outputs, relative to the largest value of the output, or absolute below 1."""

MAX_TOLERANCE = 1e-3
"""The same for a model whose layers make rounding errors grow, so that it gives rows other answers
in a batch of equal lengths, too."""

_ROUNDINGS = 4
"""The tolerance for such a model, relative to how much these answers differ."""

_PRECISION = 8
"""Of float16, whose rounding is coarser, so many roundings are allowed."""

_LARGE = 8.0
"""Factor of the values behind the end of a row."""

RAGGED_LENGTHS: Sequence[tuple[Sequence[int], int]] = (
    ((1, 4, 7, 12), 12),
    ((9, 2, 16, 5, 1), 17),
    ((20, 3, 3), 20),
)
"""The lengths of rows that run together, and how long they are padded."""

PIECE_LENGTHS: Sequence[tuple[Sequence[int], int]] = (
    ((4, 4, 4), 1),
    ((5, 12, 1, 16), 3),
    ((20, 7, 13), 8),
)
"""The lengths of rows that run in pieces, and the steps of a piece."""

Run = Callable[[Inputs], Outputs]

MakeRows = Callable[[int, int, int], dict[str, Array]]
"""Makes inputs of a number of rows, a number of steps and a seed."""

Disprove = Callable[[Run, Run, SequenceForm, MakeRows, float], str]
"""`disprove_lengths` or `disprove_state`."""


def find_tolerance(
    file_run: Run, form: SequenceForm, make_rows: MakeRows, tolerance: float = TOLERANCE
) -> float:
    """Return by how much answers may differ: more where those of the file do in a batch.

    Args:
        file_run: Runs the file as it is.
        form: How it reads sequences.
        make_rows: Makes inputs; lengths that callers send are all steps.
        tolerance: The least to return.

    Raises:
        Exception: What runs raise.
    """
    largest = 0.0
    for seed, (lengths, width) in enumerate(RAGGED_LENGTHS, start=1):
        inputs = make_rows(len(lengths), width, seed)
        together = file_run(inputs)
        for row in range(len(lengths)):
            alone = file_run(_cut(inputs, form, row, 0, width))
            for one, other in zip(together, alone, strict=True):
                largest = max(largest, _rounding(np.asarray(one)[row : row + 1], np.asarray(other)))
    return max(tolerance, min(_ROUNDINGS * largest, MAX_TOLERANCE))


def disprove_lengths(
    file_run: Run,
    graph_run: Run,
    form: SequenceForm,
    make_rows: MakeRows,
    tolerance: float = TOLERANCE,
) -> str:
    """Return why rows of different lengths cannot be run together, "" if they can.

    Args:
        file_run: Runs the file as it is.
        graph_run: Runs the rewritten graph.
        form: What it is rewritten for.
        make_rows: Makes inputs; lengths that callers send are all steps.
        tolerance: By how much outputs may differ.

    Raises:
        Exception: What runs raise.
    """
    answers: list[Outputs] = []
    for seed, (lengths, width) in enumerate(RAGGED_LENGTHS, start=1):
        inputs = make_rows(len(lengths), width, seed)
        whole = graph_run(inputs)
        for index, (before, after) in enumerate(zip(file_run(inputs), whole, strict=True)):
            if not _is_equal(np.asarray(after), np.asarray(before), tolerance):
                return f"output {index} of sequences without padding is another one"
        expected = [
            file_run(_cut(inputs, form, row, 0, length)) for row, length in enumerate(lengths)
        ]
        padded = _with_padding(inputs, form, lengths, make_rows(len(lengths), width, seed + 100))
        padded[LENGTHS] = np.array(lengths, np.int32)
        together = graph_run(padded)
        for row, length in enumerate(lengths):
            actual = [
                _cut_output(output, form.output_time_axes.get(index), row, 0, length)
                for index, output in enumerate(together)
            ]
            if difference := _describe_difference(actual, expected[row], tolerance):
                return f"outputs depend on padding behind the end of a sequence: {difference}"
        answers.extend(expected)
    if not _vary(answers):
        return "outputs of synthetic inputs are all equal, which shows nothing"
    return ""


def disprove_state(
    file_run: Run,
    graph_run: Run,
    form: SequenceForm,
    make_rows: MakeRows,
    tolerance: float = TOLERANCE,
) -> str:
    """Return why sequences cannot be run in pieces, "" if they can.

    Args and raised errors are those of `disprove_lengths`.
    """
    for seed, (lengths, piece) in enumerate(PIECE_LENGTHS, start=11):
        inputs = make_rows(len(lengths), max(lengths), seed)
        expected = [
            file_run(_cut(inputs, form, row, 0, length)) for row, length in enumerate(lengths)
        ]
        parts = _run_pieces(graph_run, form, inputs, lengths, piece)
        for row, pieces in enumerate(parts):
            actual = [
                pieces[-1][index]
                if (axis := form.output_time_axes.get(index)) is None
                else np.concatenate([outputs[index] for outputs in pieces], axis)
                for index in range(len(pieces[0]))
            ]
            if difference := _describe_difference(actual, expected[row], tolerance):
                return f"outputs in pieces differ from those of whole sequences: {difference}"
    return ""


def _run_pieces(
    graph_run: Run, form: SequenceForm, inputs: Inputs, lengths: Sequence[int], piece: int
) -> list[list[list[Array]]]:
    """Return the outputs of each piece of each row."""
    results: list[list[list[Array]]] = [[] for _ in lengths]
    state = np.zeros((len(lengths), form.state_size), np.float32)
    for start in range(0, max(lengths), piece):
        active = [row for row, length in enumerate(lengths) if length > start]
        steps = [min(lengths[row] - start, piece) for row in active]
        arrays: dict[str, Array] = {}
        for name, array in inputs.items():
            axis = form.time_axes.get(name)
            part = array[active]
            if axis is not None:
                part = part[_along(axis, slice(start, start + max(steps)))]
            elif name == form.lengths_input:
                part = np.array(steps, array.dtype)
            arrays[name] = part
        arrays[LENGTHS] = np.array(steps, np.int32)
        arrays[STATE] = state[active]
        *outputs, following = graph_run(arrays)
        state[active] = following
        for position, (row, count) in enumerate(zip(active, steps, strict=True)):
            results[row].append(
                [
                    _cut_output(output, form.output_time_axes.get(index), position, 0, count)
                    for index, output in enumerate(outputs)
                ]
            )
    return results


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (part,)


def _cut(inputs: Inputs, form: SequenceForm, row: int, start: int, stop: int) -> dict[str, Array]:
    """Return some steps of one row."""
    arrays: dict[str, Array] = {}
    for name, array in inputs.items():
        part = array[row : row + 1]
        axis = form.time_axes.get(name)
        if axis is not None:
            part = part[_along(axis, slice(start, stop))]
        elif name == form.lengths_input:
            part = np.full_like(part, stop - start)
        arrays[name] = part
    return arrays


def _cut_output(output: Array, axis: int | None, row: int, start: int, stop: int) -> Array:
    part = np.asarray(output)[row : row + 1]
    return part if axis is None else part[_along(axis, slice(start, stop))]


def _with_padding(
    inputs: Inputs, form: SequenceForm, lengths: Sequence[int], other: Inputs
) -> dict[str, Array]:
    """Return the rows with other values behind their ends, larger ones if they are floats."""
    arrays: dict[str, Array] = {}
    for name, array in inputs.items():
        axis = form.time_axes.get(name)
        padded = array.copy()
        if axis is not None:
            factor = np.array(_LARGE if array.dtype.kind == "f" else 1, array.dtype)
            for row, length in enumerate(lengths):
                behind = _along(axis - 1, slice(length, None))
                padded[row][behind] = other[name][row][behind] * factor
        elif name == form.lengths_input:
            padded = np.array(lengths, array.dtype)
        arrays[name] = padded
    return arrays


def _describe_difference(actual: Sequence[Array], expected: Outputs, tolerance: float) -> str:
    for index, (one, output) in enumerate(zip(actual, expected, strict=True)):
        other = np.asarray(output)
        if one.shape != other.shape:
            return f"output {index} has shape {[*one.shape]} (expected {[*other.shape]})"
        if not _is_equal(one, other, tolerance):
            if one.dtype.kind != "f":
                return f"output {index}"
            with np.errstate(invalid="ignore"):
                return f"output {index} by {np.nanmax(np.abs(one - other)):.3g}"
    return ""


def _is_equal(first: Array, second: Array, tolerance: float) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    tolerance = max(tolerance, _PRECISION * float(np.finfo(first.dtype).eps))
    first, second = first.astype(np.float64), second.astype(np.float64)
    finite = np.where(np.isfinite(second), np.abs(second), 0)
    allowed = tolerance * max(1.0, float(finite.max(initial=0)))
    with np.errstate(invalid="ignore"):
        close = np.abs(first - second) <= allowed
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    return bool(np.all(close | same))


def _rounding(first: Array, second: Array) -> float:
    """Return the largest difference, relative to the largest value, or absolute below 1."""
    if first.shape != second.shape or first.dtype.kind != "f":
        return 0.0
    first, second = first.astype(np.float64), second.astype(np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    largest = float(np.abs(second, where=finite, out=np.zeros_like(second)).max(initial=0))
    difference = np.abs(first - second, where=finite, out=np.zeros_like(second))
    return float(difference.max(initial=0)) / max(1.0, largest)


def _vary(answers: Sequence[Outputs]) -> bool:
    """Return whether an output has finite values that are not all equal."""
    for outputs in zip(*answers, strict=True):
        values = np.concatenate([np.asarray(output).ravel() for output in outputs])
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size and not np.all(values == values[0]):
            return True
    return False
