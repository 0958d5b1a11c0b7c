"""PneumoniaMNIST: X-ray images of children's chests, healthy or with pneumonia.

5,856 images of 28 x 28 pixels.

J. Yang and others, MedMNIST v2, Scientific Data 10 (2023), after D. Kermany and others, Cell
172 (2018). The published parts: 4,708 for training, 524 for validation, 624 for the test,
which has a larger share of healthy children. CC BY 4.0.
"""

import os
import zipfile
from pathlib import Path

import numpy as np

from neurona_training.data import Dataset, Input, Split
from neurona_training.data.published_files import ENVIRONMENT, PublishedFile, fetch
from neurona_training.errors import DataError

FILE = PublishedFile(
    "pneumoniamnist/pneumoniamnist.npz",
    "https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",
    sha256=None,
    md5="28209eda62fecd6e6a2d98b1501bb15f",
)
# The same images, reassembled from two copies: the training rows have another order.
# A folder may have this file instead of the published one.
REASSEMBLED = PublishedFile(
    "pneumoniamnist/pneumoniamnist_full.npz",
    FILE.url,
    sha256="ce8250bf5debc3c389b89affcc1d9feac579b26e875a848301e9f937bb0c2eee",
)

LABELS = ("healthy", "pneumonia")


def chest_xrays(data_dir: Path | None = None) -> Dataset:
    """Each X-ray as one image, in the published parts.

    Args:
        data_dir: folder with the published file; see `fetch`.

    Returns:
        float32 of shape (rows, 28, 28), 0 for black to 255 for white.

    Raises:
        DataError: the file is missing or damaged.
    """
    folder = data_dir or Path(os.environ.get(ENVIRONMENT) or os.devnull)
    path = fetch(REASSEMBLED if (folder / REASSEMBLED.path).is_file() else FILE, data_dir)
    train, validation, test = (read_part(path, part) for part in ("train", "val", "test"))
    return Dataset(
        name="pneumonia",
        source="PneumoniaMNIST (MedMNIST v2, 2023), the published parts",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="image",
            axes=("batch", "height", "width"),
            description="an X-ray of a child's chest, 28 x 28 grey levels: 0 is black",
            unit="grey level 0..255",
        ),
        labels=LABELS,
    )


def read_part(path: Path, part: str) -> Split:
    """Reads "train", "val" or "test" of a MedMNIST file with grey images.

    Raises:
        DataError: the file is no MedMNIST file.
    """
    try:
        with np.load(path) as arrays:
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a MedMNIST file: {error}") from error
    return Split(images.astype(np.float32), labels[:, 0].astype(np.int64))
