"""Right and wrong: the confusion of classes, or predicted values against true ones."""

from __future__ import annotations

import numpy as np
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
    figure,
    literal,
    plain,
    short,
)
from neurona_training.report.story import Story

MOST_CLASSES = 30  # in a confusion matrix that can be read
_MOST_STEPS = 240  # of a series, the latest, so that its shape is seen


def confusion(story: Story) -> Figure:
    """Rows are the true classes: blue what was right of them, orange what was taken for what."""
    labels = [short(label, 16) for label in story.data.labels]
    counts = counted(story)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(labels)
    right = np.eye(size, dtype=bool)
    most_wrong = max(float(shares[~right].max(initial=0)), 0.1)  # a few wrong stay pale
    strength = np.where(right, shares, 0.22 * (shares > 0) + 0.7 * shares / most_wrong)[..., None]
    colour = np.where(right[..., None], to_rgb(BLUE), to_rgb(ORANGE))
    side = min(8.5, max(3.4, 0.52 * size + 1.6))
    drawn = figure(side + 0.4, side)
    axes = drawn.subplots()
    axes.imshow(1 - strength * (1 - colour))
    small = 9 if size <= 12 else 7
    for true, predicted in np.argwhere(counts > 0):
        dark = true == predicted and shares[true, predicted] > 0.55
        axes.text(
            predicted,
            true,
            f"{counts[true, predicted]:,}",
            ha="center",
            va="center",
            fontsize=small,
            color="white" if dark else INK,
        )
    long = max(len(label) for label in labels) * size > 45  # they would touch each other
    axes.set_xticks(range(size), [literal(one) for one in labels], fontsize=small)
    axes.tick_params(axis="x", rotation=45 if long else 0)
    if long:
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
            tick.set_rotation_mode("anchor")
    axes.set_yticks(range(size), [literal(one) for one in labels], fontsize=small)
    axes.hlines(np.arange(size - 1) + 0.5, -0.5, size - 0.5, color=PALE, linewidth=0.7)
    axes.vlines(np.arange(size - 1) + 0.5, -0.5, size - 0.5, color=PALE, linewidth=0.7)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("true", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return drawn


def counted(story: Story) -> NDArray[np.int64]:
    """(true class, predicted class): how many test rows."""
    size = len(story.data.labels)
    pairs = story.data.test.targets * size + story.answered.argmax(axis=1)
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def recall(story: Story) -> Figure:
    """The part of each class' rows that was found; the worst first where there are many."""
    counts = counted(story)
    rows = counts.sum(axis=1)
    shares = np.diag(counts) / np.maximum(rows, 1)
    order = np.arange(len(rows)) if len(rows) <= MOST_CLASSES else np.argsort(shares)[:MOST_CLASSES]
    drawn = figure(4.6, min(8.5, max(1.8, 0.36 * len(order) + 1.0)))
    axes = drawn.subplots()
    plain(axes)
    axes.barh(range(len(order)), shares[order], color=BLUE, height=0.66)
    labels = [literal(short(story.data.labels[place], 16)) for place in order]
    axes.set_yticks(range(len(order)), labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.38)
    axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    for place, one in enumerate(order):
        text = f"{shares[one]:.1%} of {rows[one]:,}" if rows[one] else "no rows"
        axes.text(shares[one] + 0.02, place, text, va="center", fontsize=8.5, color=INK)
    axes.set_title("Recall: found, of each class' rows", fontsize=10, color=INK, loc="left")
    return drawn


def against(story: Story) -> Figure:
    """Predicted against true values, and by how much they miss."""
    true, said = story.data.test.targets.ravel(), story.answered.ravel()
    unit = story.data.values[0].unit
    named = f" ({unit})" if unit else ""
    drawn = figure(9.5, 4.0)
    left, right = drawn.subplots(1, 2)
    low, high = float(min(true.min(), said.min())), float(max(true.max(), said.max()))
    left.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    clear = float(np.clip(400 / len(true), 0.08, 0.7))
    left.plot(true, said, "o", color=BLUE, markersize=4, alpha=clear, markeredgewidth=0)
    left.set_xlabel(literal(f"true{named}"), fontsize=9)
    left.set_ylabel(literal(f"predicted{named}"), fontsize=9)
    left.set_title("Predicted against true", fontsize=11, color=INK, loc="left")
    misses = said - true
    right.hist(misses, bins=min(40, max(8, len(misses) // 8)), color=BLUE, edgecolor="white")
    right.axvline(0, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    right.axvline(float(misses.mean()), color=RED, linewidth=1.5, label=f"mean {misses.mean():.3g}")
    right.set_xlabel(literal(f"predicted - true{named}"), fontsize=9)
    right.set_ylabel("test rows", fontsize=9)
    right.set_title("Residuals", fontsize=11, color=INK, loc="left")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        plain(axes)
    return drawn


def forecast(story: Story) -> Figure:
    """The last test values in the order of time, with what was predicted one step before each."""
    true, said = story.data.test.targets[:, 0], story.answered[:, 0]
    first = max(0, len(true) - _MOST_STEPS)
    steps = np.arange(first, len(true))
    drawn = figure(9.5, 3.4)
    axes = drawn.subplots()
    plain(axes)
    axes.plot(steps, true[first:], color=INK, linewidth=1.4, label="true")
    axes.plot(steps, said[first:], color=BLUE, linewidth=1.6, alpha=0.9, label="predicted")
    axes.fill_between(steps, true[first:], said[first:], color=GREEN, alpha=0.18, linewidth=0)
    axes.margins(x=0.01)
    axes.set_xlabel("step of the test part", fontsize=9)
    value = story.data.values[0]
    axes.set_ylabel(literal(value.unit or "value"), fontsize=9)
    axes.set_title(literal(value.name), fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.16))
    return drawn
