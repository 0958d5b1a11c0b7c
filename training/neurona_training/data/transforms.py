"""Images brought to another size, for networks that were made for larger ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from neurona_training.data import Dataset, Split
from neurona_training.errors import DataError


def padded(
    sequences: Sequence[NDArray[Any]], filler: float = 0
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Rows padded at their end to the longest one, and how many steps are each row's own.

    sequences: (time,) or (time, features), all of one type; at least one.
    """
    lengths = np.array([len(one) for one in sequences], np.int32)
    first = sequences[0]
    rows = np.full((len(sequences), lengths.max(), *first.shape[1:]), filler, first.dtype)
    for row, one in zip(rows, sequences, strict=True):
        row[: len(one)] = one
    return rows, lengths


def resized(data: Dataset, size: int) -> Dataset:
    """The same images of size x size pixels, in the same units.

    The input is (rows, height, width) or (rows, channel, height, width). Raises DataError
    for data without images.
    """
    if data.kind != "images":
        raise DataError(f"the data set {data.name!r} has no images to resize")

    def resize(split: Split) -> Split:
        images = torch.from_numpy(split.inputs)
        as_channels = images if images.ndim == 4 else images[:, None]
        # antialias: a smaller image is made of means, not of single pixels picked out
        scaled = functional.interpolate(
            as_channels, (size, size), mode="bilinear", align_corners=False, antialias=True
        )
        inputs = scaled if images.ndim == 4 else scaled[:, 0]
        return dataclasses.replace(split, inputs=inputs.numpy())

    was = " x ".join(str(pixels) for pixels in data.train.inputs.shape[-2:])
    described = dataclasses.replace(
        data.input, description=f"{data.input.description}; brought to {size} x {size} from {was}"
    )
    return dataclasses.replace(
        data,
        train=resize(data.train),
        validation=resize(data.validation),
        test=resize(data.test),
        input=described,
    )
