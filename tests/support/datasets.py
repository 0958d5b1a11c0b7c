"""Small data sets made of arrays."""

from itertools import pairwise

import numpy as np

from neurona_training.data import Dataset, Input, Split, Value


def make_dataset(inputs, targets, axes, *, lengths=None, window=0, labels=(), values=()):
    """The first 60 % train, 20 % validate, 20 % test."""
    bounds = (np.array([0, 0.6, 0.8, 1]) * len(inputs)).astype(int)
    parts = [slice(*pair) for pair in pairwise(bounds)]
    return Dataset(
        "own",
        "made up",
        *(
            Split(inputs[part], targets[part], None if lengths is None else lengths[part])
            for part in parts
        ),
        input=Input("x", axes, "", "", window=window),
        labels=labels,
        values=values,
    )


def make_windows(series, window, horizon=1):
    series = np.asarray(series, np.float32)
    count = len(series) - window - horizon + 1
    inputs = np.stack([series[i : i + window] for i in range(count)])[:, :, None]
    targets = np.stack([series[i + window : i + window + horizon] for i in range(count)])
    values = tuple(Value(f"{step}", "EUR") for step in range(horizon))
    return make_dataset(inputs, targets, ("batch", "time", "value"), window=window, values=values)
