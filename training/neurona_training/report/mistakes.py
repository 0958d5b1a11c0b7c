"""The worst predictions for the test rows, each with its input."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurona_training.export.parity import caller_array
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    draw_image,
    escape_math,
    format_number,
    new_figure,
    shorten,
    style_image,
    style_plot,
)
from neurona_training.report.results import RunResults

SHOWN_ROWS = 12
_IMAGE_COLUMNS, _OTHER_COLUMNS = 6, 4  # of the gallery
_MAX_LINES = 3  # channels of a sequence as lines; more of them are a colour map
_MAX_PROBABILITIES = 3
_MAX_CELLS = 10  # of a table's row


def draw_gallery(results: RunResults) -> Figure | None:
    """Draws images or sequences with their predictions; None for rows and text."""
    data = results.data
    if data.kind == "rows" or data.input.categories:
        return None
    rows = results.worst_rows[:SHOWN_ROWS]
    across = min(_IMAGE_COLUMNS if data.kind == "images" else _OTHER_COLUMNS, len(rows))
    down = -(-len(rows) // across)
    cell_height = 2.0 if not data.is_classification else 2.3 if data.kind == "images" else 2.7
    figure = new_figure(9.5, cell_height * down)
    cells = figure.subfigures(down, across, squeeze=False)
    for row, cell in zip(rows, cells.flat, strict=False):
        if data.is_classification:
            top, bottom = cell.subplots(2, 1, height_ratios=[3.4, 1])
            _draw_probabilities(bottom, results, row)
        else:
            top = cell.subplots()
        _draw_input(top, results, row)
        top.set_title(escape_math(_describe_prediction(results, row)), fontsize=8.5, color=INK)
    return figure


def worst_rows_table(results: RunResults) -> list[list[str]]:
    """The worst predictions for rows and text, as a table whose first line is its head."""
    data = results.data
    if data.kind == "rows":
        head = [
            name
            for described, array in zip(data.inputs, data.test.arrays, strict=True)
            for name in (
                results.column_names(array.shape[-1]) if array.ndim > 1 else [described.name]
            )
        ]
    else:
        head = [data.input.name]
    lines = [["answer", *_limit_cells([shorten(name, 26) for name in head])]]
    for row in results.worst_rows[:SHOWN_ROWS]:
        prediction = _describe_prediction(results, row, short_names=False)
        lines.append([prediction, *_limit_cells(_input_cells(results, row))])
    return lines


def _limit_cells(cells: list[str]) -> list[str]:
    return cells if len(cells) <= _MAX_CELLS else [*cells[:_MAX_CELLS], "…"]


def _input_cells(results: RunResults, row: int) -> list[str]:
    if results.data.kind != "rows":
        return [
            "".join(str(one) for one in caller_array(results.test_input(row), results.data.input))
        ]
    cells: list[str] = []
    for described, array in zip(results.data.inputs, results.data.test.arrays, strict=True):
        cell = caller_array(array[[row]], described)[0]
        cells += [
            shorten(one, 60) if isinstance(one, str) else results.format_cell(column, one)
            for column, one in enumerate(np.atleast_1d(cell).tolist())
        ]
    return cells


def _describe_prediction(results: RunResults, row: int, *, short_names: bool = True) -> str:
    """True and predicted class or value."""
    target, predicted = results.data.test.targets[row], results.predictions[row]
    if not results.data.is_classification:
        worst = int(np.abs(predicted - target).argmax())
        true, answer = format_number(target[worst]), format_number(predicted[worst])
        return f"true {true}, predicted {answer}"
    labels = results.data.labels
    label, certainty = int(predicted.argmax()), f"{predicted.max():.0%}"
    if not short_names:
        wrong = "" if label == target else f"{labels[target]}, taken for "
        return f"{wrong}{labels[label]}, {certainty}"
    if label == target:
        return f"{shorten(labels[label], 12)}, {certainty}"
    return f"true: {shorten(labels[target], 12)}\nsaid: {shorten(labels[label], 10)}, {certainty}"


def _draw_input(axes: Axes, results: RunResults, row: int) -> None:
    test_input = results.test_input(row)
    if results.data.kind == "images":
        draw_image(axes, test_input, results.brightest)
    elif results.is_series:
        _draw_series(axes, results, row)
    else:
        _draw_sequence(axes, test_input)


def _draw_series(axes: Axes, results: RunResults, row: int) -> None:
    window, target = results.test_input(row)[:, 0], results.data.test.targets[row]
    style_plot(axes)
    axes.tick_params(labelsize=7.5)
    axes.plot(np.arange(-len(window) + 1, 1), window, color=GREY, linewidth=1.3)
    ahead = np.arange(1, len(target) + 1)
    axes.plot(ahead, target, "o-", color=INK, markersize=4, linewidth=1.3)
    axes.plot(ahead, results.predictions[row], "D-", color=ORANGE, markersize=4, linewidth=1.3)


def _draw_sequence(axes: Axes, steps: NDArray[Any]) -> None:
    if steps.ndim == 1 or steps.shape[1] <= _MAX_LINES:
        style_plot(axes)
        axes.tick_params(labelsize=7)
        for channel, colour in zip(
            steps.reshape(len(steps), -1).T, (BLUE, ORANGE, RED), strict=False
        ):
            axes.plot(channel, color=colour, linewidth=0.9)
        return
    style_image(axes)
    # Time runs to the right; each channel is a line of the map.
    axes.imshow(steps.T, cmap="cividis", aspect="auto", interpolation="nearest")


def _draw_probabilities(axes: Axes, results: RunResults, row: int) -> None:
    """Draws the largest probabilities; the true class in blue."""
    probabilities, target = results.predictions[row], results.data.test.targets[row]
    order = np.argsort(-probabilities)[:_MAX_PROBABILITIES]
    colours = [BLUE if label == target else ORANGE for label in order]
    axes.barh(range(len(order)), probabilities[order], color=colours, height=0.7)
    axes.set_xlim(0, 1)
    axes.set_ylim(_MAX_PROBABILITIES - 0.5, -0.5)
    labels = [escape_math(shorten(results.data.labels[label], 10)) for label in order]
    axes.set_yticks(range(len(order)), labels, fontsize=7.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor(PALE)
