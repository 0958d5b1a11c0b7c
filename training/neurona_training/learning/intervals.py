"""Prediction intervals: how far a true value may be from the predicted one.

The distance is the quantile of the errors on the validation rows, which the network was not
trained on (split conformal prediction: V. Vovk and others, Algorithmic Learning in a Random
World, 2005; J. Lei and others, Distribution-Free Predictive Inference for Regression, JASA 113,
2018). If the rows to come are as the validation rows, an interval holds the true value with its
level's probability, whatever the network and the distribution. A series changes in time, and
validation chose the epoch too: the coverage of the test rows says how far that holds.

It is alone because it is for every regression, not for forecasts only.
"""

import math

import torch
from torch import nn

from neurona_training.architectures.forecast import Forecast
from neurona_training.architectures.input_layers import PredictionInterval, ValueScale
from neurona_training.data import Dataset, Value
from neurona_training.learning.evaluation import predict

_ROUNDING = 1e-9  # relative to ranks, which are far from 1e7


def add_intervals(network: nn.Module, data: Dataset, level: float) -> PredictionInterval:
    """Adds a prediction interval to each value that the network predicts.

    A forecast's interval is even on the scale on which the forecast adds, so that it grows with
    the values of a series whose changes do.

    Args:
        network: trained, a regression.
        data: its validation rows give the distances. Fewer of them than `rows_needed` give the
            largest error, which is exceeded more often.
        level: probability of an interval, 0..1.
    """
    scale = network.scale if isinstance(network, Forecast) else ValueScale("identity")
    predicted, targets = (
        predict(network, data.validation),
        torch.from_numpy(data.validation.targets),
    )
    errors = (scale(predicted) - scale(targets)).abs().sort(dim=0).values
    rank = min(len(errors), _round_up(level * (len(errors) + 1)))
    return PredictionInterval(network, scale, errors[rank - 1].clone())


def rows_needed(level: float) -> int:
    """The fewest validation rows whose errors have a quantile for this level."""
    return max(1, _round_up(level / (1 - level)))


def _round_up(number: float) -> int:
    """The next integer; 0.55 * 100 is 55, not 55.00000000000001."""
    return math.ceil(number - _ROUNDING)


def interval_bounds(data: Dataset, level: float) -> tuple[Value, ...]:
    """Describes the outputs that `add_intervals` adds, in their order."""
    return tuple(
        Value(f"{value.name}, {side} {100 * level:g} %", value.unit, quantile)
        for side, quantile in (("lower", (1 - level) / 2), ("upper", (1 + level) / 2))
        for value in data.values
    )
