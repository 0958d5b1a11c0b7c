"""Data that a user brings: a file or a folder becomes a data set that any fitting recipe takes.

    load(Own(Path("patients.csv"), target="outcome", ignored=("id",)))
    load(Own(Path("prices.csv"), series="close", window=30, horizon=5, unit="EUR"))
    load(Own(Path("flowers"), image_size=64))          # flowers/rose/1.jpg, flowers/tulip/…
    load(Own(Path("gestures.npz")))                    # own_sequences.py tells its keys

The parts are the same on each call: 65 % of the rows for training, 15 % for validation and
20 % for the test, each class divided so, or, for a series, one after the other in time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.data import Dataset, Task

SUFFIXES = (".csv", ".tsv", ".npz")  # of files; a folder is one of images


@dataclass(frozen=True)
class Own:
    """Where the data are, and what their user says of them.

    target: the column to be predicted from the others of the same row.
    task: None finds it from the target: texts and up to ten different whole numbers are
        classes, other numbers are values.
    ignored: columns that are left out.
    series: the column to be continued, whose rows follow each other in time.
    window, horizon: how many values are read, and how many after them are predicted.
    unit: of a regression's values.
    image_size: to which images are brought, in pixels; None takes them as they are.
    """

    path: Path
    target: str | None = None
    task: Task | None = None
    ignored: tuple[str, ...] = ()
    series: str | None = None
    window: int = 12
    horizon: int = 1
    unit: str = ""
    image_size: int | None = None

    @property
    def name(self) -> str:
        """The file's name as a part of a model's name."""
        stem = self.path.resolve().name
        if self.path.suffix.lower() in SUFFIXES:
            stem = stem[: -len(self.path.suffix)]
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")
        return safe[:64] or "data"


@dataclass(frozen=True)
class Brought:
    """learned: what a recipe is trained on, one input of numbers.
    asked: the same rows as a caller sends them: texts are inputs of their own there.
    facing: makes of a network for `learned` one for `asked`.
    """

    learned: Dataset
    asked: Dataset
    facing: Callable[[nn.Module], nn.Module] = lambda network: network


def is_own(text: str) -> bool:
    """Whether --data means a place on disk, there or not, and not a name of the catalogue."""
    path = Path(text)
    return "/" in text or path.suffix.lower() in SUFFIXES or path.is_dir()


def load(own: Own) -> Brought:
    """Raises DataError, whose one line says where: the file, and the line and column in it."""
    path = own.path
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        from neurona_training.data.user import images

        return _alike(images.images(own))
    if path.suffix.lower() == ".npz":
        from neurona_training.data.user import sequences

        return _alike(sequences.sequences(own))
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: neither a folder of images nor one of {', '.join(SUFFIXES)}")
    from neurona_training.data.user import rows, series
    from neurona_training.data.user.table import read

    table = read(path)
    if own.series is not None:
        return _alike(series.series(own, table))
    return rows.rows(own, table)


def _alike(data: Dataset) -> Brought:
    return Brought(learned=data, asked=data)
