"""Images brought to another size, for networks that were made for larger ones."""

import dataclasses

import torch
from torch.nn import functional

from neurona_training.data import Dataset, Split
from neurona_training.errors import DataError


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
