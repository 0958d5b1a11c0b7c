"""The settings of a training, and changes of them by name.

They are alone because recipes, defaults and the command line share them.
"""

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


@dataclass(frozen=True)
class Settings:
    """How a network is built and trained.

    Args:
        hyperparameters: of the learner.
        network: size and parts of the network.
    """

    hyperparameters: Hyperparameters
    network: NetworkOptions = field(default_factory=NetworkOptions)

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
