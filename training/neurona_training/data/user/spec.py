"""What a user says about their own data, and what becomes of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line is parsed without numpy
    from neurona_training.data import Dataset, Task

SUFFIXES = (".csv", ".tsv", ".npz")  # of files; a folder holds images


@dataclass(frozen=True)
class UserData:
    """Where a user's data are, and what is to be learned from them.

    Args:
        path: a .csv, .tsv or .npz file, or a folder of images or sound for each class.
        target: the column predicted from the other columns of the same row.
        task: None infers it from the target: text and up to ten different integers are
            classes, other numbers are values.
        ignored: columns that are left out.
        series: the column to be forecast, whose rows follow each other in time.
        window: number of values that are read.
        horizon: number of following values that are predicted.
        unit: of a regression's values.
        image_size: images are resized to this many pixels; None keeps them.
        sample_rate: sound is resampled to this many samples a second; None: see `sounds`.
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
    sample_rate: int | None = None

    @property
    def name(self) -> str:
        """The file's name, fit to be a part of a model's name."""
        stem = os.path.basename(os.path.realpath(self.path))  # also of a loop of links
        if self.path.suffix.lower() in SUFFIXES:
            stem = stem[: -len(self.path.suffix)]
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")
        return safe[:64] or "data"


@dataclass(frozen=True)
class LoadedUserData:
    """The same rows in two views.

    Args:
        training_view: what a recipe is trained on: one input of numbers.
        caller_view: what a caller of the served model sends: columns of text are inputs of
            their own. It is the training view if there are none.
        category_counts: the number of categories of each text column, in order. If not empty,
            the trained network needs an `architectures.input_layers.OneHot` before it to take
            the caller's view.
    """

    training_view: Dataset
    caller_view: Dataset
    category_counts: tuple[int, ...] = ()


def is_path(text: str) -> bool:
    """Whether --data is meant as a path, existing or not, rather than as a data set's name."""
    path = Path(text)
    if "/" in text or path.suffix.lower() in SUFFIXES:
        return True
    return os.path.isdir(path) or (path.suffix != "" and os.path.isfile(path))
