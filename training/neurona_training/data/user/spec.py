"""What a user says about their own data, and what becomes of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line is parsed without numpy
    from neurona_client.files.dates import DateOrder
    from neurona_training.data import Dataset, Task
    from neurona_training.data.user.encoding import ColumnEncoding

SUFFIXES = (".csv", ".tsv", ".npz")  # of files; a folder holds images


@dataclass(frozen=True)
class UserData:
    """Where a user's data are, and what is to be learned from them.

    Args:
        path: a .csv, .tsv or .npz file, or a folder of images or sound for each class.
        target: the column predicted from the other columns of the same row; several columns of a
            regression.
        task: None infers it from the target: text and up to ten different integers are
            classes, other numbers are values.
        ignored: columns that are left out.
        kept: columns that are inputs although they look like an index.
        missing: of cells without a value in the inputs of a table: "fill" has the network fill
            them, and any that a caller sends later; "error" rejects them; None fills them if
            there are some.
        date_order: of day and month where no date of the file says it: "day-month-year" or
            "month-day-year".
        validation: a table with the validation rows.
        test: a table with the test rows.
        split_column: the column that says of each row whether it is for training, validation or
            the test.
        group: the column whose equal cells are never in two parts, such as a patient.
        time: the column by whose dates or numbers the rows follow each other in time: later rows
            are the test.
        series: the column to be forecast, whose rows follow each other in time.
        window: number of values that are read.
        horizon: number of following values that are predicted.
        unit: of a regression's values.
        image_size: images are resized to this many pixels; None keeps them.
        sample_rate: sound is resampled to this many samples a second; None: see `sounds`.
    """

    path: Path
    target: str | tuple[str, ...] | None = None
    task: Task | None = None
    ignored: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    missing: Literal["fill", "error"] | None = None
    date_order: DateOrder | None = None
    validation: Path | None = None
    test: Path | None = None
    split_column: str | None = None
    group: str | None = None
    time: str | None = None
    series: str | None = None
    window: int = 12
    horizon: int = 1
    unit: str = ""
    image_size: int | None = None
    sample_rate: int | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that are predicted."""
        if self.target is None:
            return ()
        names = (self.target,) if isinstance(self.target, str) else self.target
        return tuple(dict.fromkeys(names))

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
            their own, and cells may be missing. It is the training view if `encoding` is None.
        encoding: how the columns of the caller's view become those of the training view; the
            trained network needs an `architectures.columns.EncodeColumns` before it to take the
            caller's view.
        notes: one line each for the person who started the run: how the file was read, what was
            left out, and what was filled.
    """

    training_view: Dataset
    caller_view: Dataset
    encoding: ColumnEncoding | None = None
    notes: tuple[str, ...] = ()


def is_path(text: str) -> bool:
    """Whether --data is meant as a path, existing or not, rather than as a data set's name."""
    path = Path(text)
    if "/" in text or path.suffix.lower() in SUFFIXES:
        return True
    return os.path.isdir(path) or (path.suffix != "" and os.path.isfile(path))
