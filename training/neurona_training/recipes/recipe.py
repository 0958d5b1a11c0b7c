"""What a recipe is: a network, the data it can be trained on, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from neurona_training.data.catalogue import Options, load
from neurona_training.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.data import Dataset, Kind, Task
    from neurona_training.learning.run import Fitted, Learner, Run


@dataclass(frozen=True)
class Moves:
    """How far an image may be moved at random, either way."""

    pixels: float
    degrees: float


@dataclass(frozen=True)
class Training:
    """Hyper-parameters of the loop in fit.py; another learner takes those that it knows."""

    epochs: int  # how often each row is seen, at most
    batch_rows: int  # of all processes together
    learning_rate: float  # the largest one
    warm_up: float = 0.0  # the part of all steps in which it rises from 0
    schedule: Literal["cosine", "constant"] = "cosine"  # then: half a cosine to 0, or as it is
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0
    label_smoothing: float = 0.0  # the part of a target's certainty spread over all classes
    largest_gradient: float = 5.0  # a longer one, as recurrent networks have, is cut to this
    patience: int | None = None  # epochs without a better validation loss that end a training
    threads: int = 1  # of torch; small networks lose time to more
    moves: Moves | None = None  # of the training images


def by_gradient(network: nn.Module, data: Dataset, training: Training, run: Run) -> Fitted:
    """The learner of most recipes: the loop in fit.py."""
    from neurona_training.learning.gradient_descent import fit

    return fit(network, data, training, run)


@dataclass(frozen=True)
class Recipe:
    """network: gives fresh weights, fitting the data that it is given.
    trainings: by data set, the hyper-parameters; the first one is the default.
    takes: the kinds of data that the network can read.
    tasks: what it can learn.
    """

    name: str
    description: str
    network: Callable[[Dataset], nn.Module]
    trainings: Mapping[str, Training]
    takes: tuple[Kind, ...]
    tasks: tuple[Task, ...] = ("classification", "regression")
    learner: Learner = by_gradient

    @property
    def data(self) -> str:
        """The name of its default data set."""
        return next(iter(self.trainings))

    @property
    def training(self) -> Training:
        """The hyper-parameters for its default data set, and for any that it does not name."""
        return self.trainings[self.data]

    def load(self, data: str | None = None, options: Options | None = None) -> Dataset:
        """A data set by name, its default without one, found to fit. Raises DataError."""
        loaded = load(data or self.data, options)
        self.check(loaded)
        return loaded

    def check(self, data: Dataset) -> None:
        """Raises DataError when the network cannot be trained on these data."""
        if data.kind not in self.takes:
            raise DataError(
                f"recipe {self.name!r} takes {' or '.join(self.takes)}; "
                f"the data set {data.name!r} has {data.kind}"
            )
        if data.task not in self.tasks:
            raise DataError(
                f"recipe {self.name!r} learns {' or '.join(self.tasks)}; "
                f"the data set {data.name!r} is for {data.task}"
            )

    def fit(self, data: Dataset, training: Training, run: Run) -> Fitted:
        """A fresh network, trained; same seed, same weights on the same machine.

        Raises FitError.
        """
        import torch

        torch.manual_seed(run.seed)  # for the first weights
        return self.learner(self.network(data), data, training, run)
