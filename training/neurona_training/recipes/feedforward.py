"""Recipes of fully connected networks that learn by backpropagation (1986)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.learning.run import AugmentationRange, Hyperparameters
from neurona_training.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.data import Dataset


def _mlp(data: Dataset) -> nn.Module:
    from neurona_training.architectures.feedforward import FullyConnected
    from neurona_training.architectures.input_layers import Denormalise, Features

    return FullyConnected(
        Features(data),
        hidden=(32,),
        outputs=len(data.labels) or len(data.values),
        denormalise=None if data.is_classification else Denormalise(data.train.targets),
    )


def _feedforward(data: Dataset) -> nn.Module:
    from torch import nn

    from neurona_training.architectures.feedforward import FullyConnected
    from neurona_training.architectures.input_layers import Denormalise, Features

    return FullyConnected(
        Features(data),
        hidden=(512, 512, 256, 128),
        outputs=len(data.labels) or len(data.values),
        activation=nn.ReLU,
        dropout=0.1,
        denormalise=None if data.is_classification else Denormalise(data.train.targets),
    )


RECIPES = (
    Recipe(
        name="mlp",
        description="multilayer perceptron, one hidden layer and backpropagation (1986)",
        network=_mlp,
        takes=("rows", "images"),
        hyperparameters={
            "breast-cancer": Hyperparameters(
                epochs=60, batch_rows=32, learning_rate=3e-3, weight_decay=1.0
            ),
            "diabetes": Hyperparameters(
                epochs=60, batch_rows=32, learning_rate=2e-3, weight_decay=1.0
            ),
            "xor": Hyperparameters(epochs=300, batch_rows=4, learning_rate=0.05),
            "iris": Hyperparameters(epochs=100, batch_rows=16, learning_rate=1e-2),
            "digits": Hyperparameters(
                epochs=50, batch_rows=32, learning_rate=3e-3, weight_decay=1.0
            ),
        },
    ),
    Recipe(
        name="feedforward",
        description="deep feedforward network, four hidden layers",
        network=_feedforward,
        takes=("rows", "images"),
        hyperparameters={
            "mnist": Hyperparameters(
                epochs=30,
                batch_rows=128,
                learning_rate=1e-3,
                weight_decay=0.1,
                warm_up=0.05,
                label_smoothing=0.1,
                augmentation=AugmentationRange(pixels=2.0, degrees=10),
            ),
            "digits": Hyperparameters(
                epochs=50,
                batch_rows=32,
                learning_rate=1e-3,
                label_smoothing=0.1,
                augmentation=AugmentationRange(pixels=1.0, degrees=10),
            ),
        },
    ),
)
