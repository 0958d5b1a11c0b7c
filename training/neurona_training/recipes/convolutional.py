"""Recipes of the first convolutional networks: neocognitron (1980) and LeNet-5 (1998)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.learning.run import AugmentationRange, FitResult, Hyperparameters, Run
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.architectures.network_options import NetworkOptions
    from neurona_training.data import Dataset


def _lenet5(data: Dataset, _options: NetworkOptions) -> nn.Module:
    from neurona_training.architectures.convolutional import LeNet5
    from neurona_training.architectures.input_layers import Normalise

    inputs = data.train.inputs
    return LeNet5(
        Normalise.to_unit_variance(inputs),
        size=inputs.shape[-2:],
        classes=len(data.labels),
        channels=inputs.shape[1] if inputs.ndim == 4 else 1,
    )


def _neocognitron(data: Dataset, _options: NetworkOptions) -> nn.Module:
    from neurona_training.architectures.input_layers import Normalise
    from neurona_training.architectures.neocognitron import Neocognitron

    inputs = data.train.inputs
    darkest, brightest = float(inputs.min()), float(inputs.max())
    return Neocognitron(
        Normalise(darkest, 1 / ((brightest - darkest) or 1.0)),
        size=inputs.shape[-2:],
        classes=len(data.labels),
        planes=(24, 128),
        selectivity=(8.0, 4.0),
    )


def _compete(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    from neurona_training.learning.competitive import learn_competitively

    return learn_competitively(network, data, hyperparameters, run)


_COMPETITIVE = Settings(Hyperparameters(epochs=1, batch_rows=1, learning_rate=100.0))

RECIPES = (
    Recipe(
        name="neocognitron",
        description="neocognitron, whose cells learn by competition (1980)",
        network=_neocognitron,
        takes=("images",),
        tasks=("classification",),
        tuned={"digits": _COMPETITIVE, "mnist": _COMPETITIVE},
        learner=_compete,
        defaults=lambda _: _COMPETITIVE,
        learner_options=("epochs", "learning_rate"),
        minutes={"mnist": 3},
    ),
    Recipe(
        name="lenet5",
        description="LeNet-5, a convolutional network (1998)",
        network=_lenet5,
        takes=("images",),
        tasks=("classification",),
        network_options=("initialisation",),
        tuned={
            "digits": Settings(
                Hyperparameters(
                    epochs=50,
                    batch_rows=32,
                    learning_rate=4e-3,
                    label_smoothing=0.1,
                    augmentation=AugmentationRange(pixels=1.2, degrees=12),
                )
            ),
            "mnist": Settings(
                Hyperparameters(
                    epochs=30,
                    batch_rows=128,
                    learning_rate=4e-3,
                    label_smoothing=0.1,
                    weight_average=0.999,
                    augmentation=AugmentationRange(pixels=2.0, degrees=10, scale=0.1),
                )
            ),
        },
        minutes={"mnist": 3},
    ),
)
