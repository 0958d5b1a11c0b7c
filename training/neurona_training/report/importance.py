"""Which columns of a table matter: what is lost when one of them is shuffled.

L. Breiman, Random Forests, Machine Learning 45 (2001).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurona_training.data import Split
from neurona_training.learning.evaluation import accuracy, predict, rmse
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    Section,
    escape_math,
    make_picture,
    new_figure,
    shorten,
    spread_rows,
    style_plot,
)
from neurona_training.report.results import RunResults

_MIN_REPEATS, _MAX_REPEATS = 3, 10  # shuffles of each column
_SHUFFLES = 600  # of all columns together, about: of a wide table fewer each
_MAX_ROWS = 1000  # of the validation rows
_WIDE_TABLE, _ROWS_OF_WIDE_TABLE = 100, 300  # columns, and rows that say enough then
_MAX_COLUMNS = 400  # of a table that is examined at all
_MAX_BARS = 20
_MIN_ROWS = 10


@dataclass(frozen=True)
class Importance:
    """What shuffling a column costs.

    Args:
        column: its name.
        mean: accuracy lost, 0..1, or rise of the RMSE in the targets' unit.
        deviation: standard deviation over the shuffles.
    """

    column: str
    mean: float
    deviation: float


def importance_section(results: RunResults) -> Section | None:
    """Bars of the columns that matter most; None for data that are no table."""
    data = results.data
    if data.kind != "rows" or len(data.validation) < _MIN_ROWS:
        return None
    importances = permutation_importance(results)
    if len(importances) < 2:
        return None
    figure = _draw(results, importances[:_MAX_BARS])
    count = column_count(results)
    lost = "accuracy is lost" if data.is_classification else "the error (RMSE) grows"
    caption = (
        f"How much {lost} on the validation rows when one column is shuffled among them, so that "
        "it says nothing any more; mean and standard deviation of "
        f"{_repeats(count)} shuffles. Columns that say the same share their importance: each of "
        "them can be missed alone. It tells what this network uses, not what causes what."
    )
    if len(importances) < count:
        caption += f" Examined are {len(importances):,} of {count:,} columns, the first ones."
    picture = make_picture(figure, "importance of the columns")
    return Section("Which columns matter", caption, (picture,), words=("feature importance",))


def permutation_importance(results: RunResults) -> list[Importance]:
    """Measures each column of each input on the validation rows, the most important first."""
    data = results.data
    count = column_count(results)
    rows = _MAX_ROWS if count <= _WIDE_TABLE else _ROWS_OF_WIDE_TABLE
    split = _some_rows(data.validation, rows)
    random = np.random.default_rng(0)
    orders = [random.permutation(len(split)) for _ in range(_repeats(count))]
    best = _measure(results, split)
    importances = []
    for index, (described, array) in enumerate(zip(data.inputs, split.arrays, strict=True)):
        if array.ndim > 1:
            names = results.column_names(array.shape[-1]) if not index else list(described.columns)
            columns = list(enumerate(names))
        else:
            columns = [(-1, described.name)]
        for column, name in columns[:_MAX_COLUMNS]:
            losses = []
            for order in orders:
                shuffled = array.copy()
                if column < 0:
                    shuffled = array[order]
                else:
                    shuffled[..., column] = array[order][..., column]
                losses.append(best - _measure(results, _replace_array(split, index, shuffled)))
            importances.append(Importance(name, float(np.mean(losses)), float(np.std(losses))))
    return sorted(importances, key=lambda one: -one.mean)


def column_count(results: RunResults) -> int:
    """Columns of all inputs of a table."""
    arrays = results.data.validation.arrays
    return sum(array.shape[-1] if array.ndim > 1 else 1 for array in arrays)


def _repeats(columns: int) -> int:
    """How often each of so many columns is shuffled."""
    return max(_MIN_REPEATS, min(_MAX_REPEATS, _SHUFFLES // max(columns, 1)))


def _some_rows(split: Split, most: int) -> Split:
    rows = spread_rows(len(split), most)
    return replace(
        split,
        inputs=split.inputs[rows],
        targets=split.targets[rows],
        extra_inputs=tuple(array[rows] for array in split.extra_inputs),
    )


def _replace_array(split: Split, index: int, array: NDArray[Any]) -> Split:
    if index == 0:
        return replace(split, inputs=array)
    extra = list(split.extra_inputs)
    extra[index - 1] = array
    return replace(split, extra_inputs=tuple(extra))


def _measure(results: RunResults, split: Split) -> float:
    """Larger is better."""
    outputs = predict(results.network, split).numpy()
    if results.data.is_classification:
        return accuracy(outputs, split.targets)
    # Bounds of intervals follow the values.
    return -rmse(outputs[:, : len(results.data.values)], split.targets, results.data.error_scales)


def _draw(results: RunResults, importances: list[Importance]) -> Figure:
    factor = 100 if results.data.is_classification else 1
    figure = new_figure(7.6, 0.27 * len(importances) + 0.9)
    axes = figure.subplots()
    style_plot(axes)
    axes.grid(visible=False, axis="y")
    means = np.array([factor * one.mean for one in importances])
    deviations = np.array([factor * one.deviation for one in importances])
    places = range(len(importances))
    axes.barh(places, means, color=BLUE, height=0.66)
    axes.errorbar(means, places, xerr=deviations, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(places, [escape_math(shorten(one.column, 30)) for one in importances])
    axes.set_ylim(len(importances) - 0.4, -0.6)
    unit = results.unit
    text = "accuracy lost, percentage points"
    if not results.data.is_classification:
        text = f"rise of the RMSE{f' ({unit})' if unit else ''}"
    axes.set_xlabel(escape_math(text), fontsize=9)
    return figure
