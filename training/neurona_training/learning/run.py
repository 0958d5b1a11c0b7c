"""What a learner takes and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch takes seconds to import, and recipes are listed without it
    from torch import Tensor, nn

    from neurona_training.data import Dataset


@dataclass(frozen=True)
class AugmentationRange:
    """How far a training image is changed at random, in either direction.

    Args:
        pixels: the largest shift along each axis, in pixels.
        degrees: the largest rotation, in degrees.
        horizontal_flip: whether half of the images are mirrored left to right.
        vertical_flip: whether half of the images are mirrored top to bottom.
        scale: the largest change of size, as a fraction: 0.1 makes them 0.9 to 1.1 times as
            large.
        colour: the largest change of brightness and of contrast, as a fraction of the image's
            own range.
    """

    pixels: float = 0.0
    degrees: float = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    scale: float = 0.0
    colour: float = 0.0


@dataclass(frozen=True)
class Hyperparameters:
    """How a network is trained; a learner without a gradient uses those that apply to it.

    Args:
        epochs: passes over the training rows, at most.
        batch_rows: rows between two steps of the optimiser, over all processes together.
        learning_rate: the largest one of the schedule.
        warm_up: fraction of all steps in which the learning rate rises from 0.
        schedule: after the warm-up: "cosine" falls to 0 along half a cosine, "linear" along a
            line, "constant" stays.
        optimiser: "adamw" (Loshchilov and Hutter, 2019), or "sgd", gradient descent.
        momentum: of sgd; 0 is the plain descent.
        weight_decay: as the optimiser defines it.
        label_smoothing: fraction of a target's probability spread over all classes.
        gradient_clip_norm: a gradient with a larger norm is scaled down to it; recurrent
            networks need that (Pascanu and others, 2013).
        patience: epochs without a better validation loss after which training stops; None
            never stops early.
        keep_epoch: the weights of the epoch with the "best" validation loss, or of the "last" one,
            to see what becomes of a network without validation.
        threads: of torch; small networks lose time to more than one.
        augmentation: of training images; None shows them unchanged.
        class_weights: "balanced" gives each class the same part in the loss, however many rows
            it has; None each row.
        weight_average: of the weights over the steps, what a step keeps of the average so far:
            0.999 averages about the last thousand steps (B. Polyak and A. Juditsky,
            Acceleration of Stochastic Approximation by Averaging, 1992). The average is what
            is validated and kept; 0 keeps the weights themselves.
    """

    epochs: int
    batch_rows: int
    learning_rate: float
    warm_up: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    gradient_clip_norm: float = 5.0
    patience: int | None = None
    threads: int = 1
    augmentation: AugmentationRange | None = None
    class_weights: Literal["balanced"] | None = None
    weight_average: float = 0.0
    keep_epoch: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class InitialWeights:
    """Weights that a training starts from, instead of random ones.

    Args:
        path: a file of torchvision's or timm's weights, written by torch.save or as safetensors;
            or the folder of a model that Neurona has trained, OUT/NAME or OUT/NAME/1.
        freeze: whether the last layer alone learns, and all others keep these weights.
    """

    path: Path
    freeze: bool = False


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        name: of the model, shown in the progress bar.
        seed: of first weights, order of the rows, augmentation and dropout.
        checkpoint: the file that is written after every epoch; None writes none.
        resume: continue from the checkpoint if it exists.
        listeners: each is called after every epoch, in the first process; an exception ends
            the training.
        initial_weights: None starts from random ones.
    """

    name: str
    seed: int
    checkpoint: Path | None = None
    resume: bool = False
    listeners: tuple[Callable[[Epoch], None], ...] = ()
    initial_weights: InitialWeights | None = None


@dataclass(frozen=True)
class Epoch:
    """State of a training after one epoch.

    Args:
        number: from 1.
        loss: mean over the training rows; in units of the targets' variance for a regression.
        validation_loss: mean over the validation rows, in the same unit.
        metric: on the validation rows: accuracy 0..1, or RMSE in the targets' unit.
        learning_rate: of the epoch's last step.
        training_metric: the same metric on as many training rows, unchanged by augmentation or
            dropout; None where it is not measured.
    """

    number: int
    loss: float
    validation_loss: float
    metric: float
    learning_rate: float
    training_metric: float | None = None


@dataclass(frozen=True)
class FitResult:
    """A trained network and how it came about.

    Args:
        network: in evaluation mode, on the CPU.
        best_epoch: the epoch whose weights the network has, from 1; 0 if they were set by hand, or
            if nothing that was learned in epochs helps a forecast.
        validation_loss: of these weights.
        history: every epoch, in order; empty for a learner without epochs.
        starting_weights: by name of the parameter, as they were before training; of layers with
            some million weights none, to save memory.
        fresh_layers: that had random weights when the others had those of a file.
    """

    network: nn.Module
    best_epoch: int
    validation_loss: float
    history: tuple[Epoch, ...] = ()
    starting_weights: Mapping[str, Tensor] = field(default_factory=dict)
    fresh_layers: tuple[str, ...] = ()


Learner = Callable[["nn.Module", "Dataset", Hyperparameters, Run], FitResult]
