"""What a recipe is: a network, the data on which it can be trained, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neurona_training.data.catalogue import DataOptions, load
from neurona_training.errors import DataError
from neurona_training.learning.run import FitResult, Hyperparameters, Learner, Run

if TYPE_CHECKING:  # recipes are listed without torch
    from torch import nn

    from neurona_training.data import Dataset, Kind, Task


def learn_by_gradient(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    """Runs the training loop of learning/gradient_descent.py: the learner of most recipes."""
    from neurona_training.learning.gradient_descent import fit

    return fit(network, data, hyperparameters, run)


@dataclass(frozen=True)
class Recipe:
    """A network by name, with all that is needed to train it.

    Args:
        name: of the recipe.
        description: one line, with the year of the paper.
        network: builds the network with fresh weights for a data set.
        hyperparameters: by data set; the first one is the default.
        takes: kinds of data that the network can read.
        tasks: what it can learn.
        learner: how it learns.
    """

    name: str
    description: str
    network: Callable[[Dataset], nn.Module]
    hyperparameters: Mapping[str, Hyperparameters]
    takes: tuple[Kind, ...]
    tasks: tuple[Task, ...] = ("classification", "regression")
    learner: Learner = learn_by_gradient

    @property
    def default_data(self) -> str:
        """Name of the default data set."""
        return next(iter(self.hyperparameters))

    @property
    def default_hyperparameters(self) -> Hyperparameters:
        """Those for the default data set, and for every data set that is not named."""
        return self.hyperparameters[self.default_data]

    def load(self, data: str | None = None, options: DataOptions | None = None) -> Dataset:
        """Loads a data set and checks that the network can be trained on it.

        Args:
            data: name of the data set; None loads the default.
            options: folder of published files, and the size of images.

        Raises:
            DataError: the data cannot be read, or do not suit the network.
        """
        dataset = load(data or self.default_data, options)
        self.check(dataset)
        return dataset

    def check(self, data: Dataset) -> None:
        """Checks that the network can be trained on these data.

        Raises:
            DataError: with the expected kind of data or task.
        """
        if data.kind not in self.takes:
            raise DataError(
                f"data set {data.name!r} has {data.kind} (recipe {self.name!r} expects "
                f"{' or '.join(self.takes)})"
            )
        if data.task not in self.tasks:
            raise DataError(
                f"data set {data.name!r} is for {data.task} (recipe {self.name!r} expects "
                f"{' or '.join(self.tasks)})"
            )

    def fit(self, data: Dataset, hyperparameters: Hyperparameters, run: Run) -> FitResult:
        """Builds a network and trains it; the same seed gives the same weights on a machine.

        Args:
            data: training and validation rows are used.
            hyperparameters: of the learner.
            run: name, seed and checkpoint.

        Raises:
            DataError: the network cannot be built for these data.
            FitError: the loss is not finite, or the checkpoint belongs to another training.
        """
        import torch

        torch.manual_seed(run.seed)  # for the first weights
        return self.learner(self.network(data), data, hyperparameters, run)
