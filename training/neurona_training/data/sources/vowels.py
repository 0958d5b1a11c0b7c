"""Japanese Vowels: nine men say /ae/, 640 recordings of 7 to 29 frames.

M. Kudo, J. Toyama and M. Shimbo, Multidimensional Curve Classification Using Passing-Through
Regions, Pattern Recognition Letters 20, 1999; UCI Machine Learning Repository,
doi 10.24432/C5NS47. Twelve LPC cepstrum coefficients a frame; the target is the speaker.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split
from neurona_training.data.published_files import PublishedFile, fetch
from neurona_training.data.transforms import pad_sequences
from neurona_training.errors import DataError

CHANNELS = 12
SPEAKERS = 9

_COPY = (
    "https://raw.githubusercontent.com/littleowen/Conceptor/"
    "fa98a949a24af7666dd5395df15b8d52a6f33b4f/"
)
_CHECKSUMS = {
    "ae.train": "7ae33b2b678b6c0df7a4137e5b82e127e95d63b2e2d7764e7e4ea3fe1b659935",
    "ae.test": "7894594714a3186f8961c75535654cdc6bd232d3dd97d7c04c99bfa3013f57a9",
}
FILES = {
    name: PublishedFile(f"japanese_vowels/{name}", f"{_COPY}{name}", sha256)
    for name, sha256 in _CHECKSUMS.items()
}

# How many recordings of each speaker are in a file, one speaker after the other (UCI's page).
_TRAIN_COUNTS = (30,) * SPEAKERS
_TEST_COUNTS = (31, 35, 88, 44, 29, 24, 40, 50, 29)
_VALIDATION = 0.20  # of the published training recordings
_SPLIT_SEED = 1999  # the same rows whatever the seed of a training run


def vowel_recordings(data_dir: Path | None = None) -> Dataset:
    """Each recording as frames of LPC cepstrum coefficients; the test rows are the published ones.

    Args:
        data_dir: folder with the published files; see `fetch`.

    Returns:
        float32 of shape (rows, time, 12), padded, with lengths.

    Raises:
        DataError: a file is missing or damaged.
    """
    from sklearn.model_selection import train_test_split

    published = read_blocks(fetch(FILES["ae.train"], data_dir))
    speakers = _speaker_codes(published, _TRAIN_COUNTS, "ae.train")
    test_blocks = read_blocks(fetch(FILES["ae.test"], data_dir))
    train, validation = train_test_split(
        np.arange(len(published)),
        test_size=_VALIDATION,
        stratify=speakers,
        random_state=_SPLIT_SEED,
    )
    return Dataset(
        name="vowels",
        source="Japanese Vowels (Kudo, Toyama and Shimbo, 1999), UCI doi 10.24432/C5NS47, the "
        "published training and test files",
        train=_make_split([published[row] for row in train], speakers[train]),
        validation=_make_split([published[row] for row in validation], speakers[validation]),
        test=_make_split(test_blocks, _speaker_codes(test_blocks, _TEST_COUNTS, "ae.test")),
        input=Input(
            name="recording",
            axes=("batch", "time", "coefficient"),
            description="a man saying /ae/, twelve LPC cepstrum coefficients a frame (frames of "
            "25.6 ms every 6.4 ms, 10 kHz)",
            unit="LPC cepstrum coefficient",
        ),
        labels=tuple(f"speaker {number}" for number in range(1, SPEAKERS + 1)),
    )


def read_blocks(path: Path) -> list[NDArray[np.float32]]:
    """Reads the recordings of a file, each of shape (time, 12).

    A frame is a line; a row of twelve 1.0, or an empty line, ends a recording.

    Raises:
        DataError: with the line that is not twelve numbers.
    """
    blocks: list[NDArray[np.float32]] = []
    frames: list[list[float]] = []
    for number, line in enumerate([*path.read_text().splitlines(), ""], start=1):
        try:
            frame = [float(word) for word in line.split()]
        except ValueError as error:
            raise DataError(f"{path} line {number}: {error}") from error
        if len(frame) not in (0, CHANNELS):
            raise DataError(f"{path} line {number}: {len(frame)} values (expected {CHANNELS})")
        if frame and set(frame) != {1.0}:
            frames.append(frame)
        elif frames:
            blocks.append(np.array(frames, np.float32))
            frames = []
    return blocks


def _speaker_codes(
    blocks: list[NDArray[np.float32]], counts: tuple[int, ...], file: str
) -> NDArray[np.int64]:
    if len(blocks) != sum(counts):
        raise DataError(f"{file} has {len(blocks)} recordings (expected {sum(counts)})")
    return np.repeat(np.arange(SPEAKERS), counts)


def _make_split(blocks: list[NDArray[np.float32]], speakers: NDArray[np.int64]) -> Split:
    inputs, lengths = pad_sequences(blocks)
    return Split(inputs, speakers, lengths)
