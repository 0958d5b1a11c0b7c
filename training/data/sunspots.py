"""Yearly means of the daily sunspot number from 1700 to 2008, which come with statsmodels.

National Geophysical Data Center; public domain.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from neurona_training.data import Dataset, Input, Split, Value

WINDOW = 22  # years: two solar cycles

_TRAIN, _VALIDATION = 0.65, 0.15  # the years that follow are the test


def yearly() -> Dataset:
    """The next year from the `WINDOW` years before it, (rows, WINDOW, 1) -> (rows, 1).

    The parts follow each other in time, as in use: what is predicted in one part is later
    than all that is predicted in the part before.
    """
    from statsmodels.datasets import sunspots

    series = sunspots.load().endog.to_numpy(np.float32)
    inputs = sliding_window_view(series, WINDOW)[:-1, :, None]
    targets = series[WINDOW:, None]

    first = round(_TRAIN * len(targets))
    second = round((_TRAIN + _VALIDATION) * len(targets))
    train = Split(inputs[:first].copy(), targets[:first])
    test = Split(inputs[second:].copy(), targets[second:])
    return Dataset(
        name="sunspots",
        source="statsmodels sunspots: yearly sunspot numbers 1700-2008, "
        "National Geophysical Data Center",
        train=train,
        validation=Split(inputs[first:second].copy(), targets[first:second]),
        test=test,
        input=Input(
            name="series",
            axes=("batch", "time", "value"),
            description="the daily sunspot number's mean over each of successive years, the "
            f"latest last; trained on {WINDOW} years",
            unit="sunspots",
        ),
        values=(Value(name="next year", unit="sunspots"),),
        baselines={
            "mean": np.full_like(test.targets, train.targets.mean()),
            "persistence": test.inputs[:, -1],  # next year as this year
        },
    )
