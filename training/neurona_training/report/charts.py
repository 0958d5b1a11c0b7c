"""The sections about training, predictions and mistakes, and the learning curves."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from neurona_training.learning.evaluation import format_metric
from neurona_training.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    Section,
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

_PREDICTIONS = "Right and wrong"
_MAX_MARKERS = 40  # epochs whose points are drawn too


def training_section(results: RunResults) -> Section | None:
    """Learning curves; None for a learner without epochs."""
    if not results.fit_result.history:
        return None
    if len(results.fit_result.history) == 1:
        return _one_epoch_section(results)
    best = results.fit_result.best_epoch
    description = f"loss, metric and learning rate by epoch; weights of epoch {best}"
    caption = f"After each epoch the validation rows are predicted; {_which_epoch(results)}"
    caption += (
        " Where the training curve goes on to improve and the validation curve does not, the "
        "network is overfitting."
    )
    if any(epoch.training_metric is None for epoch in results.fit_result.history):
        caption = caption.partition(" Where")[0]
    picture = make_picture(learning_curves(results), description)
    words = ("epoch", "loss", "gradient", "learning rate", "overfitting")
    return Section("The training", caption, (picture,), words=words)


def _which_epoch(results: RunResults) -> str:
    """Which weights the model has, and why."""
    best, history = results.fit_result.best_epoch, results.fit_result.history
    if not best:
        return (
            "no epoch made them better than the linear part of the forecast, which alone is left."
        )
    lowest = min(history, key=lambda epoch: epoch.validation_loss).number
    if results.keeps_last_epoch and lowest != best:
        return (
            f"the model has the weights of the last epoch, {best}, as was asked for; those of "
            f"epoch {lowest} did best on them."
        )
    return f"the model has the weights of epoch {best}, which did best on them."


def _one_epoch_section(results: RunResults) -> Section:
    """One point makes no curve."""
    epoch = results.fit_result.history[0]
    name = "accuracy" if results.data.is_classification else "rmse"
    text = f"after it, {format_metric(name, epoch.metric, results.unit)} on the validation rows"
    if epoch.training_metric is not None:
        trained = format_metric(name, epoch.training_metric, results.unit)
        text += f", and {trained} on training rows"
    count = "one epoch" if epoch.number == 1 else f"{epoch.number} epochs"
    return Section("The training", f"It saw its training rows in {count}; {text}.")


def predictions_section(results: RunResults) -> Section:
    """Confusion and recall of a classification; true and predicted values of a regression."""
    if not results.data.is_classification:
        description = "predicted against true values, and residuals"
        pictures = [make_picture(predicted_against_true(results), description)]
        if results.is_series:
            description = "the series and its forecast"
            pictures.insert(0, make_picture(forecast_plot(results), description))
        caption = (
            "On the dashed line a prediction is right. Residuals should lie around zero, without "
            "a long tail."
        )
        return Section(_PREDICTIONS, caption, tuple(pictures), words=("residual",))
    recall = make_picture(recall_bars(results), "the part of each class that was found")
    if len(results.data.labels) > MAX_CLASSES:
        caption = f"The {MAX_CLASSES} classes found least."
        return Section(_PREDICTIONS, caption, (recall,), words=("recall",))
    caption = "Each row a true class: blue where it was found, orange what it was taken for."
    matrix = make_picture(confusion_matrix(results), caption)
    words = ("confusion matrix", "recall")
    return Section(_PREDICTIONS, caption, (matrix, recall), words=words)


def mistakes_section(results: RunResults) -> Section:
    """The worst predictions: a gallery of images or sequences, or a table of rows or text."""
    gallery = draw_gallery(results)
    title = "The worst mistakes"
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
        return Section(title, caption, table=worst_rows_table(results))
    return Section(title, caption, (make_picture(gallery, caption),))


def learning_curves(results: RunResults) -> Figure:
    """Loss, metric and learning rate by epoch; the epoch whose weights are kept is marked."""
    history, data = results.fit_result.history, results.data
    has_rates = len({epoch.learning_rate for epoch in history}) > 1
    figure = new_figure(9.5, 3.1)
    panels = figure.subplots(1, 2 + has_rates)
    left, right = panels[:2]
    numbers = [epoch.number for epoch in history]
    marker = "o" if len(history) <= _MAX_MARKERS else ""
    style = {"marker": marker, "markersize": 3, "linewidth": 1.6}
    losses = [epoch.loss for epoch in history]
    validation_losses = [epoch.validation_loss for epoch in history]
    left.plot(numbers, losses, color=ORANGE, label="training", **style)
    left.plot(numbers, validation_losses, color=BLUE, label="validation", **style)
    both = [*losses, *validation_losses]
    if min(both) > 0 and max(both) > 20 * min(both):
        left.set_yscale("log")
        steps = (1.0, 2.0, 5.0) if max(both) < 300 * min(both) else (1.0,)
        left.yaxis.set_major_locator(LogLocator(subs=steps))
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.yaxis.set_minor_formatter(NullFormatter())
    unit = "" if data.is_classification else ", 1 = predicting the mean"
    left.set_title(f"Loss{unit}", fontsize=10.5, color=INK, loc="left")
    trained = [epoch.training_metric for epoch in history]
    if all(value is not None for value in trained):
        right.plot(numbers, trained, color=ORANGE, label="training", **style)
    metrics = [epoch.metric for epoch in history]
    right.plot(numbers, metrics, color=BLUE, label="validation", **style)
    if data.is_classification:
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        right.set_ylim(top=min(right.get_ylim()[1], 1.005))
        right.set_title("Accuracy", fontsize=10.5, color=INK, loc="left")
    else:
        unit = f" in {data.error_unit}" if data.error_unit else ""
        right.set_title(escape_math(f"RMSE{unit}"), fontsize=10.5, color=INK, loc="left")
    if has_rates:
        rates = [epoch.learning_rate for epoch in history]
        panels[2].plot(numbers, rates, color=GREEN, **style)
        panels[2].set_ylim(bottom=0)
        panels[2].set_title("Learning rate", fontsize=10.5, color=INK, loc="left")
    best = results.fit_result.best_epoch
    for axes in panels:
        _mark_best_epoch(axes, best, "kept" if results.keeps_last_epoch else "best")
    if 0 < best <= len(history):
        metric = metrics[best - 1]
        text = f"{metric:.2%}" if data.is_classification else f"{metric:.4g}"
        right.plot([best], [metric], "o", color=INK, markersize=6, label=text)
    for axes in (left, right):
        axes.legend(fontsize=8.5, framealpha=0.85, edgecolor="none")
    return figure


def _mark_best_epoch(axes: Axes, best: int, word: str) -> None:
    style_plot(axes)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if best:
        label = f"{word}: epoch {best}"
        axes.axvline(best, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=label)
