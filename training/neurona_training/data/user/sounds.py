"""A user's recordings, WAV files in a folder for each class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from neurona_client.files.audio import SUFFIXES, Sound, read_sound
from neurona_client.files.content import FileContentError
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.user.class_folders import ClassFolders
from neurona_training.data.user.large_arrays import allocate
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

MAX_DEFAULT_RATE = 16_000
"""Samples a second: of speech and most other sounds a higher rate only adds to the work."""

_OTHER_SUFFIXES = (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma")
"""Of sound that is not read: the error says what is expected instead of asking for images."""


def has_sounds(folders: ClassFolders) -> bool:
    """Whether most files are recordings, by their names."""
    suffixes = (*SUFFIXES, *_OTHER_SUFFIXES)
    count = sum(path.suffix.lower() in suffixes for path in folders.files)
    return 2 * count > len(folders.files)


def load_sounds(user_data: UserData, folders: ClassFolders) -> Dataset:
    """Reads all recordings as one channel, -1 to 1, at one rate: (rows, samples), with lengths.

    The rate is `UserData.sample_rate`, else the most frequent one of the files, at most 16 kHz;
    files of another rate are resampled. Several channels become their mean.

    Raises:
        DataError: with the file or folder that is wrong.
    """
    target, parts = folders.divide()
    headers = [_measure(path) for path in folders.progress(folders.files)]
    rates = Counter(rate for _, rate in headers)
    frequent = max(rates, key=lambda rate: (rates[rate], -rate))
    rate = user_data.sample_rate or min(frequent, MAX_DEFAULT_RATE)
    longest = max(-(-samples * rate // own_rate) for samples, own_rate in headers)
    count, places = len(folders.files), folders.places(parts)
    hint = f"each row is as long as the longest file, {longest / rate:,.1f} s; --sample-rate"
    waves = allocate((count, longest), str(folders.folder), f"{hint} makes all smaller")
    lengths = np.zeros(count, np.int32)
    for path, place in zip(folders.progress(folders.files), places, strict=True):
        try:
            samples = _open_sound(path).mix(rate)
        except FileContentError as error:
            raise DataError(f"{path}: {error}") from error
        lengths[place] = len(samples)
        waves[place, : len(samples)] = samples
    bounds = np.cumsum([len(rows) for rows in parts])[:-1]
    train, validation, test = (
        Split(some_waves, target.targets[rows], some_lengths)
        for some_waves, some_lengths, rows in zip(
            np.split(waves, bounds), np.split(lengths, bounds), parts, strict=True
        )
    )
    resampled = count - rates[rate]
    return Dataset(
        name=user_data.name,
        source=f"{count:,} recordings of {lengths.min() / rate:.3g} to "
        f"{lengths.max() / rate:.3g} s in the folder {user_data.path.resolve().name}"
        + (f", {resampled:,} of them resampled" if resampled else "")
        + folders.division,
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="waveform",
            axes=("batch", "time"),
            description=f"one channel of sound at {rate:,} samples a second, each sample from -1 "
            "to 1 (16-bit samples divided by 32768)",
            unit="amplitude -1..1",
            sample_rate=rate,
        ),
        labels=target.labels,
    )


def _measure(path: Path) -> tuple[int, int]:
    """Returns the number of samples of a file, and its rate."""
    sound = _open_sound(path)
    return len(sound.samples), sound.rate


def _open_sound(path: Path) -> Sound:
    try:
        return read_sound(path)
    except FileContentError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror or error}") from error
