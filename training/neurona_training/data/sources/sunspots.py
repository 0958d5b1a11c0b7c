"""Sunspot numbers: the next is forecast from those before it.

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
from neurona_training.data.splits import TRAIN, VALIDATION
from neurona_training.errors import DataError

WINDOW = 22  # years: two solar cycles
MONTHS = 48  # of a window; a longer one does not improve an autoregression on validation

MONTHLY = PublishedFile(
    "timeseries/monthly-sunspots.csv",
    "https://raw.githubusercontent.com/jbrownlee/Datasets/"
    "d20fcb6402ae34e653d4513b00f39257bb37ed7f/monthly-sunspots.csv",
    "c4ec8cc57d9f6fb6ecdb3e1f37f25b6f4badd5124c55931052b0cd2fc3bc71f3",
)


def yearly_sunspots() -> Dataset:
    """The next year from the `WINDOW` years before it.

    Returns:
        Inputs of shape (rows, WINDOW, 1), targets of shape (rows, 1), in sunspots.
    """
    from statsmodels.datasets import sunspots

    return forecast_next(
        sunspots.load().endog.to_numpy(np.float32),
        WINDOW,
        "year",
        "statsmodels sunspots: yearly sunspot numbers 1700-2008, National Geophysical Data Center",
        "SUNACTIVITY",
    )


def monthly_sunspots(data_dir: Path | None = None) -> Dataset:
    """The next month from the `MONTHS` months before it.

    Args:
        data_dir: folder with the published file; see `fetch`.

    Returns:
        Inputs of shape (rows, MONTHS, 1), targets of shape (rows, 1), in sunspots.

    Raises:
        DataError: the file is missing or damaged.
    """
    return forecast_next(
        read_months(fetch(MONTHLY, data_dir)),
        MONTHS,
        "month",
        "monthly sunspot numbers 1749-1983 (Andrews and Herzberg, 1985)",
        "Sunspots",
    )


def read_months(path: Path) -> NDArray[np.float32]:
    """Reads the second column of a CSV file with a heading, (months,).

    Raises:
        DataError: a line is not a month and a number.
    """
    with path.open(newline="") as file:
        try:
            return np.array([float(number) for _, number in list(csv.reader(file))[1:]], np.float32)
        except ValueError as error:
            raise DataError(
                f"{path} has a line that is not a month and a number: {error}"
            ) from error


def forecast_next(
    series: NDArray[np.float32], window: int, step: str, source: str, column: str
) -> Dataset:
    """Makes windows of a series; targets of one part are later than those of the part before.

    Args:
        series: all values, (steps,).
        window: how many of them predict the next.
        step: the unit of time.
        source: who published them.
        column: their name in the published file.
    """
    inputs = sliding_window_view(series, window)[:-1, :, None]
    targets = series[window:, None]

    train_end = round(TRAIN * len(targets))
    validation_end = round((TRAIN + VALIDATION) * len(targets))
    train = Split(inputs[:train_end].copy(), targets[:train_end])
    test = Split(inputs[validation_end:].copy(), targets[validation_end:])
    return Dataset(
        name="sunspots",
        source=source,
        train=train,
        validation=Split(
            inputs[train_end:validation_end].copy(), targets[train_end:validation_end]
        ),
        test=test,
        input=Input(
            name="series",
            axes=("batch", "time", "value"),
            description=f"the daily sunspot number's mean over each of successive {step}s, the "
            f"latest last; trained on {window} {step}s",
            unit="sunspots",
            columns=(column,),
            window=window,
        ),
        values=(Value(name=f"next {step}", unit="sunspots"),),
    )
