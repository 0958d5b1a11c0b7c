"""How far a forecast's network may correct its linear part: validation decides.

It is alone because the training loop knows nothing of a network's parts.
"""

from dataclasses import replace

import torch
from torch import nn

from neurona_training.architectures.forecast import Forecast
from neurona_training.data import Dataset
from neurona_training.learning.evaluation import predict
from neurona_training.learning.gradient_descent import fit, loss, target_unit
from neurona_training.learning.run import FitResult, Hyperparameters, Run


def learn_forecast(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    """Runs the training loop, and then sets the strength of a `Forecast`'s network.

    Returns:
        The result; its best epoch is 0 where the linear part alone is left.
    """
    result = fit(network, data, hyperparameters, run)
    if not isinstance(result.network, Forecast):
        return result
    fit_strength(result.network, data)
    validation_loss = _validation_loss(result.network, data)
    best_epoch = result.best_epoch if result.network.strength else 0
    return replace(result, best_epoch=best_epoch, validation_loss=validation_loss)


@torch.no_grad()
def fit_strength(network: Forecast, data: Dataset) -> None:
    """Sets how much of the network's correction is added, from 0 to 1.

    It is the factor with the smallest squared error on the validation rows, on the forecast's
    scale. A correction of chance is the smaller for it; one that makes the error in the values'
    unit no smaller than the linear part's is left out.

    Args:
        network: trained; changed in place.
        data: its validation rows are used.
    """
    network.eval()
    linear, correction = network.parts(torch.from_numpy(data.validation.inputs))
    missing = network.scale(torch.from_numpy(data.validation.targets)).double() - linear.double()
    correction = correction.double()
    size = correction.square().sum()
    best = ((missing * correction).sum() / size).clamp(0, 1) if size > 0 else size
    network.strength.zero_()
    linear_loss = _validation_loss(network, data)
    network.strength.copy_(best)
    if not _validation_loss(network, data) < linear_loss:
        network.strength.zero_()


def _validation_loss(network: nn.Module, data: Dataset) -> float:
    targets = torch.from_numpy(data.validation.targets)
    return loss(predict(network, data.validation), targets, unit=target_unit(data)).item()
