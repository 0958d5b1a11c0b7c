"""Which settings a tuning tries, and from where to where: few, and sensible for the data.

A range begins around the recipe's own settings, which are good for data of their size, so that
twenty trainings find something. Only settings that the recipe has are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neurona_training.data import Dataset
from neurona_training.errors import OptionError
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Changes, Settings

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

_BATCH_ROWS = (16, 32, 64, 128, 256)
_MIN_STEPS = 8  # of the optimiser in an epoch
_MAX_SHIFT = 0.12  # of an image's smaller side
_MAX_ROTATION = 15.0  # degrees


@dataclass(frozen=True)
class Range:
    """Values of one setting.

    Args:
        low: the smallest value.
        high: the largest one.
        log: whether small values are tried, and drawn, as finely as large ones.
        integer: whether the values are integers.
        choices: the only values, instead of low and high.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[int, ...] = ()

    def suggest(self, name: str, trial: BaseTrial) -> int | float:
        """Asks Optuna for a value."""
        if self.choices:
            value: int = trial.suggest_categorical(name, self.choices)
            return value
        if self.integer:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def contains(self, value: object) -> bool:
        """Whether the value could be suggested."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high


def search_space(
    recipe: Recipe, settings: Settings, data: Dataset, fixed: Changes
) -> dict[str, Range]:
    """Returns the settings to be tried, by their name in `Settings.with_changes`.

    Args:
        recipe: whose settings.
        settings: of the recipe for these data, around which the ranges lie.
        data: kind and size matter.
        fixed: settings of the user's choice, which are not tried.

    Raises:
        OptionError: the recipe has nothing to tune.
    """
    available = {*recipe.learner_options, *recipe.network_options} - {*fixed}
    hyperparameters, space = settings.hyperparameters, dict[str, Range]()
    rate = hyperparameters.learning_rate
    if rate > 0:
        space["learning_rate"] = Range(rate / 10, rate * 10, log=True)
    space["weight_decay"] = Range(1e-4, 1.0, log=True)
    sizes = tuple(size for size in _BATCH_ROWS if size * _MIN_STEPS <= len(data.train))
    if len(sizes) > 1:
        space["batch_rows"] = Range(log=True, choices=sizes)
    space["units"] = Range(8, 256, log=True, integer=True)
    space["layers"] = Range(1, 3 if data.kind == "rows" else 2, integer=True)
    space["dropout"] = Range(0.0, 0.5)
    if data.kind == "images":
        side = min(data.train.inputs.shape[-2:])
        space["pixels"] = Range(0.0, _MAX_SHIFT * side)
        space["degrees"] = Range(0.0, _MAX_ROTATION)
    space = {name: values for name, values in space.items() if name in available}
    if "learning_rate" not in space:
        raise OptionError(
            f"recipe {recipe.name!r} has nothing to tune (expected one that learns by gradients)"
        )
    return space


def initial_values(
    space: Mapping[str, Range], recipe: Recipe, settings: Settings
) -> dict[str, int | float]:
    """Returns the settings as they are, where they lie in the ranges: the first that is tried.

    A setting that lies outside is not in the result, nor are units that differ between layers.
    """
    network = settings.network.with_defaults(recipe.default_network)
    augmentation = settings.hyperparameters.augmentation
    units = network.units if network.units and len(set(network.units)) == 1 else None
    values: dict[str, object] = {
        "learning_rate": settings.hyperparameters.learning_rate,
        "weight_decay": settings.hyperparameters.weight_decay,
        "batch_rows": settings.hyperparameters.batch_rows,
        "units": units[0] if units else None,
        "layers": len(units) if units else None,
        "dropout": network.dropout,
        "pixels": augmentation.pixels if augmentation else 0.0,
        "degrees": augmentation.degrees if augmentation else 0.0,
    }
    return {
        name: value
        for name, values_of in space.items()
        if isinstance(value := values[name], int | float) and values_of.contains(value)
    }


def as_changes(values: Mapping[str, int | float]) -> Changes:
    """Returns suggested values as `Settings.with_changes` takes them."""
    changes: dict[str, object] = dict(values)
    if "units" in changes:
        changes["units"] = (changes["units"],)
    return changes
