"""The model card: what the model is for, from which data, how good, and where its limits are.

M. Mitchell and others, Model Cards for Model Reporting, FAT* (2019).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.learning.evaluation import format_metric
from neurona_training.report.drawing import Section, format_number, shorten
from neurona_training.report.predictions import confusion_counts
from neurona_training.report.results import RunResults

_NORMAL_QUANTILE = 1.96  # of 95 % in the middle
_RESAMPLES, _MIN_RESAMPLES = 1000, 200  # of the test rows, for the interval of an RMSE
_DRAWS = 20_000_000  # of rows, in all of them together
_FEW_ROWS = 30  # of a class in training: too few to rely on
_MAX_NAMES = 12  # classes or columns in one cell
_WEAK_CLASSES = 3


def model_card_section(results: RunResults) -> Section:
    """Questions that somebody who uses the model has, and the answers that the run knows."""
    lines = [
        ["question", "answer"],
        ["What is it?", results.metadata.description],
        ["What is it for?", _purpose(results)],
        ["What does it know?", _known_inputs(results)],
        ["From which data?", _data(results)],
        ["How good is it?", _quality(results)],
        ["Where is it weak?", _weaknesses(results)],
        ["What is it not for?", _limits(results)],
    ]
    caption = (
        "What somebody who uses the model should know before. The last lines cannot be measured "
        "here: add what you know about the purpose, the people concerned and the data's licence."
    )
    return Section("Model card", caption, table=[line for line in lines if line[1]])


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Interval of 95 % of a share that was measured on `count` rows.

    E. Wilson, Probable Inference, Journal of the American Statistical Association 22 (1927).
    """
    square = _NORMAL_QUANTILE**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = (
        _NORMAL_QUANTILE
        / (1 + square / count)
        * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    )
    return max(0.0, middle - half), min(1.0, middle + half)


