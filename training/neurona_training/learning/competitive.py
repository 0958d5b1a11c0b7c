"""How a neocognitron learns: without labels and without a gradient, layer by layer.

The S-cells compete for each image. The strongest cell of each hypercolumn, the cells of all
planes around one position, is a candidate; the strongest candidate of a plane is its seed
cell, and the plane learns the seed cell's input (Fukushima 1980, section 3). If there is a
pattern to which no cell responds, the next plane that has learned nothing learns it. Labels
are used only at the end: by a linear readout of the last C-cells, in closed form.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurona_training.architectures.neocognitron import Neocognitron, SCells
from neurona_training.data import Dataset
from neurona_training.errors import FitError
from neurona_training.learning import devices
from neurona_training.learning.evaluation import accuracy, predict, rows_at_once
from neurona_training.learning.gradient_descent import loss
from neurona_training.learning.progress_bar import progress_bar
from neurona_training.learning.run import Epoch, FitResult, Hyperparameters, Run

_IMAGES_PER_LAYER = 600  # in an epoch: features repeat long before
_HYPERCOLUMN_SIZE = 5  # cells across
_MIN_NEW_STRENGTH = 0.3  # of an image's strongest part: fainter parts start no new plane
_RIDGE_PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of the readout, chosen on the validation rows
_LOGIT_SCALES = (2.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # from its outputs to logits, also chosen on them


@torch.no_grad()
def learn_competitively(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    """Trains a neocognitron; takes seconds to minutes, so it writes no checkpoint.

    K. Fukushima, Neocognitron, Biological Cybernetics 36 (1980).

    Args:
        network: a `Neocognitron`.
        data: images with classes.
        hyperparameters: `epochs` for each layer, and `learning_rate`, are used.
        run: name and seed.

    Raises:
        FitError: the training images are blank.
        TypeError: the network is no `Neocognitron`.
    """
    if not isinstance(network, Neocognitron):
        raise TypeError(f"network is a {type(network).__name__} (expected a Neocognitron)")
    generator = torch.Generator().manual_seed(run.seed)
    order = torch.randperm(len(data.train), generator=generator)[:_IMAGES_PER_LAYER]
    x = network.first_layer_input(torch.from_numpy(data.train.inputs)[order])
    steps = len(network.layers) * hyperparameters.epochs * len(x)
    is_first = devices.process_rank() == 0
    with progress_bar(run.name, steps, 0, visible=is_first) as progress:
        for layer in network.layers:
            cells = cast(SCells, cast(nn.Sequential, layer)[0])
            planes_used = 0
            for _ in range(hyperparameters.epochs):
                for row in torch.randperm(len(x), generator=generator):
                    planes_used = _learn_image(
                        cells, x[row][None], planes_used, hyperparameters.learning_rate
                    )
                    progress.update()
            if not planes_used:
                raise FitError(f"data set {data.name!r} has blank training images only")
            at_once = rows_at_once(data.train.inputs)
            x = torch.cat([layer(part) for part in torch.split(x, at_once)])
    result = _fit_readout(network, data, hyperparameters)
    if is_first:
        for listener in run.listeners:
            listener(result.history[-1])
    return result


def _learn_image(cells: SCells, x: Tensor, planes_used: int, learning_rate: float) -> int:
    """Shows one image, (1, in_maps, height, width); returns how many planes have learned."""
    responses, strength = cells(x)[0], cells.strength(x)[0, 0]
    size = cells.reach.shape[-1]
    padded = functional.pad(x[0], (size // 2,) * 4)

    def patch_at(position: int) -> Tensor:
        row, column = divmod(position, strength.shape[1])
        return padded[:, row : row + size, column : column + size]

    strongest = responses.amax(dim=0)  # over the planes, at each position
    column_best = functional.max_pool2d(
        strongest[None], _HYPERCOLUMN_SIZE, 1, _HYPERCOLUMN_SIZE // 2
    )[0]
    if planes_used:
        candidates = responses * ((responses == column_best) & (responses > 0))
        best, positions = candidates[:planes_used].flatten(1).max(dim=1)
        for plane in best.nonzero()[:, 0].tolist():
            cells.reinforce(plane, patch_at(int(positions[plane])), learning_rate)
    unanswered = strength * (column_best == 0)
    is_strong = unanswered.max() > _MIN_NEW_STRENGTH * strength.max() > 0
    if planes_used < len(cells.inhibitory) and is_strong:
        cells.reinforce(planes_used, patch_at(int(unanswered.argmax())), learning_rate)
        planes_used += 1
    return planes_used


def _fit_readout(
    network: Neocognitron, data: Dataset, hyperparameters: Hyperparameters
) -> FitResult:
    """Fits the linear readout by ridge regression from the last C-cells to the classes."""
    rows = len(data.train)
    one_hot = functional.one_hot(torch.from_numpy(data.train.targets), len(data.labels)).double()
    class_share = one_hot.mean(dim=0)
    # In parts, since the features of all images may not fit into memory.
    width = network.output.in_features
    total, products = torch.zeros(width).double(), torch.zeros(width, width).double()
    covariance = torch.zeros(width, len(data.labels)).double()
    images, at_once = torch.from_numpy(data.train.inputs), rows_at_once(data.train.inputs)
    for part, classes in zip(
        torch.split(images, at_once), torch.split(one_hot, at_once), strict=True
    ):
        features = network.features(part).double()
        total += features.sum(dim=0)
        products += features.T @ features
        covariance += features.T @ (classes - class_share)
    mean = total / rows
    products -= rows * torch.outer(mean, mean)

    validation_features = torch.cat(
        [
            network.features(part).double()
            for part in torch.split(torch.from_numpy(data.validation.inputs), at_once)
        ]
    )
    targets = torch.from_numpy(data.validation.targets)
    candidates: list[tuple[float, Tensor, Tensor]] = []
    for penalty in _RIDGE_PENALTIES:
        weights = torch.linalg.solve(products + penalty * torch.eye(width), covariance)
        for scale in _LOGIT_SCALES:
            weight, bias = scale * weights, scale * (class_share - mean @ weights)
            error = loss(validation_features @ weight + bias, targets).item()
            candidates.append((error, weight, bias))
    validation_loss, weight, bias = min(candidates, key=lambda candidate: candidate[0])
    network.output.weight.copy_(weight.T)
    network.output.bias.copy_(bias)
    outputs = predict(network, data.train)
    train_loss = loss(outputs, torch.from_numpy(data.train.targets)).item()
    logits = (validation_features @ weight + bias).numpy()
    metric = accuracy(logits, data.validation.targets)
    epochs, rate = hyperparameters.epochs, hyperparameters.learning_rate
    training_metric = accuracy(outputs.numpy(), data.train.targets)
    history = (Epoch(epochs, train_loss, validation_loss, metric, rate, training_metric),)
    return FitResult(network.eval(), epochs, validation_loss, history)
