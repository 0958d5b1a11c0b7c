"""Probabilities that can be trusted: a temperature fitted on the validation rows.

Label smoothing makes a network less sure than it is right, and long training makes it more sure.
One number corrects both without changing which class is the most probable: logits are divided by
a temperature before the softmax (C. Guo and others, On Calibration of Modern Neural Networks,
ICML 2017). `calibrate` fits it and puts it behind the network, so that the exported file has it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from neurona_training.architectures.input_layers import Temperature
from neurona_training.data import Dataset
from neurona_training.learning.evaluation import (
    CONFIDENCE_BINS,
    confidence_bins,
    negative_log_likelihood,
    predict,
    softmax,
)

FOLDS = 5
MIN_ROWS = 4  # of validation
# Spread of the normal distribution that the temperature's logarithm has before any row is seen
# (the fit is a maximum a posteriori). Without it the temperature of few rows that are all right
# would be 0, and the loss of the first mistake without bound.
_LOG_SPREAD = 0.5
_LARGEST = 50.0  # the temperature searched for, and one over the smallest
_NO_CHANGE = 0.01  # a temperature as near to 1 is not worth an operator in the graph
_FOLD_SEED = 2017


@dataclass(frozen=True)
class Calibration:
    """What was found on the validation rows.

    Args:
        temperature: by which logits are divided; 1 where that lowers no NLL.
        nll: of the network as it was trained.
        cross_fitted_nll: with temperatures, each row's fitted on other rows.
    """

    temperature: float
    nll: float
    cross_fitted_nll: float


def calibrate(network: nn.Module, data: Dataset) -> tuple[nn.Module, Calibration | None]:
    """Puts a temperature behind a classifier, where that lowers the NLL on rows not fitted.

    Args:
        network: trained; its outputs are logits of a classification.
        data: its validation rows are used.

    Returns:
        The network, in a `Temperature` if that helps, and what was found; None for a regression.
    """
    if not data.is_classification:
        return network, None
    logits = predict(network, data.validation).numpy()
    calibration = choose_temperature(logits, data.validation.targets)
    if calibration.temperature == 1:
        return network, calibration
    return Temperature(network, calibration.temperature).eval(), calibration


def find_temperature(network: nn.Module) -> float:
    """The temperature behind a network; 1 without one."""
    return 1 / float(network.factor) if isinstance(network, Temperature) else 1.0


def choose_temperature(logits: NDArray[Any], targets: NDArray[Any]) -> Calibration:
    """Fits a temperature and decides by cross-fitting whether it helps.

    The rows are divided into `FOLDS`; the NLL of each is measured with the temperature that was
    fitted on the others.

    Args:
        logits: of the validation rows, (rows, classes).
        targets: int64 class indices of shape (rows,).
    """
    nll = negative_log_likelihood(softmax(logits), targets)
    folds = min(FOLDS, len(targets))
    if len(targets) < MIN_ROWS:
        return Calibration(1.0, nll, nll)
    fold = np.random.default_rng(_FOLD_SEED).permutation(len(targets)) % folds
    total = 0.0
    for number in range(folds):
        is_held_out = fold == number
        temperature = fit_temperature(logits[~is_held_out], targets[~is_held_out])
        held_out = softmax(logits[is_held_out] / temperature)
        total += negative_log_likelihood(held_out, targets[is_held_out]) * is_held_out.sum()
    cross_fitted = float(total / len(targets))
    temperature = fit_temperature(logits, targets)
    if cross_fitted >= nll or abs(temperature - 1) < _NO_CHANGE:
        temperature = 1.0
    return Calibration(temperature, nll, cross_fitted)


def fit_temperature(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """The temperature with the smallest NLL, drawn towards 1 where the rows are few.

    Args:
        logits: (rows, classes).
        targets: int64 class indices of shape (rows,).
    """
    from scipy.optimize import minimize_scalar

    def penalised_nll(log_temperature: float) -> float:
        nll = negative_log_likelihood(softmax(logits / math.exp(log_temperature)), targets)
        return nll + (log_temperature / _LOG_SPREAD) ** 2 / 2 / len(targets)

    bounds = (-math.log(_LARGEST), math.log(_LARGEST))
    optimum = minimize_scalar(
        penalised_nll, bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(float(optimum.x))


def ideal_calibration_error(
    probabilities: NDArray[Any], draws: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """ECE that a perfectly calibrated model would have by chance, in each of several draws.

    Few rows in a bin are never right in exactly the fraction that is expected, so ECE is above
    0 for the best of models. Here rows are right at random, with their confidence as probability
    (J. Bröcker and L. Smith, Increasing the Reliability of Reliability Diagrams, 2007).

    Args:
        probabilities: of the rows, (rows, classes).
        draws: how often.
        seed: of the draws.

    Returns:
        The errors, sorted, 0..1 of shape (draws,).
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    index = confidence_bins(confidence)
    generator = np.random.default_rng(seed)
    errors = np.empty(draws)
    for draw in range(draws):
        excess = (generator.random(len(confidence)) < confidence) - confidence
        sums = np.bincount(index, excess, minlength=CONFIDENCE_BINS)
        errors[draw] = np.abs(sums).sum() / len(confidence)
    return np.sort(errors)
