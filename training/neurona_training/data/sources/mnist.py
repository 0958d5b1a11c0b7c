"""MNIST: 70,000 handwritten digits of 28 x 28 pixels.

Y. LeCun, C. Cortes and C. Burges, The MNIST Database of Handwritten Digits, 1998, made of
NIST's Special Databases 1 and 3: 60,000 images for training and 10,000 for the test, by
different writers. The files are in the IDX format, compressed by gzip, as published.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split
from neurona_training.data.published_files import PublishedFile, fetch
from neurona_training.errors import DataError

INK = 255.0  # the largest value of a pixel

_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CHECKSUMS = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
FILES = {
    name: PublishedFile(f"mnist/{name}.gz", f"{_MIRROR}{name}.gz", sha256)
    for name, sha256 in _CHECKSUMS.items()
}

_VALIDATION = 11_000  # of the 60,000, which leaves 70 % of all 70,000 for training
_SPLIT_SEED = 1998  # the same rows whatever the seed of a training run
_UNSIGNED_BYTE = 8  # IDX's code for the type of its values


def mnist_images(data_dir: Path | None = None) -> Dataset:
    """Each digit as one image; the test rows are the published ones.

    Args:
        data_dir: folder with the published files; see `fetch`.

    Returns:
        float32 of shape (rows, 28, 28), 0 for paper to 255 for ink.

    Raises:
        DataError: a file is missing or damaged.
    """
    from sklearn.model_selection import train_test_split

    arrays = {name: read_idx(fetch(file, data_dir)) for name, file in FILES.items()}
    pixels = arrays["train-images-idx3-ubyte"].astype(np.float32)
    targets = arrays["train-labels-idx1-ubyte"].astype(np.int64)
    train, validation = train_test_split(
        np.arange(len(targets)),
        test_size=_VALIDATION,
        stratify=targets,
        random_state=_SPLIT_SEED,
    )
    return Dataset(
        name="mnist",
        source="MNIST (LeCun, Cortes and Burges, 1998), the published training and test files",
        train=Split(pixels[train], targets[train]),
        validation=Split(pixels[validation], targets[validation]),
        test=Split(
            arrays["t10k-images-idx3-ubyte"].astype(np.float32),
            arrays["t10k-labels-idx1-ubyte"].astype(np.int64),
        ),
        input=Input(
            name="image",
            axes=("batch", "height", "width"),
            description="a handwritten digit, 28 x 28 grey levels: 0 is paper, 255 is ink",
            unit="grey level 0..255",
        ),
        labels=tuple(str(digit) for digit in range(10)),
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads an IDX file of bytes that is compressed by gzip.

    IDX: two zeros, the type, the number of axes; the size of each axis in four bytes, the most
    significant first; the values.

    Raises:
        DataError: another format, or a file that is cut off.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a gzip file: {error}") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(
            f"{path} is not an IDX file of bytes: it begins with {content[:4].hex(' ')}"
        )
    header_size = 4 + 4 * content[3]
    if len(content) < header_size:
        raise DataError(f"{path} ends within its header")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header_size], ">u4"))
    values = np.frombuffer(content, np.uint8, offset=header_size)
    if values.size != np.prod(shape):
        raise DataError(f"{path} has {values.size} values for the shape {list(shape)}")
    return values.reshape(shape)
