"""The sections of the page that are pictures, each with a line on how to read it."""

from __future__ import annotations

from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from neurona_training.report.answers import MOST_CLASSES, against, confusion, forecast, recall
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    embedded,
    figure,
    literal,
    plain,
)
from neurona_training.report.mistakes import SHOWN, gallery, listed
from neurona_training.report.story import Story
from neurona_training.report.weights import weights

_MOST_MARKED = 40  # epochs whose points are drawn too


def curves(story: Story) -> Figure:
    """The best epoch, whose weights the model has, is marked in both."""
    history, data = story.fitted.history, story.data
    drawn = figure(9.5, 3.4)
    left, right = drawn.subplots(1, 2)
    numbers = [epoch.number for epoch in history]
    marker = "o" if len(history) <= _MOST_MARKED else ""
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
    unit = "" if data.is_classification else ", 1 = answering the mean"
    left.set_title(f"Loss{unit}", fontsize=11, color=INK, loc="left")
    metrics = [epoch.metric for epoch in history]
    right.plot(numbers, metrics, color=BLUE, label="validation", **style)
    if data.is_classification:
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.set_ylim(top=min(right.get_ylim()[1], 1.005))
        right.set_title("Accuracy", fontsize=11, color=INK, loc="left")
    else:
        unit = f" in {data.values[0].unit}" if data.values[0].unit else ""
        right.set_title(literal(f"RMSE{unit}"), fontsize=11, color=INK, loc="left")
    best = story.fitted.best_epoch
    for axes in (left, right):
        _mark(axes, best)
    if 0 < best <= len(history):
        metric = metrics[best - 1]
        text = f"{metric:.2%}" if data.is_classification else f"{metric:.4g}"
        right.plot([best], [metric], "o", color=INK, markersize=6, label=text)
    for axes in (left, right):
        axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")
    return drawn


def _mark(axes: Axes, best: int) -> None:
    plain(axes)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if best:
        label = f"best: epoch {best}"
        axes.axvline(best, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=label)


def training(story: Story) -> str:
    if not story.fitted.history:
        return ""
    return embedded(
        curves(story), f"loss and metric after each epoch; best: {story.fitted.best_epoch}"
    )


def right_and_wrong(story: Story) -> str:
    if not story.data.is_classification:
        pictures = [embedded(against(story), "predicted against true values, and residuals")]
        if story.is_series:
            pictures.insert(0, embedded(forecast(story), "the series and its forecast"))
        return "".join(pictures)
    recalled = embedded(recall(story), "the part of each class that was found")
    if len(story.data.labels) > MOST_CLASSES:
        return f'<p class="quiet">The {MOST_CLASSES} classes found least.</p>{recalled}'
    says = "Each row a true class: blue where it was found, orange what it was taken for."
    return f'<p class="quiet">{says}</p>{embedded(confusion(story), says)}{recalled}'


def mistakes(story: Story) -> str:
    drawn = gallery(story)
    if story.data.is_classification:
        wrong = int((story.answered.argmax(axis=1) != story.data.test.targets).sum())
        says = f"{wrong:,} of {len(story.data.test):,} test rows are wrong"
        says += f"; the {SHOWN} surest of them" if wrong > SHOWN else ""
        says += "; after them the right ones that were least sure" if wrong < SHOWN else ""
        says += "."
        if drawn is not None:
            says += " The bars are probabilities, blue for the true class."
    else:
        says = f"The {min(SHOWN, len(story.data.test))} test rows that it missed by most."
        says += " Black is true, orange predicted, grey what it was given." * story.is_series
    content = embedded(drawn, says) if drawn is not None else listed(story)
    return f'<p class="quiet">{escape(says)}</p>{content}'


def looked_for(story: Story) -> str:
    found = weights(story)
    if found is None:
        return ""
    drawn, says = found
    return f'<p class="quiet">{escape(says)}.</p>{embedded(drawn, says)}'
