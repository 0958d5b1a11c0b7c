"""Settings for data on which nothing has been tuned, by what the data are.

Kind, task and sizes alone decide: a data set's or a file's name has no part in it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.learning.run import AugmentationRange, Hyperparameters
from neurona_training.recipes.settings import Settings

if TYPE_CHECKING:
    from neurona_training.data import Dataset

_LARGE_TABLE = 700  # rows of training
_FEW_ROWS = 100  # with fewer each row counts, and decay would hide what they show
_MAX_SHIFT = 0.07  # of an image's smaller side
_MAX_ROTATION = 10.0  # degrees


def settings_by_kind(data: Dataset) -> Settings:
    """Returns settings for a network that learns by gradients.

    Args:
        data: its kind, task, and numbers of rows, features and classes are used.
    """
    if data.input.window and not data.is_classification:
        return Settings(_series(data), NetworkOptions(units=(32,), dropout=0.3))
    if data.kind == "rows":
        return _rows(data)
    return Settings({"images": _images, "sequences": _sequences}[data.kind](data))


def is_large_table(data: Dataset) -> bool:
    """Whether a table has enough rows for more units and inputs than a linear function needs."""
    return data.kind == "rows" and len(data.train) >= _LARGE_TABLE


def epochs_for(rows: int, batch_rows: int, steps: int, most: int) -> int:
    """Returns the number of epochs in which the optimiser makes about this many steps.

    Args:
        rows: of training.
        batch_rows: of a step.
        steps: that are wanted.
        most: epochs, for data with few rows; at least 10 are returned.
    """
    return max(10, min(most, math.ceil(steps / math.ceil(rows / batch_rows))))


def _rows(data: Dataset) -> Settings:
    rows = len(data.train)
    if not is_large_table(data):
        batch_rows = max(4, min(32, rows // 16))
        return Settings(
            Hyperparameters(
                epochs=epochs_for(rows, batch_rows, steps=1_500, most=200),
                batch_rows=batch_rows,
                learning_rate=3e-3,
                weight_decay=1.0 if rows >= _FEW_ROWS else 0.01,
            )
        )
    batch_rows = 32 if rows < 5_000 else 128
    return Settings(
        Hyperparameters(
            epochs=epochs_for(rows, batch_rows, steps=8_000, most=100),
            batch_rows=batch_rows,
            learning_rate=3e-3,
            weight_decay=0.1,
            weight_average=0.995,
        ),
        NetworkOptions(columns="pieces"),
    )


def _images(data: Dataset) -> Hyperparameters:
    rows, side = len(data.train), min(data.train.inputs.shape[-2:])
    batch_rows = 32 if rows < 10_000 else 128
    return Hyperparameters(
        epochs=epochs_for(rows, batch_rows, steps=6_000, most=60),
        batch_rows=batch_rows,
        learning_rate=2e-3,
        weight_decay=1e-2,
        augmentation=AugmentationRange(pixels=_MAX_SHIFT * side, degrees=_MAX_ROTATION),
    )


def _sequences(data: Dataset) -> Hyperparameters:
    rows = len(data.train)
    batch_rows = 32 if rows < 5_000 else 128
    return Hyperparameters(
        epochs=epochs_for(rows, batch_rows, steps=4_000, most=150),
        batch_rows=batch_rows,
        learning_rate=3e-3,
        weight_decay=1e-2,
    )


def _series(data: Dataset) -> Hyperparameters:
    """For a network that corrects a linear forecast, of which there is little to learn."""
    rows = len(data.train)
    batch_rows = 2 ** round(math.log2(max(rows, 1) / 15)) if rows > 15 else 1
    return Hyperparameters(
        epochs=60,
        batch_rows=min(128, max(16, batch_rows)),
        learning_rate=1e-2,
        weight_decay=1e-2,
    )
