"""What a data set is: rows for training, validation and test, and what they mean.

Inputs stand in the units that a caller of the served model sends (grey levels, counts),
never normalised: normalising is the network's own first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.errors import DataError


@dataclass(frozen=True)
class Split:
    """Rows of one part of a data set.

    inputs: float32, rows along axis 0.
    targets: the index of the class, int64 of shape (rows,); or the values in the user's
        units, float32 of shape (rows, values).
    """

    inputs: NDArray[np.float32]
    targets: NDArray[Any]

    def __post_init__(self) -> None:
        if not len(self.inputs):
            raise DataError("a part of the data has no rows")
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{len(self.inputs)} rows of input have {len(self.targets)} targets")
        if not (np.isfinite(self.inputs).all() and np.isfinite(self.targets).all()):
            raise DataError("the data has values that are missing or not finite")

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Input:
    """The tensor that a caller sends.

    axes: a name for each axis. "batch" and "time" are of any size in the exported model,
        every other axis has the size that it has in the data.
    """

    name: str
    axes: tuple[str, ...]
    description: str
    unit: str


@dataclass(frozen=True)
class Value:
    """One number of a regression's answer."""

    name: str
    unit: str


@dataclass(frozen=True)
class Dataset:
    """Three parts that share no target, and what goes in and comes out.

    labels: the name of each class, for a classification.
    values: what is predicted, for a regression; either this or `labels` is given.
    baselines: by name, what a rule without learning answers to the test inputs (shaped as
        the test targets): what a regression has to beat.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    input: Input
    labels: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    baselines: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.labels) == bool(self.values):
            raise DataError(f"data {self.name!r} must have either labels or values")

    @property
    def is_classification(self) -> bool:
        return bool(self.labels)
