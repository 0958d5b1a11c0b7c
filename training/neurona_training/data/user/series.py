"""A user's CSV file: a column whose rows follow each other in time, to be continued."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import LEAST_ROWS, TRAIN, VALIDATION, least_squares
from neurona_training.data.user.load import Own
from neurona_training.data.user.table import Table
from neurona_training.errors import DataError


def series(own: Own, table: Table) -> Dataset:
    """The next `horizon` values from the `window` before: (rows, window, 1) -> (rows, horizon).

    What is predicted in one part is later than all that is predicted in the part before.
    Raises DataError with the line of a cell that is no number.
    """
    name, window, horizon = str(own.series), own.window, own.horizon
    table.column(name, "--series")
    values = table.numbers(name)
    if (values == values[0]).all():
        raise DataError(f"{own.path}, column {name!r}: the same in all rows; nothing to learn")
    count = len(values) - window - horizon + 1
    first, second = round(TRAIN * count), round((TRAIN + VALIDATION) * count)
    # The windows at the end of a part whose last targets are the next part's are left out.
    bounds = [(0, first), (first + horizon - 1, second), (second + horizon - 1, count)]
    if count < LEAST_ROWS or any(start >= end for start, end in bounds):
        raise DataError(
            f"{own.path}, column {name!r}: {len(values)} values are too few for a window of "
            f"{window} and a horizon of {horizon}"
        )
    inputs = sliding_window_view(values, window)[:count, :, None]
    targets = sliding_window_view(values[window:], horizon)
    train, validation, test = (
        Split(inputs[start:end].copy(), targets[start:end].copy()) for start, end in bounds
    )
    return Dataset(
        name=own.name,
        source=f"{own.path.name}, column {name!r}, {len(values):,} values in the order of time",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="series",
            axes=("batch", "time", "value"),
            description=f"successive values of {name!r}, the latest last; "
            f"trained on {window} of them",
            unit=own.unit,
        ),
        values=tuple(
            Value(f"{name}, {step} step{'s' * (step > 1)} ahead", own.unit)
            for step in range(1, horizon + 1)
        ),
        baselines={
            "mean": np.full_like(test.targets, train.targets.mean()),
            "persistence": np.repeat(test.inputs[:, -1], horizon, axis=1),
            "linear_autoregression": least_squares(train.inputs, train.targets, test.inputs),
        },
    )
