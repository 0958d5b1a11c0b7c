"""The sections of the page that are pictures, each with a line on how to read it."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Picture,
    escape_math,
    make_picture,
    new_figure,
    style_plot,
)
from neurona_training.report.mistakes import SHOWN_ROWS, draw_gallery, worst_rows_table
from neurona_training.report.predictions import (
    MAX_CLASSES,
    confusion_matrix,
    forecast_plot,
    predicted_against_true,
    recall_bars,
)
from neurona_training.report.results import RunResults
from neurona_training.report.weights import draw_weights

_MAX_MARKERS = 40  # epochs whose points are drawn too


@dataclass(frozen=True)
class Section:
    """Pictures, or a table whose first line is its head, below a line on how to read them."""

    caption: str = ""
    pictures: tuple[Picture, ...] = ()
    table: list[list[str]] | None = None


def training_section(results: RunResults) -> Section | None:
    """Learning curves; None for a learner without epochs."""
    if not results.fit_result.history:
        return None
    description = f"loss and metric after each epoch; best: {results.fit_result.best_epoch}"
    return Section(pictures=(make_picture(learning_curves(results), description),))


def predictions_section(results: RunResults) -> Section:
    """Confusion and recall of a classification; true and predicted values of a regression."""
    if not results.data.is_classification:
        description = "predicted against true values, and residuals"
        pictures = [make_picture(predicted_against_true(results), description)]
        if results.is_series:
            description = "the series and its forecast"
            pictures.insert(0, make_picture(forecast_plot(results), description))
        return Section(pictures=tuple(pictures))
    recall = make_picture(recall_bars(results), "the part of each class that was found")
    if len(results.data.labels) > MAX_CLASSES:
        return Section(f"The {MAX_CLASSES} classes found least.", (recall,))
    caption = "Each row a true class: blue where it was found, orange what it was taken for."
    return Section(caption, (make_picture(confusion_matrix(results), caption), recall))


def mistakes_section(results: RunResults) -> Section:
    """The worst predictions: a gallery of images or sequences, or a table of rows or text."""
    gallery = draw_gallery(results)
    test_rows = len(results.data.test)
    if results.data.is_classification:
        is_wrong = results.predictions.argmax(axis=1) != results.data.test.targets
        wrong = int(is_wrong.sum())
        caption = f"{wrong:,} of {test_rows:,} test rows are wrong"
        caption += f"; the {SHOWN_ROWS} surest of them" if wrong > SHOWN_ROWS else ""
        if wrong < SHOWN_ROWS:
            caption += "; after them the right ones that were least sure"
        caption += "."
        if gallery is not None:
            caption += " The bars are probabilities, blue for the true class."
    else:
        caption = f"The {min(SHOWN_ROWS, test_rows)} test rows with the largest errors."
        caption += " Black is true, orange predicted, grey the input." * results.is_series
    if gallery is None:
        return Section(caption, table=worst_rows_table(results))
    return Section(caption, (make_picture(gallery, caption),))


def weights_section(results: RunResults) -> Section | None:
    """The weights of the first layer; None for a network without such a layer."""
    chart = draw_weights(results)
    if chart is None:
        return None
    figure, caption = chart
    return Section(f"{caption}.", (make_picture(figure, caption),))


def learning_curves(results: RunResults) -> Figure:
    """Loss and metric after each epoch; the best epoch, whose weights the model has, is marked."""
    history, data = results.fit_result.history, results.data
    figure = new_figure(9.5, 3.4)
    left, right = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in history]
    marker = "o" if len(history) <= _MAX_MARKERS else ""
    style = {"marker": marker, "markersize": 3.5, "linewidth": 1.8}
    left.plot(numbers, [epoch.loss for epoch in history], color=ORANGE, label="training", **style)
    left.plot(
        numbers,
        [epoch.validation_loss for epoch in history],
        color=BLUE,
        label="validation",
        **style,
    )
    losses = [loss for epoch in history for loss in (epoch.loss, epoch.validation_loss)]
    if min(losses) > 0 and max(losses) > 20 * min(losses):
        left.set_yscale("log")
    unit = "" if data.is_classification else ", 1 = predicting the mean"
    left.set_title(f"Loss{unit}", fontsize=11, color=INK, loc="left")
    metrics = [epoch.metric for epoch in history]
    right.plot(numbers, metrics, color=BLUE, label="validation", **style)
    if data.is_classification:
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.set_ylim(top=min(right.get_ylim()[1], 1.005))
        right.set_title("Accuracy", fontsize=11, color=INK, loc="left")
    else:
        unit = f" in {data.values[0].unit}" if data.values[0].unit else ""
        right.set_title(escape_math(f"RMSE{unit}"), fontsize=11, color=INK, loc="left")
    best = results.fit_result.best_epoch
    for axes in (left, right):
        _mark_best_epoch(axes, best)
    if 0 < best <= len(history):
        metric = metrics[best - 1]
        text = f"{metric:.2%}" if data.is_classification else f"{metric:.4g}"
        right.plot([best], [metric], "o", color=INK, markersize=6, label=text)
    for axes in (left, right):
        axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")
    return figure


def _mark_best_epoch(axes: Axes, best: int) -> None:
    style_plot(axes)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if best:
        label = f"best: epoch {best}"
        axes.axvline(best, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=label)
