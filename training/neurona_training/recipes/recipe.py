"""What a recipe is: a network, the data on which it can be trained, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.data.catalogue import DataOptions, load
from neurona_training.errors import DataError, OptionError, WeightsError
from neurona_training.learning.run import FitResult, Hyperparameters, Learner, Run
from neurona_training.recipes.defaults import settings_by_kind
from neurona_training.recipes.settings import (
    AUGMENTATION_FIELDS,
    GRADIENT_FIELDS,
    Changes,
    Settings,
    option_flag,
)

if TYPE_CHECKING:  # recipes are listed without torch
    from torch import nn

    from neurona_training.data import Dataset, Kind, Task


# Numbers in one parameter whose first values are kept for the report; VGG16 has 100 million.
_MAX_STARTING_WEIGHTS = 4_000_000
_CLASSIFICATION_FIELDS = ("label_smoothing", "class_weights")


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
        tuned: settings for data sets of the catalogue, by their name; the first one is the
            default data set. Never used for a user's own file.
        takes: kinds of data that the network can read.
        tasks: what it can learn.
        learner: how it learns.
        defaults: settings for every other data set, by what the data are.
        default_network: the network as published, where neither tuned settings nor a user say
            otherwise; what it leaves open the network decides by the data.
        first_weights: how the network draws them unless a user chooses an initialisation.
        network_options: the fields of `NetworkOptions` that the network has.
        learner_options: the fields of `Hyperparameters` and `AugmentationRange` that the
            learner uses.
        minutes: by tuned data set, how long one training takes on one core of a server, where it
            is more than one; `--all` begins with the short ones.
    """

    name: str
    description: str
    network: Callable[[Dataset, NetworkOptions], nn.Module]
    tuned: Mapping[str, Settings]
    takes: tuple[Kind, ...]
    tasks: tuple[Task, ...] = ("classification", "regression")
    learner: Learner = learn_by_gradient
    defaults: Callable[[Dataset], Settings] = settings_by_kind
    default_network: NetworkOptions = field(default_factory=NetworkOptions)
    first_weights: str = "inputs"
    network_options: tuple[str, ...] = ()
    learner_options: tuple[str, ...] = GRADIENT_FIELDS
    minutes: Mapping[str, float] = field(default_factory=dict)

    @property
    def default_data(self) -> str:
        """Name of the default data set."""
        return next(iter(self.tuned))

    @property
    def tuned_settings(self) -> Settings:
        """The settings for the default data set."""
        return self.tuned[self.default_data]

    def default_settings(self, data: Dataset) -> Settings:
        """Returns the settings for data of this kind, task and size."""
        return self.defaults(data)

    def settings(self, data: Dataset, catalogue_name: str | None) -> Settings:
        """Returns the tuned settings of a data set of the catalogue, or those by kind.

        Args:
            data: what the network is trained on.
            catalogue_name: of the data set; None for a user's own data.
        """
        named = self.tuned.get(catalogue_name) if catalogue_name else None
        return named or self.default_settings(data)

    def describe_settings(self, settings: Settings) -> dict[str, str]:
        """Returns the settings that network and learner of this recipe use, as text by field."""
        network = settings.network.with_defaults(self.default_network)
        entries = Settings(settings.hyperparameters, network).described()
        used = ("epochs", "batch_rows", "learning_rate", *self.learner_options)
        entries.setdefault("initialisation", self.first_weights)
        used = (*used, *self.network_options, "initialisation")
        return {key: value for key, value in entries.items() if key in used}

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

    def check_changes(self, changes: Changes, data: Dataset | None = None) -> None:
        """Checks that network, learner and data have what a user wants to set.

        Args:
            changes: by field.
            data: None checks what can be checked without them.

        Raises:
            OptionError: with the options that there are, or the data for which they are.
        """
        available = (*self.learner_options, *self.network_options)
        for name, value in changes.items():
            if name not in available:
                others = ", ".join(option_flag(one) for one in available) or "none"
                raise OptionError(
                    f"recipe {self.name!r} has no option {option_flag(name)} (expected {others})"
                )
            if data is None or not value:
                continue
            if name in AUGMENTATION_FIELDS and data.kind != "images":
                raise OptionError(
                    f"data set {data.name!r} has {data.kind} ({option_flag(name)} is for images)"
                )
            if name in _CLASSIFICATION_FIELDS and not data.is_classification:
                raise OptionError(
                    f"data set {data.name!r} is for regression ({option_flag(name)} is for "
                    "classification)"
                )

    def fit(self, data: Dataset, settings: Settings, run: Run) -> FitResult:
        """Builds a network and trains it; the same seed gives the same weights on a machine.

        Args:
            data: training and validation rows are used.
            settings: of network and learner.
            run: name, seed and checkpoint.

        Raises:
            DataError: the network cannot be built for these data.
            FitError: the loss is not finite, or the checkpoint belongs to another training.
            WeightsError: the weights that the run starts from cannot be read, or do not fit.
        """
        import torch

        torch.manual_seed(run.seed)  # for the first weights
        network = self.network(data, settings.network)
        fresh: tuple[str, ...] = ()
        if settings.network.initialisation:
            from neurona_training.architectures.initialisation import initialise

            initialise(network, settings.network.initialisation)
        if run.initial_weights:
            from neurona_training.learning.initial_weights import start_from

            if "optimiser" not in self.learner_options:
                raise WeightsError(
                    f"initial weights not possible for recipe {self.name!r} (expected one that "
                    "learns by gradients)"
                )
            fresh = start_from(run.initial_weights, network, self.name, data)
        starting_weights = {
            name: values.detach().clone()
            for name, values in network.named_parameters()
            if values.numel() <= _MAX_STARTING_WEIGHTS
        }
        result = self.learner(network, data, settings.hyperparameters, run)
        return dataclasses.replace(result, fresh_layers=fresh, starting_weights=starting_weights)
