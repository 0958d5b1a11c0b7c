"""How the training went: loss and metric after each epoch."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from neurona_training.report.story import Story
from neurona_training.report.style import BLUE, GREY, INK, ORANGE, figure, literal, plain

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
