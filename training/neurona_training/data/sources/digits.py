"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998: 43 people's digits, each pixel the count of inked dots (0 to 16) in a
4 x 4 block of a 32 x 32 bitmap.
"""

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split

INK = 16.0  # the largest value of a pixel

_SOURCE = "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits (1998)"
_TEST, _VALIDATION = 0.20, 0.15  # which leaves 65 % for training
_SPLIT_SEED = 1998  # the test rows are the same whatever the seed of a training run


def images() -> Dataset:
    """Each digit as one image, (rows, 8, 8)."""
    return _dataset(
        Input(
            name="image",
            axes=("batch", "height", "width"),
            description="a handwritten digit, 8 x 8 grey levels: 0 is paper, 16 is ink",
            unit="grey level 0..16",
        )
    )


def rows_of_pixels() -> Dataset:
    """Each digit as a sequence of 8 steps, from its top row to its bottom row, (rows, 8, 8)."""
    return _dataset(
        Input(
            name="sequence",
            axes=("batch", "time", "pixel"),
            description="a handwritten digit read from top to bottom, one row of 8 grey levels "
            "a step: 0 is paper, 16 is ink",
            unit="grey level 0..16",
        )
    )


def _dataset(described: Input) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels: NDArray[np.float32] = digits.images.astype(np.float32)
    targets: NDArray[np.int64] = digits.target.astype(np.int64)

    rest, test = train_test_split(
        np.arange(len(targets)), test_size=_TEST, stratify=targets, random_state=_SPLIT_SEED
    )
    train, validation = train_test_split(
        rest,
        test_size=_VALIDATION / (1 - _TEST),
        stratify=targets[rest],
        random_state=_SPLIT_SEED,
    )
    return Dataset(
        name="digits",
        source=_SOURCE,
        train=Split(pixels[train], targets[train]),
        validation=Split(pixels[validation], targets[validation]),
        test=Split(pixels[test], targets[test]),
        input=described,
        labels=tuple(str(name) for name in digits.target_names),
    )
