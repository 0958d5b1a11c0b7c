"""A user's CSV file: a column whose rows follow each other in time, to be forecast."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import MIN_ROWS, TRAIN, VALIDATION
from neurona_training.data.user.spec import UserData
from neurona_training.data.user.table import UserTable
from neurona_training.errors import DataError


def load_series(user_data: UserData, table: UserTable) -> Dataset:
    """Makes windows: (rows, window, 1) predicts (rows, horizon).

    Targets of one part are later than all targets of the part before.

    Raises:
        DataError: no such column, a cell that is no number, a constant column, or too few
            values.
    """
    name, window, horizon = str(user_data.series), user_data.window, user_data.horizon
    table.require_column(name, "--series")
    values = table.numbers([name])[:, 0].astype(np.float32)
    where = f"{user_data.path}, column {name!r}"
    if (values == values[0]).all():
        raise DataError(f"{where}: the same value in all rows, nothing to learn")
    count = len(values) - window - horizon + 1
    train_end, validation_end = round(TRAIN * count), round((TRAIN + VALIDATION) * count)
    # Windows at the end of a part whose last targets belong to the next part are left out.
    bounds = [
        (0, train_end),
        (train_end + horizon - 1, validation_end),
        (validation_end + horizon - 1, count),
    ]
    if count < MIN_ROWS or any(start >= end for start, end in bounds):
        raise DataError(
            f"{where}: {len(values)} values are too few for a window of {window} and a horizon "
            f"of {horizon}"
        )
    inputs = sliding_window_view(values, window)[:count, :, None]
    targets = sliding_window_view(values[window:], horizon)
    train, validation, test = (
        Split(inputs[start:end].copy(), targets[start:end].copy()) for start, end in bounds
    )
    return Dataset(
        name=user_data.name,
        source=f"{user_data.path.name}, column {name!r}, {len(values):,} values in the order of "
        "time",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="series",
            axes=("batch", "time", "value"),
            description=f"successive values of {name!r}, the latest last; "
            f"trained on {window} of them",
            unit=user_data.unit,
            columns=(name,),
            window=window,
            decimal_mark=table.decimal_mark([name]),
        ),
        target=name,
        values=tuple(
            Value(f"{name}, {step} step{'s' * (step > 1)} ahead", user_data.unit)
            for step in range(1, horizon + 1)
        ),
    )
