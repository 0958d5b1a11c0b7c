"""Rows changed after they are read: sequences padded, images resized."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.images import scale_levels
from neurona_training.data import Dataset, Split
from neurona_training.errors import DataError


def pad_sequences(
    sequences: Sequence[NDArray[Any]], filler: float = 0
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Pads sequences at their end to the length of the longest.

    Args:
        sequences: of shape (time,) or (time, features), all of one dtype; at least one.
        filler: value of the padding.

    Returns:
        The rows, (rows, time) or (rows, time, features), and the length of each, (rows,).
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    first = sequences[0]
    rows = np.full((len(sequences), lengths.max(), *first.shape[1:]), filler, first.dtype)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows, lengths


def resize_images(data: Dataset, size: int) -> Dataset:
    """Scales all images to size x size pixels, in the same units, as the client does.

    Args:
        data: inputs of shape (rows, height, width) or (rows, channel, height, width).
        size: pixels across and down.

    Raises:
        DataError: the data are no images.
    """
    if data.kind != "images":
        raise DataError(f"data set {data.name!r} has no images to resize")

    def resize(split: Split) -> Split:
        return dataclasses.replace(split, inputs=scale_levels(split.inputs, size, size))

    old_size = " x ".join(str(pixels) for pixels in data.train.inputs.shape[:-3:-1])
    described = dataclasses.replace(
        data.input,
        description=f"{data.input.description}; brought to {size} x {size} from {old_size}",
    )
    return dataclasses.replace(
        data,
        train=resize(data.train),
        validation=resize(data.validation),
        test=resize(data.test),
        input=described,
    )
