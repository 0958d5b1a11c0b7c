"""Random changes of training images: shifts, rotations, sizes, flips and colours.

It is alone because any learner of images can use it, not only the training loop.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from neurona_training.learning.run import AugmentationRange


def augment_images(images: Tensor, limits: AugmentationRange, generator: torch.Generator) -> Tensor:
    """Changes each image by random amounts; zeros come in at the edges.

    Args:
        images: float of shape (rows, height, width) or (rows, channel, height, width).
        limits: the largest changes.
        generator: source of the random numbers; what is not asked for draws none.

    Returns:
        New images of the same shape and unit.
    """
    rows, (height, width) = len(images), images.shape[-2:]
    shift_x, shift_y, rotation = 2 * torch.rand(3, rows, generator=generator) - 1  # -1..1
    planes = images.reshape(rows, -1, height, width)
    if limits.horizontal_flip:
        planes = _flip_half(planes, -1, generator)
    if limits.vertical_flip:
        planes = _flip_half(planes, -2, generator)
    if limits.colour:
        planes = _change_colours(planes, limits.colour, generator)
    angle = rotation * math.radians(limits.degrees)
    cosine, sine = angle.cos(), angle.sin()
    if limits.scale:
        zoom = 1 + limits.scale * (2 * torch.rand(rows, generator=generator) - 1)
        cosine, sine = cosine / zoom, sine / zoom
    # affine_grid counts from -1 to 1 across the image, so a pixel is 2 / size wide.
    offset_x = shift_x * limits.pixels * 2 / width
    offset_y = shift_y * limits.pixels * 2 / height
    aspect = height / width  # a rotation of pixels, not of the sides' fractions
    first_row = torch.stack([cosine, -sine * aspect, offset_x], dim=1)
    second_row = torch.stack([sine / aspect, cosine, offset_y], dim=1)
    grid = functional.affine_grid(
        torch.stack([first_row, second_row], dim=1), [rows, 1, height, width], align_corners=False
    )
    return functional.grid_sample(planes, grid, align_corners=False).reshape(images.shape)


def _flip_half(planes: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """Mirrors each image with probability 1/2."""
    is_mirrored = torch.rand(len(planes), 1, 1, 1, generator=generator) < 0.5
    return torch.where(is_mirrored, planes.flip(axis), planes)


def _change_colours(planes: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Changes each image's contrast, and the brightness of each of its channels."""
    rows, channels = planes.shape[:2]
    contrast, brightness = (
        most * (2 * torch.rand(rows, count, 1, 1, generator=generator) - 1)
        for count in (1, channels)
    )
    darkest = planes.amin(dim=(1, 2, 3), keepdim=True)
    span = planes.amax(dim=(1, 2, 3), keepdim=True) - darkest
    middle = darkest + span / 2
    changed = middle + (planes - middle) * (1 + contrast) + brightness * span
    # Within the image's own range, as a camera's would be.
    return torch.minimum(torch.maximum(changed, darkest), darkest + span)
