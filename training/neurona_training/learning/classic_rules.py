"""Learning rules from before backpropagation: one row at a time, without a gradient.

They take seconds, so they write no checkpoint: an interrupted run begins anew.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from neurona_training.architectures.classic import Adaline, Perceptron
from neurona_training.data import Dataset
from neurona_training.learning import devices
from neurona_training.learning.evaluation import accuracy, answers, rmse
from neurona_training.learning.gradient_descent import loss, rate_factor
from neurona_training.learning.progress import bar, told
from neurona_training.learning.run import Epoch, Fitted, Run
from neurona_training.recipes.recipe import Training


@torch.no_grad()
def by_hand(network: nn.Module, data: Dataset, _training: Training, _run: Run) -> Fitted:
    """Leaves the weights as they were set."""
    answered = answers(network, data.validation)
    missed = loss(answered, torch.from_numpy(data.validation.targets)).item()
    return Fitted(network.eval(), best_epoch=0, validation_loss=missed)


def rosenblatt(network: nn.Module, data: Dataset, training: Training, run: Run) -> Fitted:
    """Rosenblatt's rule: a row that is answered wrongly is added to the weights, or taken off.

    Ends with the first epoch that makes no mistake, which comes when the classes can be
    separated by a plane. Its loss is the part of the rows that were answered wrongly.
    """
    assert isinstance(network, Perceptron)  # noqa: S101 - which the recipe has built
    unit = network.unit
    rows, wanted = _rows(network, data), torch.from_numpy(data.train.targets)

    def epoch(_number: int, order: Tensor) -> tuple[float, float]:
        mistakes = 0
        for row in order:
            error = wanted[row] - unit(rows[row][None])[0]  # -1, 0 or 1
            if error:
                unit.weight.add_(training.learning_rate * error * rows[row])
                unit.threshold.sub_(training.learning_rate * error)
                mistakes += 1
        return mistakes / len(rows), training.learning_rate

    return _learn(epoch, network, data, training, run)


def widrow_hoff(network: nn.Module, data: Dataset, training: Training, run: Run) -> Fitted:
    """Widrow and Hoff's rule, the first stochastic gradient: each row moves the weights along
    its own error. The loss is the mean squared error before each step, in units of the
    targets' variance.

    The rate falls along `training.schedule`: with a constant one the weights would go on
    wandering around the best ones.
    """
    assert isinstance(network, Adaline)  # noqa: S101 - which the recipe has built
    rows = _rows(network, data)
    targets = torch.from_numpy(data.train.targets)
    wanted = (targets - network.denormalise(torch.zeros(1))) / _spread(network)
    steps = training.epochs * len(rows)

    def epoch(number: int, order: Tensor) -> tuple[float, float]:
        total, rate = 0.0, 0.0
        for done, row in enumerate(order, start=(number - 1) * len(rows)):
            error = wanted[row] - (network.weight @ rows[row] + network.bias)
            rate = training.learning_rate * rate_factor(done, steps, training)
            network.weight.add_(rate * error[:, None] * rows[row])
            network.bias.add_(rate * error)
            total += float(error.square().mean())
        return total / len(rows), rate

    return _learn(epoch, network, data, training, run)


@torch.no_grad()
def _learn(
    epoch: Callable[[int, Tensor], tuple[float, float]],
    network: nn.Module,
    data: Dataset,
    training: Training,
    run: Run,
) -> Fitted:
    """Goes through the epochs and keeps the weights that did best on the validation rows.

    epoch: shows every row in the order that it is given; the loss and the last rate.
    """
    targets = data.validation.targets
    unit = 1.0 if data.is_classification else float(data.train.targets.var()) or 1.0
    chance = torch.Generator().manual_seed(run.seed)
    history: list[Epoch] = []
    best_epoch, best_loss, best_weights = 0, math.inf, copy.deepcopy(network.state_dict())
    with bar(run.name, training.epochs, 0, shown=devices.rank() == 0) as progress:
        for number in range(1, training.epochs + 1):
            order = torch.randperm(len(data.train), generator=chance)
            train_loss, rate = epoch(number, order)
            answered = answers(network, data.validation)
            if data.is_classification:
                metric = accuracy(answered.numpy(), targets)
                validation_loss = 1 - metric
            else:
                metric = rmse(answered.numpy(), targets)
                validation_loss = metric**2 / unit
            history.append(Epoch(number, train_loss, validation_loss, metric, rate))
            if validation_loss <= best_loss:  # of equals the later one, which has seen more
                best_epoch, best_loss = number, validation_loss
                best_weights = copy.deepcopy(network.state_dict())
            progress.set_postfix_str(told(history[-1], training.epochs, data), refresh=False)
            progress.update()
            if train_loss == 0:
                break
    network.load_state_dict(best_weights)
    return Fitted(network.eval(), best_epoch, best_loss, tuple(history))


@torch.no_grad()
def _rows(network: Perceptron | Adaline, data: Dataset) -> Tensor:
    """The training rows as the unit sees them, (rows, width)."""
    rows: Tensor = network.features(torch.from_numpy(data.train.inputs))
    return rows


def _spread(network: Adaline) -> Tensor:
    """How far one step of the network's own unit goes in the user's."""
    one, zero = network.denormalise(torch.ones(1)), network.denormalise(torch.zeros(1))
    spread: Tensor = one - zero
    return spread
