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

_SIGNIFICANCE = 0.05  # a difference is called more than chance if chance makes it more rarely


@dataclass(frozen=True)
class Comparison:
    """The network beside the baseline that is best on the test rows.

    Args:
        best: this baseline; the first of equal ones.
        loses: whether it is better than the network, by however little.
        beyond_chance: whether the two differ by more than chance explains in 95 % of cases. For
            a baseline that was best of several by chance, the level is divided by their number
            (C. Bonferroni, 1936).
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
    targets, scales = data.test.targets, data.error_scales
    errors = _row_errors(predictions, targets, scales)
    best = min(baselines, key=lambda one: _row_errors(one.predictions, targets, scales).mean())
    difference = errors - _row_errors(best.predictions, targets, scales)
    mean = float(difference.mean())
    # A network that beats the best of them has beaten each one; the best of them had more draws.
    tests = len(baselines) if mean > 0 else 1
    beyond_chance = p_value(difference, data) * tests < _SIGNIFICANCE

    def metric(outputs: NDArray[Any]) -> str:
        if data.is_classification:
            return format_metric("accuracy", accuracy(outputs, targets))
        return format_metric("rmse", rmse(outputs, targets, scales), data.error_unit)

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


def _row_errors(
    predictions: NDArray[Any], targets: NDArray[Any], scales: NDArray[np.float64]
) -> NDArray[np.float64]:
    """1 for a wrong class, else 0; or the mean of the squared errors of a row's values."""
    if targets.dtype == np.int64:
        is_wrong: NDArray[np.bool_] = predictions.argmax(axis=1) != targets
        return is_wrong.astype(np.float64)
    means: NDArray[np.float64] = np.square(
        (predictions - targets.astype(np.float64)) / scales
    ).mean(axis=1)
    return means


def p_value(differences: NDArray[np.float64], data: Dataset) -> float:
    """How often chance alone makes a mean of paired differences that is so far from 0.

    Independent rows of a classification: the exact test of Q. McNemar (Psychometrika 12, 1947), as
    a few rows that one of two gets right are no normal distribution. Otherwise Student's t, of
    the means of groups where rows have groups, and with the errors of neighbours in time where
    rows follow each other.

    Args:
        differences: of the errors of two predictors on the test rows, (rows,).
        data: says which rows depend on each other.
    """
    from scipy import stats

    groups = data.test.groups
    in_time_order = data.is_series or data.in_time_order
    if data.is_classification and groups is None and not in_time_order:
        wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
        return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    mean = float(differences.mean())
    centred = differences - mean
    # Rows of a group are no further evidence by themselves (K. Liang and S. Zeger, Biometrika 73,
    # 1986): what counts are the sums over groups.
    sums: NDArray[np.float64] = centred
    if groups is not None:
        sums = np.bincount(_codes(groups), centred).astype(np.float64)
    count = len(sums)
    if mean == 0 or count < 2:
        return 1.0
    variance = float(sums @ sums)
    if in_time_order:
        variance += _covariances(sums, data.test.targets.shape[1] if data.is_series else 1)
    error = np.sqrt(max(variance, 0) * count / (count - 1)) / len(differences)
    if error <= 1e-9 * abs(mean):  # all are equal: the test of their sign
        return float(2 * 0.5**count)
    return float(2 * stats.t.sf(abs(mean) / error, count - 1))


def _codes(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = np.unique(groups, return_inverse=True)[1]
    return codes


def _covariances(centred: NDArray[np.float64], horizon: int) -> float:
    """What successive errors, which are similar, add to the sum of their squares.

    They are counted up to the cube root of the number of rows, with weights that fall to 0
    (W. Newey and K. West, Econometrica 55, 1987; F. Diebold and R. Mariano, Journal of Business
    & Economic Statistics 13, 1995).
    """
    count, added = len(centred), 0.0
    lags = min(count - 1, max(horizon - 1, int(np.ceil(count ** (1 / 3)))))
    for lag in range(1, lags + 1):
        added += 2 * (1 - lag / (lags + 1)) * float(centred[lag:] @ centred[:-lag])
    return added


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
