"""Sunspot numbers: the next one from those before it.

Yearly means of the daily number from 1700 to 2008, which come with statsmodels (National
Geophysical Data Center; public domain), and monthly means from 1749 to 1983 as R's data set
`sunspots` has them (D. Andrews and A. Herzberg, Data, 1985).
"""

import csv
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.published_files import PublishedFile, fetch
from neurona_training.errors import DataError

WINDOW = 22  # years: two solar cycles
MONTHS = 48  # of a window; with more, an autoregression does no better on validation

MONTHLY = PublishedFile(
    "timeseries/monthly-sunspots.csv",
    "https://raw.githubusercontent.com/jbrownlee/Datasets/"
    "d20fcb6402ae34e653d4513b00f39257bb37ed7f/monthly-sunspots.csv",
    "c4ec8cc57d9f6fb6ecdb3e1f37f25b6f4badd5124c55931052b0cd2fc3bc71f3",
)

_TRAIN, _VALIDATION = 0.65, 0.15  # what follows them is the test


def yearly() -> Dataset:
    """The next year from the `WINDOW` years before it, (rows, WINDOW, 1) -> (rows, 1)."""
    from statsmodels.datasets import sunspots

    return _next_one(
        sunspots.load().endog.to_numpy(np.float32),
        WINDOW,
        "year",
        "statsmodels sunspots: yearly sunspot numbers 1700-2008, National Geophysical Data Center",
    )


def monthly(data_dir: Path | None = None) -> Dataset:
    """The next month from the `MONTHS` months before it, (rows, MONTHS, 1) -> (rows, 1).

    Raises DataError.
    """
    return _next_one(
        read_months(fetch(MONTHLY, data_dir)),
        MONTHS,
        "month",
        "monthly sunspot numbers 1749-1983 (Andrews and Herzberg, 1985)",
    )


def read_months(path: Path) -> NDArray[np.float32]:
    """The second column of a CSV file with a heading, (months,). Raises DataError."""
    with path.open(newline="") as file:
        try:
            return np.array([float(number) for _, number in list(csv.reader(file))[1:]], np.float32)
        except ValueError as error:
            raise DataError(
                f"{path} has a line that is not a month and a number: {error}"
            ) from error


def _next_one(series: NDArray[np.float32], window: int, step: str, source: str) -> Dataset:
    """The parts follow each other in time, as in use: what is predicted in one part is later
    than all that is predicted in the part before.
    """
    inputs = sliding_window_view(series, window)[:-1, :, None]
    targets = series[window:, None]

    first = round(_TRAIN * len(targets))
    second = round((_TRAIN + _VALIDATION) * len(targets))
    train = Split(inputs[:first].copy(), targets[:first])
    test = Split(inputs[second:].copy(), targets[second:])
    return Dataset(
        name="sunspots",
        source=source,
        train=train,
        validation=Split(inputs[first:second].copy(), targets[first:second]),
        test=test,
        input=Input(
            name="series",
            axes=("batch", "time", "value"),
            description=f"the daily sunspot number's mean over each of successive {step}s, the "
            f"latest last; trained on {window} {step}s",
            unit="sunspots",
        ),
        values=(Value(name=f"next {step}", unit="sunspots"),),
        baselines={
            "mean": np.full_like(test.targets, train.targets.mean()),
            "persistence": test.inputs[:, -1],  # the next as this one
            "autoregression": _autoregression(train, test),
        },
    )


def _autoregression(train: Split, test: Split) -> NDArray[np.float32]:
    """What the best linear function of a window says, by least squares over the training part.

    Of the orders up to the window's size the one with the smallest Akaike criterion, which
    asks the training part alone.
    """
    rows = len(train)
    best, smallest = np.zeros_like(test.targets), np.inf
    for order in range(1, train.inputs.shape[1] + 1):
        known, asked = (
            np.column_stack([split.inputs[:, -order:, 0].astype(np.float64), np.ones(len(split))])
            for split in (train, test)
        )
        weights, *_ = np.linalg.lstsq(known, train.targets.astype(np.float64))
        error = float(np.mean(np.square(known @ weights - train.targets)))
        if (criterion := rows * np.log(error) + 2 * (order + 1)) < smallest:
            best, smallest = (asked @ weights).astype(np.float32), criterion
    return best
