"""Recipes from before backpropagation: weights set by hand, or learned by a rule without gradients.

W. McCulloch and W. Pitts (1943), F. Rosenblatt (1958), B. Widrow and M. Hoff (1960); full
references are in architectures/classic.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.errors import DataError
from neurona_training.learning.run import FitResult, Hyperparameters, Run
from neurona_training.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from neurona_training.data import Dataset

    Neurons = Sequence[tuple[Sequence[float], float]]

# By truth table, layers of neurons: the weights of a neuron's inputs, and its threshold. XOR
# needs a second layer: OR and NAND at once.
WEIGHTS: dict[str, tuple[Neurons, ...]] = {
    "not": ([([-1], 0)],),
    "and": ([([1, 1], 2)],),
    "or": ([([1, 1], 1)],),
    "nand": ([([-1, -1], -1)],),
    "majority": ([([1, 1, 1], 2)],),
    "xor": ([([1, 1], 1), ([-1, -1], -1)], [([1, 1], 2)]),
}


def _mcculloch_pitts(data: Dataset) -> nn.Module:
    from neurona_training.architectures.classic import Logic

    if data.name not in WEIGHTS:
        raise DataError(
            f"recipe 'mcculloch-pitts' cannot learn data set {data.name!r} (its weights are set by "
            f"hand for {', '.join(WEIGHTS)})"
        )
    return Logic(WEIGHTS[data.name])


def _perceptron(data: Dataset) -> nn.Module:
    from neurona_training.architectures.classic import Perceptron
    from neurona_training.architectures.input_layers import Features

    if len(data.labels) != 2:
        raise DataError(
            f"data set {data.name!r} has {len(data.labels)} classes (recipe 'perceptron' expects 2)"
        )
    return Perceptron(Features(data))


def _adaline(data: Dataset) -> nn.Module:
    from neurona_training.architectures.classic import Adaline
    from neurona_training.architectures.input_layers import Denormalise, Features

    return Adaline(Features(data), len(data.values), Denormalise(data.train.targets))


def _by_hand(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    from neurona_training.learning.classic_rules import keep_initial_weights

    return keep_initial_weights(network, data, hyperparameters, run)


def _rosenblatt(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    from neurona_training.learning.classic_rules import rosenblatt_rule

    return rosenblatt_rule(network, data, hyperparameters, run)


def _widrow_hoff(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    from neurona_training.learning.classic_rules import widrow_hoff_rule

    return widrow_hoff_rule(network, data, hyperparameters, run)


_ONE_ROW = Hyperparameters(epochs=1, batch_rows=1, learning_rate=0.0)

RECIPES = (
    Recipe(
        name="mcculloch-pitts",
        description="McCulloch and Pitts's neuron, its weights set by hand (1943)",
        network=_mcculloch_pitts,
        takes=("rows",),
        tasks=("classification",),
        hyperparameters=dict.fromkeys(("and", "or", "not", "nand", "majority", "xor"), _ONE_ROW),
        learner=_by_hand,
    ),
    Recipe(
        name="perceptron",
        description="Rosenblatt's perceptron, one unit that learns from its mistakes (1958)",
        network=_perceptron,
        takes=("rows",),
        tasks=("classification",),
        hyperparameters={
            "iris-setosa": Hyperparameters(epochs=100, batch_rows=1, learning_rate=1.0),
            "xor": Hyperparameters(epochs=100, batch_rows=1, learning_rate=1.0),
        },
        learner=_rosenblatt,
    ),
    Recipe(
        name="adaline",
        description="ADALINE, a linear unit that learns by stochastic gradient (1960)",
        network=_adaline,
        takes=("rows",),
        tasks=("regression",),
        hyperparameters={"diabetes": Hyperparameters(epochs=100, batch_rows=1, learning_rate=0.01)},
        learner=_widrow_hoff,
    ),
)
