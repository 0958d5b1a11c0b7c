"""Several values of one metric: mean, standard deviation, and their text.

A figure of one seed is an anecdote: with the number of trainings and their standard deviation a
reader can see whether a difference between two networks is more than chance.

It is alone because comparisons, tables and the lines of --seeds print the same form.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

_HIGHER_IS_BETTER = ("accuracy", "auc")


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation of a metric over several trainings.

    Args:
        count: number of trainings.
        mean: over them.
        deviation: sample standard deviation (n - 1); None for one training.
    """

    count: int
    mean: float
    deviation: float | None


def summarise(values: Iterable[float]) -> Summary:
    """Returns the summary of at least one value."""
    numbers = list(values)
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Summary(len(numbers), statistics.fmean(numbers), deviation)


def higher_is_better(metric: str) -> bool:
    """Whether the largest value is the best one, as of an accuracy; the smallest of an error."""
    return metric.endswith(_HIGHER_IS_BETTER)


def format_summary(metric: str, summary: Summary, unit: str = "") -> str:
    """Formats a summary: `accuracy 99.31 ± 0.08 %`, `RMSE 15.2 ± 0.4 sunspots`.

    Both numbers have the same decimals, unless the first one has an exponent.
    """
    from neurona_training.learning.evaluation import format_metric

    text = format_metric(metric, summary.mean, unit)
    number = re.search(r"(?<!\S)-?[\d,]+(\.\d+)?(e[+-]\d+)?(?!\S)", text)
    if summary.deviation is None or number is None:
        return text
    decimals, exponent = len(number.group(1) or ".") - 1, number.group(2)
    deviation = summary.deviation * (100 if text.endswith("%") else 1)
    formatted = f"{deviation:.2g}" if exponent else f"{deviation:,.{decimals}f}"
    return f"{text[: number.end()]} ± {formatted}{text[number.end() :]}"
