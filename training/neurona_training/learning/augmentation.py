"""Random shifts and rotations of training images.

It is alone because any learner of images can use it, not only the training loop.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from neurona_training.learning.run import AugmentationRange


def augment_images(images: Tensor, limits: AugmentationRange, generator: torch.Generator) -> Tensor:
    """Shifts and rotates each image by a random amount; zeros come in at the edges.

    Args:
        images: float of shape (rows, height, width) or (rows, channel, height, width).
        limits: the largest shift and rotation.
        generator: source of the random numbers.

    Returns:
        New images of the same shape and unit.
    """
    rows, (height, width) = len(images), images.shape[-2:]
    shift_x, shift_y, rotation = 2 * torch.rand(3, rows, generator=generator) - 1  # -1..1
    angle = rotation * math.radians(limits.degrees)
    # affine_grid counts from -1 to 1 across the image, so a pixel is 2 / size wide.
    offset_x = shift_x * limits.pixels * 2 / width
    offset_y = shift_y * limits.pixels * 2 / height
    first_row = torch.stack([angle.cos(), -angle.sin(), offset_x], dim=1)
    second_row = torch.stack([angle.sin(), angle.cos(), offset_y], dim=1)
    grid = functional.affine_grid(
        torch.stack([first_row, second_row], dim=1), [rows, 1, height, width], align_corners=False
    )
    planes = images.reshape(rows, -1, height, width)
    return functional.grid_sample(planes, grid, align_corners=False).reshape(images.shape)
