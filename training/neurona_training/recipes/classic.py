"""Recipes from before backpropagation: weights set by hand, or learned by a rule without gradients.

W. McCulloch and W. Pitts (1943), F. Rosenblatt (1958), B. Widrow and M. Hoff (1960); full
references are in architectures/classic.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from neurona_training.errors import DataError
from neurona_training.learning.run import FitResult, Hyperparameters, Run
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from neurona_training.architectures.network_options import NetworkOptions
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


def _mcculloch_pitts(data: Dataset, _options: NetworkOptions) -> nn.Module:
    import torch

    from neurona_training.architectures.classic import Logic

    inputs, targets = torch.from_numpy(data.train.inputs), data.train.targets
    for layers in WEIGHTS.values():
        if len(layers[0][0][0]) == inputs.shape[1]:
            network = Logic(layers)
            with torch.no_grad():
                if (network(inputs).argmax(dim=1).numpy() == targets).all():
                    return network
    raise DataError(
        f"recipe 'mcculloch-pitts' cannot learn data set {data.name!r} (its weights are set by "
        f"hand for {', '.join(WEIGHTS)})"
    )


def _perceptron(data: Dataset, _options: NetworkOptions) -> nn.Module:
    from neurona_training.architectures.classic import Perceptron
    from neurona_training.architectures.input_layers import Features

    if len(data.labels) != 2:
        raise DataError(
            f"data set {data.name!r} has {len(data.labels)} classes (recipe 'perceptron' expects 2)"
        )
    return Perceptron(Features(data))


def _adaline(data: Dataset, _options: NetworkOptions) -> nn.Module:
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


_ONE_ROW = Settings(Hyperparameters(epochs=1, batch_rows=1, learning_rate=0.0))
_ROSENBLATT = Settings(Hyperparameters(epochs=100, batch_rows=1, learning_rate=1.0))
_WIDROW_HOFF = Settings(Hyperparameters(epochs=100, batch_rows=1, learning_rate=0.01))
_STABLE_RATE = 0.2  # by columns: above 2 / columns the rule diverges


def _widrow_hoff_settings(data: Dataset) -> Settings:
    """A smaller rate for many columns: a step moves the output by the sum of their squares."""
    rate = min(
        _WIDROW_HOFF.hyperparameters.learning_rate, _STABLE_RATE / data.train.inputs.shape[1]
    )
    return _WIDROW_HOFF.with_changes({"learning_rate": rate})


RECIPES = (
    Recipe(
        name="mcculloch-pitts",
        description="McCulloch and Pitts's neuron, its weights set by hand (1943)",
        network=_mcculloch_pitts,
        takes=("rows",),
        tasks=("classification",),
        tuned=dict.fromkeys(("and", "or", "not", "nand", "majority", "xor"), _ONE_ROW),
        learner=_by_hand,
        first_weights="by hand",
        defaults=lambda _: _ONE_ROW,
        learner_options=(),
    ),
    Recipe(
        name="perceptron",
        description="Rosenblatt's perceptron, one unit that learns from its mistakes (1958)",
        network=_perceptron,
        takes=("rows",),
        tasks=("classification",),
        tuned={"iris-setosa": _ROSENBLATT, "xor": _ROSENBLATT},
        learner=_rosenblatt,
        defaults=lambda _: _ROSENBLATT,
        learner_options=("epochs", "learning_rate"),
    ),
    Recipe(
        name="adaline",
        description="ADALINE, a linear unit that learns by stochastic gradient (1960)",
        network=_adaline,
        takes=("rows",),
        tasks=("regression",),
        tuned={"diabetes": _WIDROW_HOFF},
        learner=_widrow_hoff,
        defaults=_widrow_hoff_settings,
        learner_options=("epochs", "learning_rate", "schedule", "warm_up"),
    ),
)
