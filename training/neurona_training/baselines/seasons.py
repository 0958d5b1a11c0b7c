"""How long the season of a series is, found in its training rows.

It is alone because a season is also what a user may want to know before training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset

MIN_SEASON = 3  # steps; two are a zigzag
_MIN_AUTOCORRELATION = 0.3


def training_series(data: Dataset) -> NDArray[np.float64]:
    """The values that the training windows of a series cover, in the order of time, (steps,)."""
    inputs = data.train.inputs[:, :, 0].astype(np.float64)
    return np.concatenate([inputs[0], inputs[1:, -1], data.train.targets[-1]])


def find_season(series: NDArray[Any]) -> int | None:
    """The number of steps after which a series repeats itself, in a third of it at most.

    Changes from step to step are correlated with those so many steps before (Box and Jenkins,
    Time Series Analysis, 1970): a trend changes them little. The season is the lag of the
    largest correlation that is larger than its neighbours', than 0.3, and than what chance
    explains.

    Args:
        series: successive values, (steps,).

    Returns:
        The season, or None if there is none.
    """
    changes = np.diff(series)
    changes = changes - changes.mean()
    power = float(changes @ changes)
    largest_lag = len(changes) // 3
    if power == 0 or largest_lag <= MIN_SEASON:
        return None
    size = 2 ** int(np.ceil(np.log2(2 * len(changes))))  # with zeros, so that ends do not meet
    spectrum = np.abs(np.fft.rfft(changes, size)) ** 2
    correlations = np.fft.irfft(spectrum, size)[: largest_lag + 2] / power
    threshold = max(_MIN_AUTOCORRELATION, 2.6 / np.sqrt(len(changes)))  # 99 % of white noise
    inner = correlations[1:-1]
    peaks = (inner > correlations[:-2]) & (inner >= correlations[2:]) & (inner > threshold)
    lags = np.flatnonzero(peaks) + 1
    lags = lags[lags >= MIN_SEASON]
    return int(lags[correlations[lags].argmax()]) if len(lags) else None
