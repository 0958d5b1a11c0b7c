"""From probabilities to decisions: ROC, precision and recall, and a threshold for a purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from neurona_training.learning.evaluation import predict, softmax
from neurona_training.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    Section,
    escape_math,
    make_picture,
    new_figure,
    shorten,
    style_plot,
)
from neurona_training.report.results import RunResults

_MAX_CURVES = 10  # classes, the worst ones
_WANTED_RECALL = 0.95  # of the class that must not be missed
_MIN_ROWS = 20  # test rows, below which curves would be a few steps
_MIN_PROBABILITIES = 3  # units with a threshold give 0 and 1 alone
# Names of classes in which nothing was found: the other class is the one to find.
_NEGATIVE = {
    *("no", "false", "negative", "0", "-1", "none", "normal", "healthy", "benign", "well"),
    *("good", "ok", "ham", "other", "rest", "absent", "non"),
}
_COLOURS = (BLUE, ORANGE, GREEN, RED, "#56B4E9", "#CC79A7", "#F0E442", GREY, INK, "#8a5f00")


def thresholds_section(results: RunResults) -> Section | None:
    """ROC and precision over recall; None for a regression, or for a few test rows."""
    data = results.data
    present = np.unique(data.test.targets)
    if not data.is_classification or len(data.test) < _MIN_ROWS or len(present) < 2:
        return None
    if len(np.unique(results.predictions)) <= _MIN_PROBABILITIES:
        return None
    if len(data.labels) == 2:
        return _two_classes(results)
    figure = _many_classes(results)
    caption = (
        "Left: each class against the rest, as its probability's threshold moves; the nearer a "
        "curve comes to the upper left corner, the better (AUC 1). Right: if only answers are "
        "used whose probability is above a threshold, fewer rows are answered, and more of the "
        "answers are right. The others can be given to a person."
    )
    picture = make_picture(figure, "ROC curves, and accuracy by threshold")
    return Section("Which threshold", caption, (picture,), words=("ROC", "AUC", "threshold"))


@dataclass(frozen=True)
class Curve:
    """What each threshold does to rows of two classes.

    Args:
        thresholds: descending; a row counts as positive from this probability on.
        recall: part of the positive rows that are found (sensitivity).
        false_alarms: part of the negative rows that are taken for positive.
        precision: part of the alarms that are right.
    """

    thresholds: NDArray[Any]
    recall: NDArray[Any]
    false_alarms: NDArray[Any]
    precision: NDArray[Any]

    @property
    def area(self) -> float:
        """Area under the ROC curve."""
        recall = np.concatenate([[0.0], self.recall])
        alarms = np.concatenate([[0.0], self.false_alarms])
        return float(np.sum(np.diff(alarms) * (recall[1:] + recall[:-1]) / 2))

    def at(self, threshold: float) -> int:
        """Index of the last threshold that is not below this one."""
        return max(0, int(np.count_nonzero(self.thresholds >= threshold)) - 1)


def threshold_curve(probabilities: NDArray[Any], is_positive: NDArray[Any]) -> Curve:
    """Counts what each threshold does; equal probabilities move together."""
    order = np.argsort(-probabilities, kind="stable")
    sorted_probabilities, positive = probabilities[order], is_positive[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_probabilities)), len(order) - 1)
    hits, alarms = np.cumsum(positive)[ends], ends + 1
    return Curve(
        thresholds=sorted_probabilities[ends],
        recall=hits / max(int(is_positive.sum()), 1),
        false_alarms=(alarms - hits) / max(int((~is_positive).sum()), 1),
        precision=hits / alarms,
    )


def positive_class(labels: Sequence[str]) -> int:
    """Index of the class to be found, of two: the second, unless its name says that it is not."""
    first, second = (label.strip().lower() for label in labels)
    return 0 if second in _NEGATIVE and first not in _NEGATIVE else 1


def _two_classes(results: RunResults) -> Section:
    data = results.data
    positive = positive_class(data.labels)
    curve = threshold_curve(results.predictions[:, positive], data.test.targets == positive)
    validated = softmax(predict(results.network, data.validation).numpy())
    on_validation = threshold_curve(validated[:, positive], data.validation.targets == positive)
    # Where sensitivity plus specificity is largest (W. Youden, Index for Rating Diagnostic
    # Tests, Cancer 3, 1950), and the first threshold that finds nearly all positive rows.
    balanced = int((on_validation.recall - on_validation.false_alarms).argmax())
    sensitive = int(np.argmax(on_validation.recall >= _WANTED_RECALL))
    points = [
        ("the larger probability", 0.5),
        ("best sum of both on validation rows", float(on_validation.thresholds[balanced])),
        (
            f"finds {_WANTED_RECALL:.0%} of the validation rows",
            float(on_validation.thresholds[sensitive]),
        ),
    ]
    label = shorten(data.labels[positive], 24)
    lines = [
        [
            "threshold",
            f"{label!r} from",
            "sensitivity (recall)",
            "specificity",
            "precision",
            "missed",
            "false alarms",
        ]
    ]
    is_positive = data.test.targets == positive
    for title, threshold in points:
        alarm = results.predictions[:, positive] >= threshold
        hits, false = int((alarm & is_positive).sum()), int((alarm & ~is_positive).sum())
        positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
        lines.append(
            [
                title,
                f"{threshold:.3g}",
                f"{hits / max(positives, 1):.1%}",
                f"{1 - false / max(negatives, 1):.1%}",
                f"{hits / max(hits + false, 1):.1%}",
                f"{positives - hits:,} of {positives:,}",
                f"{false:,} of {negatives:,}",
            ]
        )
    figure = _draw_two_classes(results, curve, points, label)
    caption = (
        f"The network gives a probability; whether that is called {label!r} is a decision, and "
        "depends on what a miss and a false alarm cost. Left: what each threshold finds against "
        "the false alarms that it raises; the diagonal is guessing. Right: how many of the "
        "alarms are right. The thresholds in the table were chosen on the validation rows and "
        "measured on the test rows; where both differ much, so do the rows."
    )
    picture = make_picture(figure, "ROC curve, and precision over recall")
    words = ("threshold", "ROC", "AUC", "sensitivity", "specificity", "precision")
    return Section("Which threshold", caption, (picture,), lines, words)


def _draw_two_classes(
    results: RunResults, curve: Curve, points: list[tuple[str, float]], label: str
) -> Figure:
    figure = new_figure(9.5, 4.1)
    left, right = figure.subplots(1, 2)
    targets = results.data.test.targets
    share = float((targets == positive_class(results.data.labels)).mean())
    left.plot(
        np.append(0, curve.false_alarms), np.append(0, curve.recall), color=BLUE, linewidth=1.8
    )
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    title = f"ROC, area {curve.area:.3f}"
    _percent_axes(left, title, "false alarms (1 - specificity)", "found (sensitivity)")
    right.plot(curve.recall, curve.precision, color=BLUE, linewidth=1.8)
    right.axhline(share, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    name = escape_math(label)
    _percent_axes(right, f"Precision and recall of {name}", "found (recall)", "right alarms")
    for (text, threshold), colour, marker in zip(
        points, (INK, ORANGE, GREEN), ("o", "s", "D"), strict=True
    ):
        index = curve.at(threshold)
        style = {"color": colour, "markersize": 7, "linestyle": "none"}
        left.plot(
            curve.false_alarms[index],
            curve.recall[index],
            marker=marker,
            label=f"{threshold:.2g}: {text}",
            **style,
        )
        right.plot(curve.recall[index], curve.precision[index], marker=marker, **style)
    left.legend(fontsize=8, loc="lower right", frameon=False)
    return figure


def _percent_axes(axes: Axes, title: str, across: str, up: str) -> None:
    style_plot(axes)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel(across, fontsize=9)
    axes.set_ylabel(up, fontsize=9)


def _many_classes(results: RunResults) -> Figure:
    data = results.data
    figure = new_figure(9.5, 4.1)
    left, right = figure.subplots(1, 2)
    curves = [
        (label, threshold_curve(results.predictions[:, label], data.test.targets == label))
        for label in np.unique(data.test.targets).tolist()
    ]
    curves = sorted(curves, key=lambda one: one[1].area)[:_MAX_CURVES]
    for (label, curve), colour in zip(curves, _COLOURS, strict=False):
        name = escape_math(shorten(data.labels[label], 14))
        left.plot(
            np.append(0, curve.false_alarms),
            np.append(0, curve.recall),
            color=colour,
            linewidth=1.5,
            label=f"{name}: {curve.area:.3f}",
        )
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    worst = f", the {len(curves)} worst classes" if len(curves) < len(data.labels) else ""
    _percent_axes(left, f"ROC and its area{worst}", "false alarms", "found (recall)")
    left.legend(fontsize=8, loc="lower right", frameon=False, ncols=1 + (len(curves) > 5))
    certainty = results.predictions.max(axis=1)
    is_right = results.predictions.argmax(axis=1) == data.test.targets
    order = np.argsort(-certainty, kind="stable")
    answered = np.arange(1, len(order) + 1) / len(order)
    accuracy = np.cumsum(is_right[order]) / np.arange(1, len(order) + 1)
    right.plot(answered, accuracy, color=BLUE, linewidth=1.8)
    style_plot(right)
    for threshold, colour, marker in ((0.5, INK, "o"), (0.9, ORANGE, "s"), (0.99, GREEN, "D")):
        count = int((certainty >= threshold).sum())
        if count:
            right.plot(
                answered[count - 1],
                accuracy[count - 1],
                marker=marker,
                color=colour,
                linestyle="none",
                label=f"from {threshold:.0%}: {accuracy[count - 1]:.1%} right",
            )
    low = float(accuracy[len(accuracy) // 10 :].min())
    low = 0.9 if low == 1 else low
    right.set_ylim(max(0.0, low - 0.2 * (1 - low)), 1 + 0.05 * (1 - low))
    right.set_xlim(-0.02, 1.02)
    right.xaxis.set_major_formatter(PercentFormatter(1.0))
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.set_title("Accuracy of the surest answers", fontsize=11, color=INK, loc="left")
    right.set_xlabel("answered test rows", fontsize=9)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=8, loc="lower left", frameon=False)
    return figure
