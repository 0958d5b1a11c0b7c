"""The settings of a training, and changes of them by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.learning.run import AugmentationRange, Hyperparameters

NETWORK_FIELDS = tuple(one.name for one in dataclasses.fields(NetworkOptions))
AUGMENTATION_FIELDS = tuple(one.name for one in dataclasses.fields(AugmentationRange))
HYPERPARAMETER_FIELDS = tuple(one.name for one in dataclasses.fields(Hyperparameters))
GRADIENT_FIELDS = (*HYPERPARAMETER_FIELDS, *AUGMENTATION_FIELDS)

Changes = Mapping[str, object]  # by the name of a field of one of the three classes above

_FLAGS = {"pixels": "--shift", "degrees": "--rotate", "augmentation": "--no-augmentation"}


def option_flag(name: str) -> str:
    """Returns the option of the command line that sets this field."""
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


@dataclass(frozen=True)
class Settings:
    """How a network is built and trained.

    Args:
        hyperparameters: of the learner.
        network: size and parts of the network.
    """

    hyperparameters: Hyperparameters
    network: NetworkOptions = field(default_factory=NetworkOptions)

    def described(self) -> dict[str, str]:
        """Returns every setting that has an effect, by its field's name, as text."""
        learner, limits = self.hyperparameters, self.hyperparameters.augmentation
        without_effect = {"augmentation"}
        if learner.optimiser != "sgd":
            without_effect.add("momentum")
        entries = {
            key: getattr(learner, key) for key in HYPERPARAMETER_FIELDS if key not in without_effect
        }
        if limits is not None:
            entries |= {key: getattr(limits, key) for key in AUGMENTATION_FIELDS}
        entries |= {key: getattr(self.network, key) for key in NETWORK_FIELDS}
        return {
            key: ",".join(str(one) for one in value) if isinstance(value, tuple) else str(value)
            for key, value in entries.items()
            if value is not None and value is not False
        }

    def with_changes(self, changes: Changes) -> Settings:
        """Returns settings in which these fields have other values.

        Args:
            changes: by name of a field of `Hyperparameters`, `NetworkOptions` or
                `AugmentationRange`; the last begin from no augmentation if there is none.
        """
        learner = {key: changes[key] for key in HYPERPARAMETER_FIELDS if key in changes}
        augmentation = {key: changes[key] for key in AUGMENTATION_FIELDS if key in changes}
        network = {key: changes[key] for key in NETWORK_FIELDS if key in changes}
        hyperparameters = dataclasses.replace(self.hyperparameters, **learner)  # type: ignore[arg-type]
        if augmentation:
            limits = hyperparameters.augmentation or AugmentationRange()
            limits = dataclasses.replace(limits, **augmentation)  # type: ignore[arg-type]
            hyperparameters = dataclasses.replace(hyperparameters, augmentation=limits)
        return Settings(
            hyperparameters,
            dataclasses.replace(self.network, **network),  # type: ignore[arg-type]
        )
