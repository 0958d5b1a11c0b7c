"""Free Spoken Digit Dataset: six people say the digits from 0 to 9 in English, 50 times each.

Z. Jackson and others, github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0: 3,000
recordings of one channel, 16 bits and 8 kHz, trimmed to the word, 0.14 to 2.3 s.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.audio import read_sound
from neurona_client.files.content import FileContentError
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.published_files import PublishedFile, fetch
from neurona_training.data.transforms import pad_sequences
from neurona_training.errors import DataError

RATE = 8000  # samples a second

_COPY = (
    "https://raw.githubusercontent.com/Jakobovski/free-spoken-digit-dataset/"
    "26eb9aaf76e81b692f806f9140c2d2777410d7a1/recordings/"
)
_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
_TAKES = 50
_TEST = range(5)  # the takes that the authors keep for the test
_VALIDATION = range(5, 12)  # ours: 14 % of all
# Of the bytes of all files in the order of their names: there are too many files for a
# checksum of each.
_SHA256 = "ddb17656a0bca4c5ddace082be188ca630516dc2ef1110afe3c4e9cc71173de4"


def spoken_waveforms(data_dir: Path | None = None) -> Dataset:
    """Each recording as samples from -1 to 1, padded with silence.

    Takes 0-4 of every speaker and digit are the test, 5-11 validation. Without a folder that
    has them the files are downloaded one by one, which takes minutes.

    Args:
        data_dir: folder with the published files; see `fetch`.

    Returns:
        float32 of shape (rows, time) at 8 kHz, with lengths in samples.

    Raises:
        DataError: a file is missing or damaged.
    """
    recordings = [
        (digit, take, f"{digit}_{speaker}_{take}.wav")
        for digit in range(10)
        for speaker in _SPEAKERS
        for take in range(_TAKES)
    ]
    paths = {
        name: fetch(PublishedFile(f"fsdd/{name}", f"{_COPY}{name}", None), data_dir)
        for _, _, name in recordings
    }
    verify_recordings(list(paths.values()))
    waves = {name: read_wave(path) for name, path in paths.items()}

    def select(takes: range) -> Split:
        selected = [(digit, name) for digit, take, name in recordings if take in takes]
        inputs, lengths = pad_sequences([waves[name] for _, name in selected])
        return Split(inputs, np.array([digit for digit, _ in selected], np.int64), lengths)

    return Dataset(
        name="spoken-digits",
        source="Free Spoken Digit Dataset (Z. Jackson and others), commit 26eb9aa, "
        "recordings 0-4 for the test",
        train=select(range(_VALIDATION.stop, _TAKES)),
        validation=select(_VALIDATION),
        test=select(_TEST),
        input=Input(
            name="waveform",
            axes=("batch", "time"),
            description="a digit spoken in English, one channel of sound at 8,000 samples a "
            "second, each sample from -1 to 1 (16-bit samples divided by 32768)",
            unit="amplitude -1..1",
            sample_rate=RATE,
        ),
        labels=tuple(str(digit) for digit in range(10)),
    )


def verify_recordings(paths: Sequence[Path]) -> None:
    """Checks that these are all published files, unchanged.

    Raises:
        DataError: with the checksum of all.
    """
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(path.read_bytes())
    if digest.hexdigest() != _SHA256:
        raise DataError(
            f"the {len(paths)} files in {paths[0].parent} are not the published ones: their "
            f"SHA-256 is {digest.hexdigest()} (expected {_SHA256}); they are published at {_COPY}"
        )


def read_wave(path: Path) -> NDArray[np.float32]:
    """Reads the samples, -1..1, of a WAV file of one channel and 8 kHz.

    Raises:
        DataError: another format, or no samples.
    """
    try:
        return read_sound(path).mono(RATE)
    except FileContentError as error:
        raise DataError(f"{path}: {error}") from error
