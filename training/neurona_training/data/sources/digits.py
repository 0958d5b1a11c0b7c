"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8 pixels.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998: 43 people's digits, each pixel the count of inked dots (0 to 16) in a
4 x 4 block of a 32 x 32 bitmap. Each origin of data stands alone in its module.

As images, as sequences of rows, and as features that a person thought of.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input
from neurona_training.data.splits import stratified_split

FEATURES = (
    "ink",
    "centre across",
    "centre down",
    "width",
    "height",
    "slant",
    "ink in the upper half",
    "ink in the left half",
    "difference from its mirror image",
    "difference from its image upside down",
    "strokes across, mean",
    "strokes down, mean",
    "strokes across, most",
    "holes",
)

_PAPER = 4  # the darkest grey level that is taken for paper


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


def digit_features() -> Dataset:
    """Each digit as 14 hand-made features, float32 of shape (rows, 14); see `_measure`."""
    described = Input(
        name="features",
        axes=("batch", "feature"),
        description=f"measured on a handwritten digit, in this order: {', '.join(FEATURES)}",
        unit="as named",
        columns=FEATURES,
    )
    return _dataset(described, _measure)


def _measure(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Measures (rows, 8, 8) images by what a person may think of: ink, balance, strokes, holes."""
    from scipy import ndimage

    rows, columns = np.mgrid[0:8, 0:8] - 3.5
    ink = images.sum(axis=(1, 2))
    share = images / ink[:, None, None]
    across, down = (share * columns).sum((1, 2)), (share * rows).sum((1, 2))
    from_x = columns - across[:, None, None]
    from_y = rows - down[:, None, None]
    is_ink = images > _PAPER
    strokes_down = np.diff(is_ink.astype(np.int8), axis=1, prepend=0).clip(0).sum(1)
    strokes_across = np.diff(is_ink.astype(np.int8), axis=2, prepend=0).clip(0).sum(2)
    # What surrounds the digit is one of the connected regions of paper; the others are holes.
    paper = np.pad(~is_ink, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    holes = np.array([ndimage.label(one)[1] - 1 for one in paper])
    measured = (
        ink,
        across,
        down,
        (share * from_x**2).sum((1, 2)),
        (share * from_y**2).sum((1, 2)),
        (share * from_x * from_y).sum((1, 2)),
        share[:, :4].sum((1, 2)),
        share[:, :, :4].sum((1, 2)),
        np.abs(share - share[:, :, ::-1]).sum((1, 2)),
        np.abs(share - share[:, ::-1]).sum((1, 2)),
        strokes_across.mean(1),
        strokes_down.mean(1),
        strokes_across.max(1),
        holes,
    )
    return np.stack(measured, axis=1).astype(np.float32)


def _dataset(
    described: Input,
    convert: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda images: images,
) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels: NDArray[np.float32] = digits.images.astype(np.float32)
    targets: NDArray[np.int64] = digits.target.astype(np.int64)
    train, validation, test = stratified_split(convert(pixels), targets)
    return Dataset(
        name="digits",
        source="scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits (1998)",
        train=train,
        validation=validation,
        test=test,
        input=described,
        labels=tuple(str(name) for name in digits.target_names),
    )
