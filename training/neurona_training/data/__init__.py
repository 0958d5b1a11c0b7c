"""What a data set is: rows for training, validation and test, and what they mean.

Inputs stand in the units that a caller of the served model sends (grey levels, counts),
never normalised: normalising is the network's own first step.

A user's own files become a data set by own.py. To add one that has a name:

1. Write `data/<source>.py` with a function that returns a `Dataset`. Published files are
   named by `PublishedFile` and found by `fetch` (files.py): in the user's folder, or
   downloaded once and checked. mnist.py is the example for such files, digits.py for data
   that come with a package, sunspots.py for a regression over time.
2. Add a line to the catalogue of its kind: catalogue/rows.py, images.py or sequences.py.
   Import the source inside the function there, so that `--list` stays fast.
3. Any recipe that takes this kind can now be trained on it; give a recipe hyper-parameters
   for it under its name (recipes/__init__.py tells where).

More than one input: `Split.lengths` for sequences that are padded at their end, and
`Split.others` for further tensors, described by `Dataset.others`. The network's `forward`
takes them in the order of `Split.arrays`, and so does the exported file. An input of strings
is a column of codes here, whose `Input.categories` says what string each code is; the
exported file takes the strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from neurona_training.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["rows", "images", "sequences"]
Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Split:
    """Rows of one part of a data set.

    inputs: the main input, float32 or int64, rows along axis 0.
    targets: the index of the class, int64 of shape (rows,); or the values in the user's
        units, float32 of shape (rows, values).
    lengths: of sequences that are padded at their end: how many steps are a row's own,
        int32 of shape (rows,), from 1 to the size of the time axis.
    others: further inputs, rows along axis 0, in the order of `Dataset.others`.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    lengths: NDArray[np.int32] | None = None
    others: tuple[NDArray[Any], ...] = ()

    def __post_init__(self) -> None:
        import numpy as np

        if not len(self.inputs):
            raise DataError("a part of the data has no rows")
        for called, array in (("targets", self.targets), *(("others", a) for a in self.arrays)):
            if len(self.inputs) != len(array):
                raise DataError(f"{len(self.inputs)} rows of input have {len(array)} {called}")
            if not np.isfinite(array).all():
                raise DataError("the data has values that are missing or not finite")
        if self.lengths is not None:
            if self.lengths.dtype != np.int32:
                raise DataError(f"lengths are {self.lengths.dtype}; they must be int32")
            if self.lengths.min() < 1 or self.lengths.max() > self.inputs.shape[1]:
                raise DataError(f"a length is not between 1 and {self.inputs.shape[1]} steps")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What the network is given: inputs, then lengths where there are any, then others."""
        lengths = () if self.lengths is None else (self.lengths,)
        return (self.inputs, *lengths, *self.others)


@dataclass(frozen=True)
class Input:
    """One tensor that a caller sends.

    axes: a name for each axis. "batch" and "time" are of any size in the exported model,
        every other axis has the size that it has in the data.
    categories: when not empty, callers send strings; the data and the network have int64
        codes, the places in this list. Any other string has the code len(categories).
    columns: what each place on the last axis is, where they have names.
    """

    name: str
    axes: tuple[str, ...]
    description: str
    unit: str
    categories: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


LENGTHS = Input(
    name="sequence_lens",  # as ONNX's recurrent operators call it
    axes=("batch",),
    description="how many steps of each sequence are its own; what follows is padding",
    unit="steps",
)


@dataclass(frozen=True)
class Value:
    """One number of a regression's answer."""

    name: str
    unit: str


@dataclass(frozen=True)
class Dataset:
    """Three parts that share no target, and what goes in and comes out.

    input: describes `Split.inputs`. `others` describes `Split.others`, one by one.
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
    others: tuple[Input, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.labels) == bool(self.values):
            raise DataError(f"data {self.name!r} must have either labels or values")
        for split in (self.train, self.validation, self.test):
            if [a.ndim for a in split.arrays] != [len(given.axes) for given in self.inputs]:
                raise DataError(f"the inputs of data {self.name!r} do not have the axes described")

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What describes each of `Split.arrays`."""
        lengths = () if self.train.lengths is None else (LENGTHS,)
        return (self.input, *lengths, *self.others)

    @property
    def is_classification(self) -> bool:
        return bool(self.labels)

    @property
    def task(self) -> Task:
        return "classification" if self.is_classification else "regression"

    @property
    def kind(self) -> Kind:
        """What sort of network can read it, by the names of the axes."""
        if "time" in self.input.axes:
            return "sequences"
        return "images" if {"height", "width"} <= set(self.input.axes) else "rows"
