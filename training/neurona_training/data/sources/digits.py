"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998: 43 people's digits, each pixel the count of inked dots (0 to 16) in a
4 x 4 block of a 32 x 32 bitmap. Each origin of data stands alone in its module.
"""

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input
from neurona_training.data.splits import stratified_split


def digit_images() -> Dataset:
    """Each digit as one image, float32 of shape (rows, 8, 8), 0 for paper to 16 for ink."""
    return _dataset(
        Input(
            name="image",
            axes=("batch", "height", "width"),
            description="a handwritten digit, 8 x 8 grey levels: 0 is paper, 16 is ink",
            unit="grey level 0..16",
        )
    )


def digit_rows() -> Dataset:
    """Each digit as a sequence of 8 steps from its top row to its bottom row, (rows, 8, 8)."""
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

    digits = load_digits()
    pixels: NDArray[np.float32] = digits.images.astype(np.float32)
    targets: NDArray[np.int64] = digits.target.astype(np.int64)
    train, validation, test = stratified_split(pixels, targets)
    return Dataset(
        name="digits",
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits (1998)",
        train=train,
        validation=validation,
        test=test,
        input=described,
        labels=tuple(str(name) for name in digits.target_names),
    )
