"""How a neocognitron learns: without a teacher, and without a gradient, layer by layer.

Of each image the S-cells compete. The strongest of each hypercolumn, the cells of all planes
around one place, is a candidate; the strongest candidate of a plane is its seed cell, and the
plane learns what the seed cell sees (Fukushima 1980, section 3). Where there is something to
see and no cell answers, a plane that has learned nothing yet learns it. Only then are classes
told: a linear read-out of the last C-cells, in closed form.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurona_training.architectures.neocognitron import Neocognitron, SCells
from neurona_training.data import Dataset
from neurona_training.errors import FitError
from neurona_training.learning import devices
from neurona_training.learning.evaluation import accuracy, answers
from neurona_training.learning.gradient_descent import loss
from neurona_training.learning.progress import bar
from neurona_training.learning.run import Epoch, Fitted, Run
from neurona_training.recipes.recipe import Training

_SHOWN = 600  # images to each layer in an epoch: features repeat long before
_COLUMN = 5  # cells across a hypercolumn
_FAINT = 0.3  # of the strongest part of an image: what is fainter starts no new plane
_ROWS_AT_ONCE = 256
_STIFFNESS = (0.01, 0.1, 1.0, 10.0)  # of the read-out, tried on the validation rows
_SHARPNESS = (2.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # from its answers to logits, tried as well


@torch.no_grad()
def compete(network: nn.Module, data: Dataset, training: Training, run: Run) -> Fitted:
    """Takes seconds to minutes, so it writes no checkpoint. Raises FitError for blank images."""
    if not isinstance(network, Neocognitron):
        raise TypeError(f"{type(network).__name__} has no S-cells")
    chance = torch.Generator().manual_seed(run.seed)
    order = torch.randperm(len(data.train), generator=chance)[:_SHOWN]
    x = network.seen(torch.from_numpy(data.train.inputs)[order])
    steps = len(network.layers) * training.epochs * len(x)
    with bar(run.name, steps, 0, shown=devices.rank() == 0) as progress:
        for layer in network.layers:
            cells = cast(SCells, cast(nn.Sequential, layer)[0])
            used = 0
            for _ in range(training.epochs):
                for row in torch.randperm(len(x), generator=chance):
                    used = _shown(cells, x[row][None], used, training.learning_rate)
                    progress.update()
            if not used:
                raise FitError(f"the images of the data set {data.name!r} have nothing to see")
            x = torch.cat([layer(some) for some in torch.split(x, _ROWS_AT_ONCE)])
    return _read_out(network, data, training)


def _shown(cells: SCells, x: Tensor, used: int, speed: float) -> int:
    """One image, (1, seen, height, width): how many planes have learned something after it."""
    answers, strength = cells(x)[0], cells.strength(x)[0, 0]
    size = cells.reach.shape[-1]
    padded = functional.pad(x[0], (size // 2,) * 4)

    def patch(place: int) -> Tensor:
        row, column = divmod(place, strength.shape[1])
        return padded[:, row : row + size, column : column + size]

    strongest = answers.amax(dim=0)  # over the planes, at each place
    column_best = functional.max_pool2d(strongest[None], _COLUMN, 1, _COLUMN // 2)[0]
    if used:
        candidates = answers * ((answers == column_best) & (answers > 0))
        best, places = candidates[:used].flatten(1).max(dim=1)
        for plane in best.nonzero()[:, 0].tolist():
            cells.reinforce(plane, patch(int(places[plane])), speed)
    unseen = strength * (column_best == 0)
    if used < len(cells.inhibitory) and unseen.max() > _FAINT * strength.max() > 0:
        cells.reinforce(used, patch(int(unseen.argmax())), speed)
        used += 1
    return used


def _read_out(network: Neocognitron, data: Dataset, training: Training) -> Fitted:
    """The plane of least squares from what the last C-cells answer to the classes."""
    rows = len(data.train)
    wanted = functional.one_hot(torch.from_numpy(data.train.targets), len(data.labels)).double()
    share = wanted.mean(dim=0)
    # In parts, since all features of all images at once may be more than the memory holds.
    width = network.output.in_features
    total, products = torch.zeros(width).double(), torch.zeros(width, width).double()
    both = torch.zeros(width, len(data.labels)).double()
    images = torch.from_numpy(data.train.inputs)
    for some, classes in zip(
        torch.split(images, _ROWS_AT_ONCE), torch.split(wanted, _ROWS_AT_ONCE), strict=True
    ):
        seen = network.features(some).double()
        total += seen.sum(dim=0)
        products += seen.T @ seen
        both += seen.T @ (classes - share)
    mean = total / rows
    products -= rows * torch.outer(mean, mean)

    validated = torch.cat(
        [
            network.features(some).double()
            for some in torch.split(torch.from_numpy(data.validation.inputs), _ROWS_AT_ONCE)
        ]
    )
    targets = torch.from_numpy(data.validation.targets)
    tried: list[tuple[float, Tensor, Tensor]] = []
    for stiffness in _STIFFNESS:
        weights = torch.linalg.solve(products + stiffness * torch.eye(width), both)
        for sharpness in _SHARPNESS:
            weight, bias = sharpness * weights, sharpness * (share - mean @ weights)
            tried.append((loss(validated @ weight + bias, targets).item(), weight, bias))
    missed, weight, bias = min(tried, key=lambda one: one[0])
    network.output.weight.copy_(weight.T)
    network.output.bias.copy_(bias)
    trained = loss(answers(network, data.train), torch.from_numpy(data.train.targets)).item()
    metric = accuracy((validated @ weight + bias).numpy(), data.validation.targets)
    history = (Epoch(training.epochs, trained, missed, metric, training.learning_rate),)
    return Fitted(network.eval(), training.epochs, missed, history)
