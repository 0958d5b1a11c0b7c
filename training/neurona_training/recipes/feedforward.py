"""Recipes of fully connected networks that learn by backpropagation (1986)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.learning.run import AugmentationRange, Hyperparameters
from neurona_training.recipes.defaults import is_large_table, settings_by_kind
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.data import Dataset


def _fully_connected(default: NetworkOptions, data: Dataset, options: NetworkOptions) -> nn.Module:
    from neurona_training.architectures.feedforward import FullyConnected
    from neurona_training.architectures.input_layers import Denormalise, Features
    from neurona_training.architectures.table_features import TableFeatures

    options = options.with_defaults(default)
    as_pieces = options.columns == "pieces" and data.kind == "rows"
    return FullyConnected(
        TableFeatures(data) if as_pieces else Features(data),
        hidden=options.units or (),
        outputs=len(data.labels) or len(data.values),
        activation=options.activation or "tanh",
        dropout=options.dropout or 0.0,
        denormalise=None if data.is_classification else Denormalise(data.train.targets),
    )


def _mlp_settings(data: Dataset) -> Settings:
    """Settings by kind, with units for the rows and columns that there are."""
    settings = settings_by_kind(data)
    if is_large_table(data):
        return settings.with_changes({"units": (256,), "activation": "relu", "dropout": 0.1})
    return settings.with_changes({"units": (128,)}) if data.kind == "images" else settings


def _feedforward_settings(data: Dataset) -> Settings:
    """Settings by kind, with a smaller rate for more layers."""
    return settings_by_kind(data).with_changes({"learning_rate": 1e-3})


_MLP = NetworkOptions(units=(32,), dropout=0.0, activation="tanh")
_FEEDFORWARD = NetworkOptions(units=(512, 512, 256, 128), dropout=0.1, activation="relu")
_NETWORK_OPTIONS = ("units", "layers", "dropout", "activation", "initialisation", "columns")

RECIPES = (
    Recipe(
        name="mlp",
        description="multilayer perceptron, one hidden layer and backpropagation (1986)",
        network=partial(_fully_connected, _MLP),
        default_network=_MLP,
        defaults=_mlp_settings,
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
        network=partial(_fully_connected, _FEEDFORWARD),
        default_network=_FEEDFORWARD,
        defaults=_feedforward_settings,
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
        minutes={"mnist": 2.5},
    ),
)
