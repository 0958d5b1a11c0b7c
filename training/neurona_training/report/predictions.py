"""Predictions against the truth: confusion of classes, recall, true and predicted values."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurona_training.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    escape_math,
    limit_ticks,
    new_figure,
    shorten,
    style_plot,
)
from neurona_training.report.results import RunResults

MAX_CLASSES = 30  # in a readable confusion matrix
_MAX_VALUES = 4  # of a table that are drawn, one below the other
_MAX_STEPS = 240  # of a series, the latest ones, so that its shape is visible


def confusion_matrix(results: RunResults) -> Figure:
    """Confusion matrix; rows are the true classes, right predictions blue, wrong ones orange."""
    labels = [shorten(label, 16) for label in results.data.labels]
    counts = confusion_counts(results)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(labels)
    is_right = np.eye(size, dtype=bool)
    largest_wrong = max(float(shares[~is_right].max(initial=0)), 0.1)  # a few wrong ones stay pale
    strength = np.where(is_right, shares, 0.22 * (shares > 0) + 0.7 * shares / largest_wrong)[
        ..., None
    ]
    colour = np.where(is_right[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    side = min(8.5, max(3.4, 0.52 * size + 1.6))
    figure = new_figure(side + 0.4, side)
    axes = figure.subplots()
    axes.imshow(1 - strength * (1 - colour))
    font_size = 9 if size <= 12 else 7
    for true, predicted in np.argwhere(counts > 0):
        is_dark = true == predicted and shares[true, predicted] > 0.55
        axes.text(
            predicted,
            true,
            f"{counts[true, predicted]:,}",
            ha="center",
            va="center",
            fontsize=font_size,
            color="white" if is_dark else INK,
        )
    is_long = max(len(label) for label in labels) * size > 45  # they would overlap
    axes.set_xticks(range(size), [escape_math(one) for one in labels], fontsize=font_size)
    axes.tick_params(axis="x", rotation=45 if is_long else 0)
    if is_long:
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
            tick.set_rotation_mode("anchor")
    axes.set_yticks(range(size), [escape_math(one) for one in labels], fontsize=font_size)
    axes.hlines(np.arange(size - 1) + 0.5, -0.5, size - 0.5, color=PALE, linewidth=0.7)
    axes.vlines(np.arange(size - 1) + 0.5, -0.5, size - 0.5, color=PALE, linewidth=0.7)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("true", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def confusion_counts(results: RunResults) -> NDArray[np.int64]:
    """Number of test rows by (true class, predicted class)."""
    size = len(results.data.labels)
    pairs = results.data.test.targets * size + results.predictions.argmax(axis=1)
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def recall_bars(results: RunResults) -> Figure:
    """Recall of each class; only the worst, in order, if there are many."""
    counts = confusion_counts(results)
    rows = counts.sum(axis=1)
    shares = np.diag(counts) / np.maximum(rows, 1)
    order = np.arange(len(rows)) if len(rows) <= MAX_CLASSES else np.argsort(shares)[:MAX_CLASSES]
    figure = new_figure(4.6, min(8.5, max(1.8, 0.36 * len(order) + 1.0)))
    axes = figure.subplots()
    style_plot(axes)
    axes.barh(range(len(order)), shares[order], color=BLUE, height=0.66)
    labels = [escape_math(shorten(results.data.labels[index], 16)) for index in order]
    axes.set_yticks(range(len(order)), labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.38)
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    for position, label in enumerate(order):
        text = f"{shares[label]:.1%} of {rows[label]:,}" if rows[label] else "no rows"
        axes.text(shares[label] + 0.02, position, text, va="center", fontsize=8.5, color=INK)
    axes.set_title("Recall: found, of each class' rows", fontsize=10, color=INK, loc="left")
    return figure


def predicted_against_true(results: RunResults) -> Figure:
    """Predicted against true values, and a histogram of the residuals.

    The values of a table differ in unit and size, so each has its own line of charts; the steps
    of a series are drawn together.
    """
    values, true, predicted = results.data.values, results.data.test.targets, results.predictions
    if results.is_series or len(values) == 1:
        lines = [("", values[0].unit, true.ravel(), predicted.ravel())]
    else:
        lines = [
            (value.name, value.unit, true[:, index], predicted[:, index])
            for index, value in enumerate(values[:_MAX_VALUES])
        ]
    figure = new_figure(9.5, 4.0 if len(lines) == 1 else 3.2 * len(lines))
    grid = figure.subplots(len(lines), 2, squeeze=False)
    for axes, line in zip(grid, lines, strict=True):
        left, right = axes
        _draw_errors(left, right, *line)
    return figure


def _draw_errors(
    left: Axes,
    right: Axes,
    name: str,
    unit: str,
    true: NDArray[np.float32],
    predicted: NDArray[np.float32],
) -> None:
    """Predicted against true values on the left, their differences on the right."""
    unit_suffix = f" ({unit})" if unit else ""
    of_value = f", {shorten(name)}" if name else ""
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    left.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    opacity = float(np.clip(400 / len(true), 0.08, 0.7))
    left.plot(true, predicted, "o", color=BLUE, markersize=4, alpha=opacity, markeredgewidth=0)
    left.set_xlabel(escape_math(f"true{unit_suffix}"), fontsize=9)
    left.set_ylabel(escape_math(f"predicted{unit_suffix}"), fontsize=9)
    title = escape_math(f"Predicted against true{of_value}")
    left.set_title(title, fontsize=11, color=INK, loc="left")
    residuals = predicted - true
    right.hist(residuals, bins=min(40, max(8, len(residuals) // 8)), color=BLUE, edgecolor="white")
    right.axvline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    right.axvline(
        float(residuals.mean()), color=RED, linewidth=1.5, label=f"mean {residuals.mean():.3g}"
    )
    right.set_xlabel(escape_math(f"predicted - true{unit_suffix}"), fontsize=9)
    right.set_ylabel("test rows", fontsize=9)
    right.set_title(escape_math(f"Residuals{of_value}"), fontsize=11, color=INK, loc="left")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        style_plot(axes)
        limit_ticks(axes.xaxis)
    limit_ticks(left.yaxis, 6)


def forecast_plot(results: RunResults) -> Figure:
    """The last test values in the order of time, with the prediction for each."""
    true, predicted = results.data.test.targets[:, 0], results.predictions[:, 0]
    first = max(0, len(true) - _MAX_STEPS)
    steps = np.arange(first, len(true))
    figure = new_figure(9.5, 3.4)
    axes = figure.subplots()
    style_plot(axes)
    axes.plot(steps, true[first:], color=INK, linewidth=1.4, label="true")
    axes.plot(steps, predicted[first:], color=BLUE, linewidth=1.6, alpha=0.9, label="predicted")
    if intervals := results.intervals:
        lower, upper = (bounds[first:, 0] for bounds in intervals)
        axes.fill_between(
            steps, lower, upper, color=BLUE, alpha=0.16, linewidth=0, label="prediction interval"
        )
    else:
        axes.fill_between(
            steps, true[first:], predicted[first:], color=GREEN, alpha=0.18, linewidth=0
        )
    axes.margins(x=0.01)
    axes.set_xlabel("step of the test part", fontsize=9)
    value = results.data.values[0]
    axes.set_ylabel(escape_math(value.unit or "value"), fontsize=9)
    axes.set_title(escape_math(value.name), fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.16))
    return figure
