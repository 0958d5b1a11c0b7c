"""Recipes of fully connected networks that learn by backpropagation (1986)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from neurona_training.learning.run import AugmentationRange, Hyperparameters
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.architectures.network_options import NetworkOptions
    from neurona_training.data import Dataset


def _fully_connected(
    hidden: tuple[int, ...],
    activation: str,
    dropout: float,
    data: Dataset,
    options: NetworkOptions,
) -> nn.Module:
    """Builds the network; the first three are the recipe's own where `options` has none."""
    from neurona_training.architectures.feedforward import FullyConnected
    from neurona_training.architectures.input_layers import Denormalise, Features

    return FullyConnected(
        Features(data),
        hidden=options.hidden_units(hidden),
        outputs=len(data.labels) or len(data.values),
        activation=options.activation or activation,
        dropout=dropout if options.dropout is None else options.dropout,
        denormalise=None if data.is_classification else Denormalise(data.train.targets),
    )


_NETWORK_OPTIONS = ("units", "layers", "dropout", "activation", "initialisation")

RECIPES = (
    Recipe(
        name="mlp",
        description="multilayer perceptron, one hidden layer and backpropagation (1986)",
        network=partial(_fully_connected, (32,), "tanh", 0.0),
        takes=("rows", "images"),
        tuned={
            "breast-cancer": Settings(
                Hyperparameters(epochs=60, batch_rows=32, learning_rate=3e-3, weight_decay=1.0)
            ),
            "diabetes": Settings(
                Hyperparameters(epochs=60, batch_rows=32, learning_rate=2e-3, weight_decay=1.0)
            ),
            "xor": Settings(Hyperparameters(epochs=300, batch_rows=4, learning_rate=0.05)),
            "iris": Settings(Hyperparameters(epochs=100, batch_rows=16, learning_rate=1e-2)),
            "digits": Settings(
                Hyperparameters(epochs=50, batch_rows=32, learning_rate=3e-3, weight_decay=1.0)
            ),
        },
        network_options=_NETWORK_OPTIONS,
    ),
    Recipe(
        name="feedforward",
        description="deep feedforward network, four hidden layers",
        network=partial(_fully_connected, (512, 512, 256, 128), "relu", 0.1),
        takes=("rows", "images"),
        tuned={
            "mnist": Settings(
                Hyperparameters(
                    epochs=30,
                    batch_rows=128,
                    learning_rate=1e-3,
                    weight_decay=0.1,
                    warm_up=0.05,
                    label_smoothing=0.1,
                    augmentation=AugmentationRange(pixels=2.0, degrees=10),
                )
            ),
            "digits": Settings(
                Hyperparameters(
                    epochs=50,
                    batch_rows=32,
                    learning_rate=1e-3,
                    label_smoothing=0.1,
                    augmentation=AugmentationRange(pixels=1.0, degrees=10),
                )
            ),
        },
        network_options=_NETWORK_OPTIONS,
    ),
)
