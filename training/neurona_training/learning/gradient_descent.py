"""The training loop, one for classification and regression."""

import copy
import math
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from neurona_training.data import Dataset
from neurona_training.errors import FitError
from neurona_training.learning import checkpoint, devices
from neurona_training.learning.augmentation import moved
from neurona_training.learning.checkpoint import Checkpoint
from neurona_training.learning.evaluation import accuracy, answers, rmse
from neurona_training.learning.progress import bar, told
from neurona_training.learning.run import Epoch, Fitted, Run
from neurona_training.recipes.recipe import Training


def fit(
    network: nn.Module,
    data: Dataset,
    training: Training,
    run: Run,
    on: devices.Device | None = None,
) -> Fitted:
    """Trains the network; same seed, same weights on the same machine.

    After each epoch the validation rows are asked. The weights that did best on them are the
    ones that stay, and `training.patience` epochs without a better answer are the last. What
    is in the checkpoint then lets a killed run go on to the same weights.

    Called in every process of torchrun, and the same in each: the network, on the CPU.

    Raises FitError when the loss is no number, or the checkpoint is another training's.
    """
    on = on or devices.best()
    network = network.to(on.place)
    optimiser, scaler = _optimiser(network, training), on.scaler()
    # A regression's loss in units of the targets' variance: 1 is what the mean would get.
    unit = 1.0 if data.is_classification else float(data.train.targets.var()) or 1.0

    history: list[Epoch] = []
    best_epoch, best_loss, best_weights = 0, math.inf, copy.deepcopy(network.state_dict())
    of = checkpoint.fingerprint(data, training, run, devices.size())
    if saved := _saved(run, of):
        network.load_state_dict(saved.weights)
        optimiser.load_state_dict(saved.optimiser)
        scaler.load_state_dict(saved.scaler)
        history, best_epoch = list(saved.history), saved.best_epoch
        best_loss, best_weights = saved.best_loss, saved.best_weights

    learning = devices.wrapped(network, on.place)  # the same weights
    is_first = devices.rank() == 0
    steps = math.ceil(len(data.train) / training.batch_rows)
    with bar(run.name, training.epochs * steps, len(history) * steps, shown=is_first) as progress:
        for number in range(len(history) + 1, training.epochs + 1):
            if training.patience is not None and number - best_epoch > training.patience:
                break
            train_loss, rate = _epoch(
                learning,
                data,
                training,
                number,
                seed=run.seed,
                optimiser=optimiser,
                scaler=scaler,
                on=on,
                unit=unit,
                progress=progress,
            )
            validation_loss, metric = _validate(network, data, unit, on, training.label_smoothing)
            history.append(Epoch(number, train_loss, validation_loss, metric, rate))
            if validation_loss < best_loss:
                best_epoch, best_loss = number, validation_loss
                best_weights = copy.deepcopy(network.state_dict())
            progress.set_postfix_str(told(history[-1], training.epochs, data), refresh=False)
            if is_first and run.checkpoint:
                now = Checkpoint(
                    of=of,
                    history=tuple(history),
                    best_epoch=best_epoch,
                    best_loss=best_loss,
                    best_weights=best_weights,
                    weights=network.state_dict(),
                    optimiser=optimiser.state_dict(),
                    scaler=scaler.state_dict(),
                )
                checkpoint.save(now, run.checkpoint)

    if not best_epoch:
        raise FitError(
            f"the validation loss is {history[-1].validation_loss} after {len(history)} epochs; "
            "a smaller learning rate may help"
        )
    network.load_state_dict(best_weights)
    for tensor in network.state_dict().values():
        devices.from_first(tensor)  # what a process gathers for itself: normalisation
    return Fitted(network.to("cpu").eval(), best_epoch, best_loss, tuple(history))


def _epoch(
    network: nn.Module,
    data: Dataset,
    training: Training,
    number: int,
    *,
    seed: int,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    on: devices.Device,
    unit: float,
    progress: "tqdm[NoReturn]",
) -> tuple[float, float]:
    """Shows every training row once: the mean loss, and the last learning rate."""
    network.train()
    chance = _chance(seed, number)
    inputs = [torch.from_numpy(array) for array in data.train.arrays]
    targets = torch.from_numpy(data.train.targets)
    batches = torch.split(torch.randperm(len(targets), generator=chance), training.batch_rows)
    total_loss = torch.zeros((), device=on.place)
    rate = 0.0
    for done, batch in enumerate(batches, start=(number - 1) * len(batches)):
        shown = [array[batch] for array in inputs]
        if training.moves is not None:
            shown[0] = moved(shown[0], training.moves, chance)
        # Of several processes each takes a part of the batch.
        part, weight = devices.own_part(len(batch))
        wanted = targets[batch][part].to(on.place)

        optimiser.zero_grad()
        with on.autocast():
            answered = network(*(some[part].to(on.place) for some in shown))
        error = loss(answered.float(), wanted, training.label_smoothing) / unit * weight
        scaler.scale(error).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(network.parameters(), training.largest_gradient)
        rate = training.learning_rate * rate_factor(done, training.epochs * len(batches), training)
        for group in optimiser.param_groups:
            group["lr"] = rate
        scaler.step(optimiser)
        scaler.update()

        total_loss += error.detach() * len(batch)
        progress.update()
    return devices.mean(total_loss).item() / len(targets), rate


def loss(answered: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean over rows: cross-entropy of logits with class indices, else squared error."""
    if targets.dtype == torch.int64:
        return functional.cross_entropy(answered, targets, label_smoothing=smoothing)
    return functional.mse_loss(answered, targets)


def rate_factor(step: int, steps: int, training: Training) -> float:
    """The part of the largest learning rate that step number `step` of `steps` has, from 0."""
    rising = training.warm_up * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if training.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def _optimiser(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    weights, rate, decay = network.parameters(), training.learning_rate, training.weight_decay
    if training.optimiser == "sgd":
        return torch.optim.SGD(weights, rate, training.momentum, weight_decay=decay)
    return torch.optim.AdamW(weights, rate, weight_decay=decay)


def _chance(seed: int, epoch: int) -> torch.Generator:
    """For the order of the rows and their moves; dropout draws from torch's own generator.

    Both begin anew with each epoch, so that one after a checkpoint is as it would have been.
    Every process has the same order, and a dropout of its own.
    """
    shared, own = np.random.SeedSequence((seed, epoch)).generate_state(2)
    torch.manual_seed(int(own) + devices.rank())
    return torch.Generator().manual_seed(int(shared))


def _saved(run: Run, of: str) -> Checkpoint | None:
    """The first process reads it for all: on other machines there is no such file."""
    if run.checkpoint is None or not run.resume:
        return None
    found = checkpoint.load(run.checkpoint, of) if devices.rank() == 0 else None
    return devices.object_from_first(found)


def _validate(
    network: nn.Module, data: Dataset, unit: float, on: devices.Device, smoothing: float
) -> tuple[float, float]:
    """Loss and metric (accuracy or RMSE), asked by the first process for all.

    The loss is the one that the training makes smaller: with another smoothing, the weights
    that it calls the best would be early ones.
    """
    measured = torch.zeros(2, dtype=torch.float64, device=on.place)
    if devices.rank() == 0:
        answered, targets = answers(network, data.validation, on.place), data.validation.targets
        measured[0] = loss(answered, torch.from_numpy(targets), smoothing) / unit
        measure = accuracy if data.is_classification else rmse
        measured[1] = measure(answered.numpy(), targets)
    validation_loss, metric = devices.from_first(measured).tolist()
    return validation_loss, metric
