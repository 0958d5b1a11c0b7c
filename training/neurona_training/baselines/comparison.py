"""Whether a baseline is better than the network on the test rows, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.baselines.estimators import Baseline
from neurona_training.data import Dataset
from neurona_training.learning.evaluation import accuracy, format_metric, rmse

_NORMAL_95 = 1.96  # standard errors to either side of a mean hold 95 % of what chance makes


@dataclass(frozen=True)
class Comparison:
    """The network beside the baseline that is best on the test rows.

    Args:
        best: this baseline; the first of equal ones.
        loses: whether it is better than the network, by however little.
        beyond_chance: whether the two differ by more than chance explains in 95 % of cases.
        sentence: the same for a reader.
    """

    best: Baseline
    loses: bool
    beyond_chance: bool
    sentence: str


def compare(predictions: NDArray[Any], data: Dataset, baselines: Sequence[Baseline]) -> Comparison:
    """Compares a network with the baselines on the test rows, row by row.

    Args:
        predictions: the network's: probabilities (rows, classes), or values (rows, values).
        data: the data set whose test rows were predicted.
        baselines: at least one.
    """
    targets = data.test.targets
    errors = _row_errors(predictions, targets)
    best = min(baselines, key=lambda one: _row_errors(one.predictions, targets).mean())
    difference = errors - _row_errors(best.predictions, targets)
    mean = float(difference.mean())
    beyond_chance = abs(mean) > _NORMAL_95 * _standard_error(difference, data)
    unit = data.values[0].unit if data.values else ""

    def metric(outputs: NDArray[Any]) -> str:
        if data.is_classification:
            return format_metric("accuracy", accuracy(outputs, targets))
        return format_metric("rmse", rmse(outputs, targets), unit)

    network, baseline = metric(predictions), metric(best.predictions)
    rows = f"{len(targets):,} test rows"
    if mean == 0:
        sentence = f"The network and {best.title} are equally good: {network} on {rows}."
    elif mean > 0:
        shorter = network.partition(" ")[2]
        sentence = f"{_capitalised(best.title)} is better than the network: {baseline} against "
        sentence += f"{shorter} on {rows}"
        sentence += "." if beyond_chance else "; a difference that may be chance."
        sentence += f" --export-baseline {best.name} writes it as a model of its own."
    else:
        sentence = f"The network is better than every baseline: {network} on {rows}; the best "
        sentence += f"of them is {best.title} with {baseline}"
        sentence += "." if beyond_chance else ", a difference that may be chance."
    return Comparison(best, mean > 0, beyond_chance, sentence)


def _row_errors(predictions: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """1 for a wrong class, else 0; or the mean of the squared errors of a row's values."""
    if targets.dtype == np.int64:
        is_wrong: NDArray[np.bool_] = predictions.argmax(axis=1) != targets
        return is_wrong.astype(np.float64)
    means: NDArray[np.float64] = np.square(predictions - targets.astype(np.float64)).mean(axis=1)
    return means


def _standard_error(differences: NDArray[np.float64], data: Dataset) -> float:
    """Of the mean. Rows of a series that are close to each other have similar errors.

    Their covariances are counted up to the cube root of the number of rows, with weights that
    fall to 0 (W. Newey and K. West, Econometrica 55, 1987; F. Diebold and R. Mariano, Journal
    of Business & Economic Statistics 13, 1995).
    """
    count = len(differences)
    centred = differences - differences.mean()
    variance = float(centred @ centred) / count
    if data.is_series:
        horizon = data.test.targets.shape[1]
        lags = min(count - 1, max(horizon - 1, int(np.ceil(count ** (1 / 3)))))
        for lag in range(1, lags + 1):
            weight = 1 - lag / (lags + 1)
            variance += 2 * weight * float(centred[lag:] @ centred[:-lag]) / count
    return float(np.sqrt(max(variance, 0) / count))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
