"""Training images moved a little each time they are shown: what a digit is does not change."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from neurona_training.recipes.recipe import Moves


def moved(images: Tensor, moves: Moves, generator: torch.Generator) -> Tensor:
    """Each image shifted and turned by a random amount up to `moves`; 0 comes in at the edges.

    images: (rows, height, width) or (rows, channel, height, width).
    """
    rows, (height, width) = len(images), images.shape[-2:]
    shift_x, shift_y, turn = 2 * torch.rand(3, rows, generator=generator) - 1  # -1..1
    angle = turn * math.radians(moves.degrees)
    # The grid below counts from -1 to 1 across the image, so a pixel is 2 / size wide.
    across = shift_x * moves.pixels * 2 / width
    down = shift_y * moves.pixels * 2 / height
    first = torch.stack([angle.cos(), -angle.sin(), across], dim=1)
    second = torch.stack([angle.sin(), angle.cos(), down], dim=1)
    where = functional.affine_grid(
        torch.stack([first, second], dim=1), [rows, 1, height, width], align_corners=False
    )
    planes = images.reshape(rows, -1, height, width)
    return functional.grid_sample(planes, where, align_corners=False).reshape(images.shape)