def rmse_interval(errors: NDArray[Any], block: int = 1) -> tuple[float, float]:
    """Interval of 95 % of an RMSE, by drawing the rows anew (B. Efron's bootstrap, 1979).

    Args:
        errors: predicted less true values, rows along axis 0.
        block: successive rows that are drawn together, as errors of a series that are close to
            each other are alike (H. Künsch, The Jackknife and the Bootstrap for General
            Stationary Observations, Annals of Statistics 17, 1989).
    """
    squares = np.square(errors.astype(np.float64).reshape(len(errors), -1)).mean(axis=1)
    random, count = np.random.default_rng(0), len(squares)
    # Of very many rows fewer resamples: the interval is narrow, and each takes long.
    resamples = max(_MIN_RESAMPLES, min(_RESAMPLES, _DRAWS // count))
    means = []
    for _ in range(resamples):
        starts = random.integers(0, count, -(-count // block))
        rows = (starts[:, None] + np.arange(block)) % count
        means.append(squares[rows.ravel()[:count]].mean())
    low, high = np.sqrt(np.quantile(means, [0.025, 0.975]))
    return float(low), float(high)


def _purpose(results: RunResults) -> str:
    data = results.data
    what = {"rows": "the columns of a table", "images": "a picture", "sequences": "a sequence"}
    source = what[data.kind]
    if data.input.categories:
        source = "a text"
    if results.is_series:
        values = ", ".join(value.name for value in data.values[:_MAX_NAMES])
        return f"To forecast {values} from the {data.input.window or 'last'} values before."
    if not data.is_classification:
        values = ", ".join(value.name for value in data.values[:_MAX_NAMES])
        return f"To predict {values} from {source}."
    return f"To tell {len(data.labels)} classes apart by {source}: {_names(data.labels)}."


def _names(names: Any) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(shorten(name, 30) or "(empty)" for name in names[:_MAX_NAMES]) + more


def _known_inputs(results: RunResults) -> str:
    train = results.data.train
    described = results.data.input
    if described.categories:
        return f"{len(described.categories)} characters; others are ignored."
    if results.data.kind == "images":
        height, width = train.inputs.shape[-2:]
        colours = "colour" if train.inputs.ndim == 4 and train.inputs.shape[1] == 3 else "grey"
        return (
            f"Pictures in {colours} of {width} x {height} pixels, from {train.inputs.min():.4g} to "
            f"{train.inputs.max():.4g}, taken as those that it learned from."
        )
    if results.data.kind == "sequences":
        steps = train.lengths if train.lengths is not None else [train.inputs.shape[1]]
        lengths = f"{min(steps)} to {max(steps)}" if min(steps) < max(steps) else f"{min(steps)}"
        return (
            f"Sequences of {lengths} steps, values from "
            f"{format_number(np.nanmin(train.inputs))} to {format_number(np.nanmax(train.inputs))}."
        )
    names = results.column_names(train.inputs.shape[-1]) if train.inputs.ndim > 1 else []
    ranges = [
        f"{shorten(name, 30)} {results.format_cell(index, float(np.nanmin(column)))} to "
        f"{results.format_cell(index, float(np.nanmax(column)))}"
        for index, (name, column) in enumerate(
            zip(names[:_MAX_NAMES], train.inputs.T, strict=False)
        )
    ]
    ranges += [
        f"{shorten(extra.name, 30)}: {_names(extra.categories)}"
        for extra in results.data.extra_inputs[:_MAX_NAMES]
        if extra.categories
    ]
    rest = len(names) - _MAX_NAMES
    return "; ".join(ranges) + (f"; and {rest} more columns." if rest > 0 else ".")


def _data(results: RunResults) -> str:
    data = results.data
    use = "to see how it goes" if results.keeps_last_epoch else "to choose the epoch"
    return (
        f"{data.source.rstrip('.')}. {len(data.train):,} rows for training, "
        f"{len(data.validation):,} {use}, {len(data.test):,} to measure."
    )


def _quality(results: RunResults) -> str:
    figures, data = results.metadata.figures, results.data
    rows = len(data.test)
    if data.is_classification:
        low, high = wilson_interval(figures["test_accuracy"], rows)
        text = (
            f"{format_metric('test_accuracy', figures['test_accuracy'])} on {rows:,} test rows "
            f"(95 % interval {low:.1%} to {high:.1%})"
        )
        if "test_ece" in figures:
            text += f"; its probabilities are off by {figures['test_ece']:.1%} on average"
    else:
        block = max(len(data.values), math.ceil(rows ** (1 / 3))) if data.is_series else 1
        low, high = rmse_interval(
            (results.predictions - data.test.targets) / data.error_scales, block
        )
        text = (
            f"{format_metric('test_rmse', figures['test_rmse'], results.unit)} on {rows:,} test "
            f"rows (95 % interval {format_number(low)} to {format_number(high)})"
        )
        if "interval_coverage" in figures:
            text += f"; its intervals hold {figures['interval_coverage']:.1%} of the test values"
    if not results.fit_result.best_epoch and not results.fit_result.history:
        return f"{text}. Its weights were set by hand."
    if not results.fit_result.best_epoch:
        return f"{text}. It is a linear function of the window: no network helped beside it."
    return f"{text}. One training with one seed: others differ."


def _weaknesses(results: RunResults) -> str:
    data = results.data
    if not data.is_classification:
        errors = np.abs(results.predictions - data.test.targets) / data.error_scales
        errors = errors.max(axis=1)
        half, large = (
            f"{format_number(float(np.quantile(errors, part)))} {results.unit}".rstrip()
            for part in (0.5, 0.95)
        )
        return f"Half of the test rows are off by less than {half}, one in 20 by more than {large}."
    counts = confusion_counts(results)
    rows = counts.sum(axis=1)
    recall = np.diag(counts) / np.maximum(rows, 1)
    order = [label for label in np.argsort(recall, kind="stable") if rows[label]]
    weak = [
        f"{shorten(data.labels[label], 30)} ({recall[label]:.1%} found)"
        for label in order[:_WEAK_CLASSES]
        if recall[label] < 1
    ]
    text = f"Least found: {', '.join(weak)}. " if weak else "No mistake on the test rows. "
    trained = np.bincount(data.train.targets, minlength=len(data.labels))
    few = [
        f"{shorten(data.labels[label], 30)} ({trained[label]})"
        for label in np.flatnonzero(trained < _FEW_ROWS)[:_MAX_NAMES]
    ]
    return text + (f"Few rows to learn from: {', '.join(few)}." if few else "")


def _limits(results: RunResults) -> str:
    data = results.data
    texts = []
    if data.is_classification:
        texts.append("It knows no other class: anything else is called one of these")
    elif results.is_series:
        texts.append("It expects the future to be like the past that it has seen")
    else:
        texts.append("Outside the ranges above its values are guesses")
    texts.append(
        "whether it is worse for some groups of people, places or devices was not examined; do "
        "not let it decide alone about people"
    )
    return "; ".join(texts) + "."
