"""What a learner is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.data import Dataset
    from neurona_training.recipes.recipe import Training


@dataclass(frozen=True)
class Run:
    """One training.

    name: for the progress bar.
    checkpoint: the file that is written after every epoch; None writes none.
    resume: goes on from the checkpoint, if it is there.
    """

    name: str
    seed: int
    checkpoint: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Epoch:
    """How it stood after one epoch.

    loss, validation_loss: in units of the targets' variance for a regression.
    metric: on the validation rows: accuracy 0..1, or the RMSE in the targets' unit.
    learning_rate: of its last step.
    """

    number: int  # from 1
    loss: float
    validation_loss: float
    metric: float
    learning_rate: float


@dataclass(frozen=True)
class Fitted:
    """best_epoch: whose weights the network has, from 1; 0 when they were set by hand.
    history: every epoch, in order; empty for a learner that has none.
    """

    network: nn.Module
    best_epoch: int
    validation_loss: float
    history: tuple[Epoch, ...] = ()


Learner = Callable[["nn.Module", "Dataset", "Training", Run], Fitted]
