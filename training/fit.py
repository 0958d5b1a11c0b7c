"""The training loop, one for classification and regression."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from neurona_training.augment import moved
from neurona_training.data import Dataset, Split
from neurona_training.evaluate import accuracy, answers, rmse
from neurona_training.recipes import Recipe, Training


@dataclass(frozen=True)
class Fitted:
    network: nn.Module  # with the weights of its best epoch
    best_epoch: int  # counted from 1
    validation_loss: float


def fit(recipe: Recipe, data: Dataset, training: Training, seed: int) -> Fitted:
    """Trains a fresh network; same seed, same weights on the same machine.

    After each epoch the validation rows are asked, and the weights that did best on them are
    the ones that stay.
    """
    torch.manual_seed(seed)  # for the first weights
    chance = torch.Generator().manual_seed(seed)  # for the order of the rows and their moves
    # A regression's loss in units of the targets' variance: 1 is what the mean would get.
    unit = 1.0 if data.is_classification else float(data.train.targets.var()) or 1.0
    network = recipe.network(data)
    inputs, targets = _tensors(data.train)

    steps = training.epochs * math.ceil(len(inputs) / training.batch_rows)
    optimiser = torch.optim.AdamW(
        network.parameters(), training.learning_rate, weight_decay=training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    best_epoch, best_loss, best_weights = 0, math.inf, copy.deepcopy(network.state_dict())
    with tqdm(range(1, training.epochs + 1), desc=recipe.name, unit="epoch") as progress:
        for epoch in progress:
            network.train()
            total_loss = 0.0
            order = torch.randperm(len(inputs), generator=chance)
            for chosen in torch.split(order, training.batch_rows):
                shown = inputs[chosen]
                if training.moves is not None:
                    shown = moved(shown, training.moves, chance)
                optimiser.zero_grad()
                answered = network(shown)
                error = loss(answered, targets[chosen], training.label_smoothing) / unit
                error.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(network.parameters(), training.largest_gradient)
                optimiser.step()
                schedule.step()
                total_loss += error.item() * len(chosen)

            answered = answers(network, data.validation)
            validation_loss = loss(answered, _tensors(data.validation)[1]).item() / unit
            if validation_loss < best_loss:
                best_epoch, best_loss = epoch, validation_loss
                best_weights = copy.deepcopy(network.state_dict())
            progress.set_postfix_str(
                f"loss {total_loss / len(inputs):.4f}, validation {_metric(answered, data)}"
            )

    network.load_state_dict(best_weights)
    return Fitted(network.eval(), best_epoch, best_loss)


def loss(answered: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean over rows: cross-entropy of logits with class indices, else squared error."""
    if targets.dtype == torch.int64:
        return functional.cross_entropy(answered, targets, label_smoothing=smoothing)
    return functional.mse_loss(answered, targets)


def _tensors(split: Split) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.inputs), torch.from_numpy(split.targets)


def _metric(answered: Tensor, data: Dataset) -> str:
    if data.is_classification:
        return f"accuracy {accuracy(answered.numpy(), data.validation.targets):.2%}"
    return f"RMSE {rmse(answered.numpy(), data.validation.targets):.4g} {data.values[0].unit}"
