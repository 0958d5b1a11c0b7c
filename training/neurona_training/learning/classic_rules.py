"""Learning rules from before backpropagation: one row at a time, without a gradient.

They take seconds, so they write no checkpoint: an interrupted run starts again.
"""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from neurona_training.architectures.classic import Adaline, Perceptron
from neurona_training.data import Dataset
from neurona_training.errors import FitError
from neurona_training.learning import devices
from neurona_training.learning.evaluation import accuracy, predict, rmse
from neurona_training.learning.gradient_descent import (
    compared_training_rows,
    loss,
    rate_factor,
    target_unit,
)
from neurona_training.learning.progress_bar import epoch_summary, progress_bar
from neurona_training.learning.run import Epoch, FitResult, Hyperparameters, Run

# Trains on every row in the given order; returns the loss and the last learning rate.
EpochFunction = Callable[[int, Tensor], tuple[float, float]]


@torch.no_grad()
def keep_initial_weights(
    network: nn.Module, data: Dataset, _hyperparameters: Hyperparameters, _run: Run
) -> FitResult:
    """Leaves the weights as they were set by hand."""
    outputs = predict(network, data.validation)
    validation_loss = loss(outputs, torch.from_numpy(data.validation.targets)).item()
    return FitResult(network.eval(), best_epoch=0, validation_loss=validation_loss)


def rosenblatt_rule(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    """Learns by Rosenblatt's rule: a misclassified row is added to or subtracted from the weights.

    Stops after the first epoch without a mistake, which comes if a plane separates the
    classes. The loss is the fraction of misclassified rows.

    F. Rosenblatt, The Perceptron, Psychological Review 65 (1958).

    Args:
        network: a `Perceptron`.
        data: rows of two classes.
        hyperparameters: `epochs` and `learning_rate` are used.
        run: name and seed.
    """
    assert isinstance(network, Perceptron)  # noqa: S101 - the recipe builds it
    unit = network.unit
    rows, targets = _scaled_rows(network, data), torch.from_numpy(data.train.targets)

    def train_epoch(_number: int, order: Tensor) -> tuple[float, float]:
        mistakes = 0
        for row in order:
            error = targets[row] - unit(rows[row][None])[0]  # -1, 0 or 1
            if error:
                unit.weight.add_(hyperparameters.learning_rate * error * rows[row])
                unit.threshold.sub_(hyperparameters.learning_rate * error)
                mistakes += 1
        return mistakes / len(rows), hyperparameters.learning_rate

    return _learn(train_epoch, network, data, hyperparameters, run)


def widrow_hoff_rule(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    """Learns by Widrow and Hoff's rule: each row moves the weights along its own error.

    The learning rate falls along `hyperparameters.schedule`: with a constant one the weights
    would keep wandering around the best ones. The loss is the mean squared error before each
    step, in units of the targets' variance.

    B. Widrow and M. Hoff, Adaptive Switching Circuits, IRE WESCON (1960).

    Args:
        network: an `Adaline`.
        data: rows with values as targets.
        hyperparameters: `epochs`, `learning_rate`, `warm_up` and `schedule` are used.
        run: name and seed.
    """
    assert isinstance(network, Adaline)  # noqa: S101 - the recipe builds it
    rows = _scaled_rows(network, data)
    targets = torch.from_numpy(data.train.targets)
    scaled_targets = (targets - network.denormalise(torch.zeros(1))) / _output_spread(network)
    steps = hyperparameters.epochs * len(rows)

    def train_epoch(number: int, order: Tensor) -> tuple[float, float]:
        total, rate = 0.0, 0.0
        for step, row in enumerate(order, start=(number - 1) * len(rows)):
            error = scaled_targets[row] - (network.weight @ rows[row] + network.bias)
            rate = hyperparameters.learning_rate * rate_factor(step, steps, hyperparameters)
            network.weight.add_(rate * error[:, None] * rows[row])
            network.bias.add_(rate * error)
            total += float(error.square().mean())
        return total / len(rows), rate

    return _learn(train_epoch, network, data, hyperparameters, run)


@torch.no_grad()
def _learn(
    train_epoch: EpochFunction,
    network: nn.Module,
    data: Dataset,
    hyperparameters: Hyperparameters,
    run: Run,
) -> FitResult:
    """Runs the epochs and keeps the weights that do best on the validation rows.

    Raises:
        FitError: no epoch has a finite validation loss.
    """
    targets = data.validation.targets
    unit = target_unit(data)
    generator = torch.Generator().manual_seed(run.seed)
    history: list[Epoch] = []
    compared_rows = compared_training_rows(data)
    best_epoch, best_loss, best_weights = 0, math.inf, copy.deepcopy(network.state_dict())
    is_first = devices.process_rank() == 0
    with progress_bar(run.name, hyperparameters.epochs, 0, visible=is_first) as progress:
        for number in range(1, hyperparameters.epochs + 1):
            order = torch.randperm(len(data.train), generator=generator)
            train_loss, rate = train_epoch(number, order)
            outputs = predict(network, data.validation)
            if data.is_classification:
                metric = accuracy(outputs.numpy(), targets)
                validation_loss = 1 - metric
            else:
                metric = rmse(outputs.numpy(), targets)
                validation_loss = loss(outputs, torch.from_numpy(targets), unit=unit).item()
            measure = accuracy if data.is_classification else rmse
            trained = predict(network, compared_rows).numpy()
            training_metric = measure(trained, compared_rows.targets)
            history.append(
                Epoch(number, train_loss, validation_loss, metric, rate, training_metric)
            )
            # Of equal ones the later, which has seen more rows.
            if math.isfinite(validation_loss) and validation_loss <= best_loss:
                best_epoch, best_loss = number, validation_loss
                best_weights = copy.deepcopy(network.state_dict())
            summary = epoch_summary(history[-1], hyperparameters.epochs, data)
            progress.set_postfix_str(summary, refresh=False)
            progress.update()
            if is_first:
                for listener in run.listeners:
                    listener(history[-1])
            if train_loss == 0:
                break
    if not best_epoch:
        raise FitError(
            f"validation loss is {history[-1].validation_loss} after {len(history)} epochs "
            "(expected a finite number; try a smaller learning rate)"
        )
    network.load_state_dict(best_weights)
    return FitResult(network.eval(), best_epoch, best_loss, tuple(history))


@torch.no_grad()
def _scaled_rows(network: Perceptron | Adaline, data: Dataset) -> Tensor:
    """The training rows in the network's own units, (rows, width)."""
    rows: Tensor = network.features(torch.from_numpy(data.train.inputs))
    return rows


def _output_spread(network: Adaline) -> Tensor:
    """How much one unit of the network's own output is in the targets' unit."""
    one, zero = network.denormalise(torch.ones(1)), network.denormalise(torch.zeros(1))
    spread: Tensor = one - zero
    return spread
