"""Whether the probabilities of a classification can be taken at their word."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from scipy.stats import binom

from neurona_training.architectures.input_layers import Temperature
from neurona_training.learning.calibration import find_temperature, ideal_calibration_error
from neurona_training.learning.evaluation import (
    CONFIDENCE_BINS,
    ReliabilityBins,
    negative_log_likelihood,
    predict,
    reliability_bins,
    softmax,
)
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    Section,
    make_picture,
    new_figure,
    style_plot,
)
from neurona_training.report.results import RunResults

_BAND = 0.95  # of what chance alone does to a bin


def calibration_section(results: RunResults) -> Section | None:
    """Reliability diagram, before and after the temperature; None for a regression."""
    if not results.data.is_classification:
        return None
    targets, after = results.data.test.targets, results.predictions
    before = None
    if isinstance(results.network, Temperature):
        before = softmax(predict(results.network.network, results.data.test).numpy())
    description = "how often predictions are right, by how sure the network is"
    picture = make_picture(reliability_diagram(before, after, targets), description)
    words = ["confidence", "ECE", "NLL"] + ["temperature"] * (before is not None)
    title = "Calibrated probabilities"
    return Section(title, _describe(results, before), (picture,), words=tuple(words))


def reliability_diagram(
    before: NDArray[Any] | None, after: NDArray[Any], targets: NDArray[Any]
) -> Figure:
    """Accuracy against confidence, bin by bin, above the number of rows in each.

    Args:
        before: probabilities without the temperature, (rows, classes); None without one.
        after: those of the exported model.
        targets: int64 class indices of shape (rows,).
    """
    panels = [("As the model gives them", after, BLUE)]
    if before is not None:
        panels.insert(0, ("Without the temperature", before, ORANGE))
    figure = new_figure(4.75 * len(panels), 4.4)
    grid = figure.subplots(
        2, len(panels), squeeze=False, sharex=True, gridspec_kw={"height_ratios": [4, 1]}
    )
    for (upper, lower), (title, probabilities, colour) in zip(grid.T, panels, strict=True):
        bins = reliability_bins(probabilities, targets)
        _draw_reliability(upper, bins, colour)
        with_error = f"{title}: ECE {100 * bins.error:.1f} %"
        upper.set_title(with_error, fontsize=10.5, color=INK, loc="left")
        _draw_row_counts(lower, bins, colour)
    handles, labels = grid[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    grid[0][0].set_ylabel("accuracy", fontsize=9)
    grid[1][0].set_ylabel("test rows", fontsize=9)
    return figure


def _draw_reliability(axes: Axes, bins: ReliabilityBins, colour: str) -> None:
    style_plot(axes)
    filled = np.flatnonzero(bins.rows)
    rows, confidence, accuracy = (
        values[filled] for values in (bins.rows, bins.confidence, bins.accuracy)
    )
    tail = (1 - _BAND) / 2
    low, high = (binom.ppf(part, rows, confidence) / rows for part in (tail, 1 - tail))
    # Of a bin whose rows are all surely right, a line is left.
    height = np.maximum(high - low, 0.008)
    middle = (filled + 0.5) / CONFIDENCE_BINS
    width = 0.9 / CONFIDENCE_BINS
    axes.bar(middle, height, width, bottom=low, color=PALE, label="by chance, 95 of 100 times")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(confidence, accuracy, color=colour, linewidth=1.2, alpha=0.6)
    size = 14 + 130 * rows / rows.max()
    axes.scatter(
        confidence, accuracy, size, color=colour, zorder=3, label="right, of the bin's rows"
    )
    axes.set_xlim(0, 1.03)
    axes.set_ylim(-0.04, 1.06)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_row_counts(axes: Axes, bins: ReliabilityBins, colour: str) -> None:
    style_plot(axes)
    middle = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS
    axes.bar(middle, bins.rows, width=0.9 / CONFIDENCE_BINS, color=colour)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("confidence: the largest probability", fontsize=9)
    axes.grid(visible=False, axis="x")
    axes.locator_params(axis="y", nbins=3)


def _describe(results: RunResults, before: NDArray[Any] | None) -> str:
    targets, after = results.data.test.targets, results.predictions
    error = reliability_bins(after, targets).error
    ideal = ideal_calibration_error(after)
    limit = ideal[int(_BAND * len(ideal)) - 1]
    caption = (
        f"How often predictions are right, by how sure the network is; on the dashed line it is "
        f"right as often as it says. ECE, the mean distance from that line over "
        f"{CONFIDENCE_BINS} bins, is {100 * error:.1f} %; on {len(targets):,} rows a network "
        f"without any fault would have {100 * ideal.mean():.1f} % by chance, and up to "
        f"{100 * limit:.1f} % in 95 of 100 cases. "
    )
    if before is not None:
        temperature = find_temperature(results.network)
        caption += (
            f"The logits are divided by a temperature of {temperature:.2f}, fitted on the "
            f"validation rows: without it, ECE is "
            f"{100 * reliability_bins(before, targets).error:.1f} %, and NLL "
            f"{negative_log_likelihood(before, targets):.3f} instead of "
            f"{negative_log_likelihood(after, targets):.3f}."
        )
    else:
        caption += (
            "There is no temperature: on validation rows that it was not fitted on, none lowers "
            "the NLL."
        )
    return caption
