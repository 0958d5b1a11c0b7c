"""The lengths of sequences that are served: of published data sets, and log-normal ones."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]

MEDIAN, P99, LONGEST = 40, 400, 800
"""Of the log-normal mix; the longest is one in 800 or so, cut off so that a message fits into
HTTP/2's first window."""

FRAMES_PER_SECOND = 100
"""Of sound, as speech is cut into: one each 10 ms."""

_Z99 = 2.3263
"""The 99th percentile of the normal distribution."""


def lognormal(_: Path | None) -> Lengths:
    """The mix with many short sequences and few that are ten times as long."""
    generator = np.random.default_rng(19)
    lengths = generator.lognormal(math.log(MEDIAN), math.log(P99 / MEDIAN) / _Z99, 20_000)
    return np.clip(np.rint(lengths), 1, LONGEST).astype(np.int64)


def vowels(data: Path | None) -> Lengths:
    """Japanese Vowels: 7 to 29 frames of each of 640 recordings."""
    from neurona_training.data.sources.vowels import vowel_recordings  # imports scikit-learn

    return _lengths_of(vowel_recordings(data))


def digits(data: Path | None) -> Lengths:
    """Free Spoken Digit Dataset: frames of 10 ms of each of 3,000 recordings."""
    from neurona_training.data.sources.spoken_digits import RATE, spoken_waveforms

    samples = _lengths_of(spoken_waveforms(data))
    return np.maximum(1, samples * FRAMES_PER_SECOND // RATE)


def names(data: Path | None) -> Lengths:
    """Family names of 18 languages: characters of each."""
    from neurona_training.data.sources.names import names_by_character

    return _lengths_of(names_by_character(data))


MIXES: dict[str, Callable[[Path | None], Lengths]] = {
    "log-normal": lognormal,
    "vowels": vowels,
    "digits": digits,
    "names": names,
}


def _lengths_of(data: Any) -> Lengths:
    parts = (data.train, data.validation, data.test)
    return np.concatenate([part.lengths for part in parts]).astype(np.int64)


def draw_lengths(mix: str, count: int, data: Path | None) -> Lengths:
    """Returns lengths of a mix for `count` sequences, evenly spread over its distribution."""
    lengths = np.sort(MIXES[mix](data))
    spread = lengths[((np.arange(count) + 0.5) / count * len(lengths)).astype(np.int64)]
    return np.random.default_rng(0).permutation(spread)


def class_bounds(lengths: Lengths) -> list[int]:
    """Returns the greatest length of each quarter of sequences but the last."""
    return [int(np.quantile(lengths, part, method="lower")) for part in (0.25, 0.5, 0.75)]


def length_class(length: int, bounds: list[int]) -> int:
    """Returns the quarter, from 0, that a length is in."""
    return sum(length > bound for bound in bounds)
