"""Data sets: rows for training, validation and test, and what they mean.

catalogue           data sets by name
sources/            how each named data set is read
user/               a user's own files as a data set
splits              rows divided into training, validation and test
transforms          padding of sequences and resizing of images
digest              a digest of all rows, for a model's provenance
published_files     files from the user's folder or downloaded, with their checksums

Inputs are in the units that a caller of the served model sends (grey levels, counts), never
normalised: normalisation is the network's first layer.

To add a named data set:

1. Write `sources/<name>.py` with a function that returns a `Dataset`. Declare published files
   as `PublishedFile` and get them by `fetch` (published_files.py): from the user's folder, or
   downloaded once and verified. sources/mnist.py is an example with published files,
   sources/digits.py with data that a package brings, sources/sunspots.py a regression in time.
2. Add a line to `SOURCES` in catalogue.py: "module:function".
3. Every recipe for this kind of data can now be trained on it; give a recipe `tuned` settings
   for it under its name (recipes/__init__.py).

More than one input: `Split.lengths` for sequences that are padded at their end, and
`Split.extra_inputs` for further tensors, described by `Dataset.extra_inputs`. The network's
`forward` takes them in the order of `Split.arrays`, and so does the exported file. An input of
strings is a column of codes here, and `Input.categories` has the string of each code; the
exported file takes the strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from neurona_training.errors import DataError

if TYPE_CHECKING:  # the catalogue is listed without numpy
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["rows", "images", "sequences"]
Task = Literal["classification", "regression"]

STANDARD_DEVIATIONS = "standard deviations"
"""Unit of an error over several values, each by that of its training rows."""

_PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class Split:
    """Rows of one part of a data set.

    Args:
        inputs: the main input, float32 or int64, rows along axis 0.
        targets: class indices, int64 of shape (rows,); or values in the user's units, float32
            of shape (rows, values).
        lengths: of sequences that are padded at their end: steps of each row, int32 of shape
            (rows,), from 1 to the size of the time axis.
        extra_inputs: further inputs, rows along axis 0, in the order of
            `Dataset.extra_inputs`.
        allow_nan: whether NaN in `inputs` is a missing value.
        groups: the number of each row's group, int64 of shape (rows,), if rows of a group must
            stay together, as in cross-validation; of rows in time order, those of the same
            time, in ascending order.

    Raises:
        DataError: no rows, arrays of different lengths, or values that are not finite.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]
    lengths: NDArray[np.int32] | None = None
    extra_inputs: tuple[NDArray[Any], ...] = ()
    allow_nan: bool = False
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        import numpy as np

        if not len(self.inputs):
            raise DataError("a part of the data has no rows")
        named = (("targets", self.targets), *(("rows of other inputs", a) for a in self.arrays))
        for name, array in named:
            if len(self.inputs) != len(array):
                raise DataError(f"{len(array)} {name} for {len(self.inputs)} rows of input")
            may_lack_values = self.allow_nan and array is self.inputs
            # In pieces: the array may be larger than memory.
            is_invalid = np.isinf if may_lack_values else _is_not_finite
            if any(is_invalid(part).any() for part in _pieces(array)):
                raise DataError("the data has values that are missing or not finite")
        if self.lengths is not None:
            if self.lengths.dtype != np.int32:
                raise DataError(f"lengths have dtype {self.lengths.dtype} (expected int32)")
            steps = self.inputs.shape[1]
            if self.lengths.min() < 1 or self.lengths.max() > steps:
                raise DataError(
                    f"lengths are {self.lengths.min()} to {self.lengths.max()} "
                    f"(expected 1 to {steps} steps)"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The network's inputs: `inputs`, then `lengths` if there are any, then extra inputs."""
        lengths = () if self.lengths is None else (self.lengths,)
        return (self.inputs, *lengths, *self.extra_inputs)


def _is_not_finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    import numpy as np

    not_finite: NDArray[np.bool_] = ~np.isfinite(array)
    return not_finite


def _pieces(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yields all rows of an array, some at a time."""
    step = max(1, _PIECE_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]


@dataclass(frozen=True)
class Input:
    """One tensor that a caller of the served model sends.

    Args:
        name: of the tensor in the exported file.
        axes: a name for each axis. "batch" and "time" are of any size in the exported model,
            every other axis has the size that it has in the data.
        description: what the numbers or strings mean.
        unit: of the numbers.
        categories: if not empty, callers send strings; the data and the network have int64
            codes, the indices in this tuple. Any other string has the code len(categories).
        columns: a name for each index on the last axis, if they have names; of an input with the
            batch axis alone, its one name. Files that callers send name them so.
        window: how many successive steps each sequence has, if that is what a caller sends.
        decimal_mark: of the numbers in the file, "." or ","; empty if it does not say.
        allow_nan: whether a missing value is taken, which the network fills in itself: NaN, or
            an empty string.
        sample_rate: of sound: samples a second; 0 for anything else.
        open_categories: whether strings that are no category are taken, as none of them.
        date_columns: those of the columns that are dates, as days since 1970-01-01 00:00 UTC.
        date_order: of day and month in the file, "day-month-year" or "month-day-year"; empty if
            it does not say.
        time_column: the column of the file by which the steps of a series are in order; empty if
            they are in the order of the file.
    """

    name: str
    axes: tuple[str, ...]
    description: str
    unit: str
    categories: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    window: int = 0
    decimal_mark: str = ""
    allow_nan: bool = False
    sample_rate: int = 0
    open_categories: bool = False
    date_columns: tuple[str, ...] = ()
    date_order: str = ""
    time_column: str = ""


LENGTHS = Input(
    name="sequence_lens",  # the name in ONNX's recurrent operators
    axes=("batch",),
    description="how many steps of each sequence are its own; what follows is padding",
    unit="steps",
)


@dataclass(frozen=True)
class Value:
    """One number that a regression predicts, or a bound of its interval.

    Args:
        name: what it is.
        unit: of it.
        quantile: of a bound, the probability of a true value below it; 0 of the prediction.
    """

    name: str
    unit: str
    quantile: float = 0.0


@dataclass(frozen=True)
class Dataset:
    """Three parts that share no target, and the meaning of inputs and outputs.

    Args:
        name: of the data set.
        source: who published the data, and how they were divided.
        train: rows from which weights are learned.
        validation: rows that choose the best epoch.
        test: rows that are evaluated once, at the end.
        input: describes `Split.inputs`.
        labels: the name of each class, for a classification.
        values: what is predicted, for a regression; either this or `labels` is given.
        extra_inputs: describes `Split.extra_inputs`, one by one.
        target: the column of a user's file that is predicted; empty if there is no such column.
        in_time_order: whether rows, and parts, follow each other in time.

    Raises:
        DataError: neither labels nor values or both, or arrays without the described axes.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    input: Input
    labels: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    extra_inputs: tuple[Input, ...] = ()
    target: str = ""
    in_time_order: bool = False

    def __post_init__(self) -> None:
        if bool(self.labels) == bool(self.values):
            raise DataError(f"data set {self.name!r} must have either labels or values")
        axes = [len(described.axes) for described in self.inputs]
        for split in (self.train, self.validation, self.test):
            dimensions = [array.ndim for array in split.arrays]
            if dimensions != axes:
                raise DataError(
                    f"inputs of data set {self.name!r} have {dimensions} axes (expected {axes})"
                )

    @property
    def inputs(self) -> tuple[Input, ...]:
        """A description for each of `Split.arrays`."""
        lengths = () if self.train.lengths is None else (LENGTHS,)
        return (self.input, *lengths, *self.extra_inputs)

    @property
    def is_classification(self) -> bool:
        """Whether classes are predicted, not values."""
        return bool(self.labels)

    @property
    def task(self) -> Task:
        """What is learned from the data."""
        return "classification" if self.is_classification else "regression"

    @property
    def kind(self) -> Kind:
        """Kind of network that can read the data, by the names of the axes."""
        if "time" in self.input.axes:
            return "sequences"
        return "images" if {"height", "width"} <= set(self.input.axes) else "rows"

    @property
    def is_series(self) -> bool:
        """Whether each row is a window of a series, and its targets are the values after it."""
        return self.input.window > 0 and not self.is_classification

    @property
    def has_unlike_values(self) -> bool:
        """Whether several values are predicted that are no steps of one series."""
        return len(self.values) > 1 and not self.is_series

    @property
    def error_scales(self) -> NDArray[np.float64]:
        """What errors are divided by before those of several values are averaged, (values,).

        Ones; or, of values that may differ in unit and size, the standard deviations of the
        training rows, so that each counts the same.
        """
        import numpy as np

        if not self.has_unlike_values:
            return np.ones(max(1, len(self.values)))
        spread = self.train.targets.std(axis=0, dtype=np.float64)
        return np.where(spread > 0, spread, 1.0)

    @property
    def error_unit(self) -> str:
        """Unit of an error over all values of a regression; see `error_scales`."""
        if self.has_unlike_values:
            return STANDARD_DEVIATIONS
        return self.values[0].unit if self.values else ""
