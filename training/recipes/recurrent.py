"""Recipes of recurrent networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.recipes.recipe import Moves, Recipe, Training

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.architectures.recurrent import Cell
    from neurona_training.data import Dataset


def _last_state(cell: Cell, hidden: int, data: Dataset) -> nn.Module:
    from neurona_training.architectures.recurrent import LastState
    from neurona_training.architectures.scaling import Denormalise, Normalise

    inputs = data.train.inputs
    return LastState(
        Normalise.to_unit_variance(inputs),
        cell,
        features=inputs.shape[2],
        hidden=hidden,
        outputs=len(data.labels) or len(data.values),
        denormalise=None if data.is_classification else Denormalise(data.train.targets),
    )


RECIPES = (
    Recipe(
        name="lstm",
        description="LSTM, a recurrent network with a long memory (1997)",
        network=lambda data: _last_state("lstm", 64, data),
        takes=("sequences",),
        trainings={
            "digit-rows": Training(
                epochs=80,
                batch_rows=32,
                learning_rate=5e-3,
                label_smoothing=0.1,
                moves=Moves(pixels=0.7, degrees=12),
            ),
        },
    ),
    Recipe(
        name="rnn",
        description="plain recurrent network (1990)",
        network=lambda data: _last_state("rnn", 16, data),
        takes=("sequences",),
        trainings={
            "sunspots": Training(epochs=200, batch_rows=16, learning_rate=3e-3, weight_decay=1e-2),
        },
    ),
)
