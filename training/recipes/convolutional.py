"""Recipes of convolutional networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.recipes.recipe import Moves, Recipe, Training

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.data import Dataset


def _lenet5(data: Dataset) -> nn.Module:
    from neurona_training.architectures.convolutional import LeNet5
    from neurona_training.architectures.scaling import Normalise

    inputs = data.train.inputs
    normalise = Normalise.to_unit_variance(inputs)
    return LeNet5(normalise, size=inputs.shape[1], classes=len(data.labels))


RECIPES = (
    Recipe(
        name="lenet5",
        description="LeNet-5, a convolutional network (1998)",
        network=_lenet5,
        takes=("images",),
        tasks=("classification",),
        trainings={
            "digits": Training(
                epochs=50,
                batch_rows=32,
                learning_rate=4e-3,
                label_smoothing=0.1,
                moves=Moves(pixels=1.2, degrees=12),
            ),
            "mnist": Training(
                epochs=30,
                batch_rows=128,
                learning_rate=4e-3,
                label_smoothing=0.1,
                moves=Moves(pixels=2.0, degrees=10),
            ),
        },
    ),
)
