"""Rows divided once and for all: training 65 %, validation 15 %, test 20 %."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Split

_TEST, _VALIDATION = 0.20, 0.15
_SEED = 1998  # the test rows are the same whatever the seed of a training run


def parts(
    inputs: NDArray[Any], targets: NDArray[Any], *, seed: int = _SEED
) -> tuple[Split, Split, Split]:
    """Training, validation and test; each class has its share of each of them.

    inputs: rows along axis 0. targets: as `Split.targets`.
    """
    from sklearn.model_selection import train_test_split

    classes = targets if targets.dtype == np.int64 else None
    rest, test = train_test_split(
        np.arange(len(targets)), test_size=_TEST, stratify=classes, random_state=seed
    )
    train, validation = train_test_split(
        rest,
        test_size=_VALIDATION / (1 - _TEST),
        stratify=None if classes is None else classes[rest],
        random_state=seed,
    )
    train_part, validation_part, test_part = (
        Split(inputs[rows], targets[rows]) for rows in (train, validation, test)
    )
    return train_part, validation_part, test_part
