"""Inception v3.

C. Szegedy and others, Rethinking the Inception Architecture for Computer Vision, CVPR (2016),
as its authors published it in code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurona_training.architectures.input_layers import (
    ConvolutionUnit,
    RgbInput,
    global_average_pool,
)

_SMALL_IMAGE = 75  # pixels; of fewer the unpadded convolutions would leave nothing
_AUXILIARY_CELLS = 17  # of the grid across; of fewer the auxiliary classifier would leave nothing


class InceptionV3(nn.Module):
    """Inception v3: images -> logits (rows, classes).

    Args:
        normalise: scales the pixels.
        size: height and width of the images in pixels, 299 in the paper. If one is below 75 they
            keep their size in the stem, and are padded where a grid is halved.
        classes: number of outputs.
        auxiliary: a second classifier, on the 17 x 17 grid, for training alone: it brings the
            gradient to the lower layers, and is not exported.
    """

    def __init__(
        self,
        normalise: nn.Module,
        *,
        size: tuple[int, int],
        classes: int,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        small = min(size) < _SMALL_IMAGE
        self.colours = RgbInput(normalise)
        self.stem = _small_stem() if small else _stem()
        self.grid35 = nn.Sequential(grid35(192, 32), grid35(256, 64), grid35(288, 64))
        self.grid17 = nn.Sequential(
            to_grid17(288, same=small), *(grid17(768, width) for width in (128, 160, 160, 192))
        )
        self.grid8 = nn.Sequential(to_grid8(768, same=small), grid8(1280), grid8(2048))
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(2048, classes)
        few_cells = small or min(map(_cells_of_grid17, size)) < _AUXILIARY_CELLS
        self.auxiliary = _Auxiliary(768, classes, small=few_cells) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits; in training those of both classifiers, if there are two."""
        x = self.grid17(self.grid35(self.stem(self.colours(images))))
        logits: Tensor = self.output(self.dropout(global_average_pool(self.grid8(x))))
        if self.training and self.auxiliary is not None:
            return logits, self.auxiliary(x)
        return logits


class _Auxiliary(nn.Module):
    """Figure 8: a classifier on the maps of the 17 x 17 grid; `small` pads a smaller one."""

    def __init__(self, in_maps: int, classes: int, *, small: bool) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Identity() if small else nn.AvgPool2d(5, 3),
            unit(in_maps, 128),
            unit(128, 768, 5, same=small),
        )
        self.output = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(global_average_pool(self.maps(x)))
        return logits


def _stem() -> nn.Sequential:
    """299 pixels -> 192 maps of 35 x 35 (Table 1)."""
    return nn.Sequential(
        unit(3, 32, 3, 2, same=False),
        unit(32, 32, 3, same=False),
        unit(32, 64, 3),
        nn.MaxPool2d(3, 2),
        unit(64, 80),
        unit(80, 192, 3, same=False),
        nn.MaxPool2d(3, 2),
    )


def _cells_of_grid17(pixels: int) -> int:
    """Cells across, of an image with so many pixels: 17 of 299, as the grid's name says."""
    for size, stride in ((3, 2), (3, 1), (3, 2), (3, 1), (3, 2), (3, 2)):
        pixels = (pixels - size) // stride + 1
    return pixels


def _small_stem() -> nn.Sequential:
    """The same convolutions without a stride or pooling: 192 maps of the image's size."""
    return nn.Sequential(
        unit(3, 32, 3), unit(32, 32, 3), unit(32, 64, 3), unit(64, 80), unit(80, 192, 3)
    )


class Branches(nn.Module):
    """Parallel branches of a block, whose maps are concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenates the maps of all branches."""
        return torch.cat([branch(x) for branch in self.ways], dim=1)


def unit(
    in_maps: int, maps: int, size: int | tuple[int, int] = 1, stride: int = 1, *, same: bool = True
) -> ConvolutionUnit:
    """Makes a convolution with the paper's epsilon in its normalisation."""
    return ConvolutionUnit(in_maps, maps, size, stride, same=same, epsilon=1e-3)


def grid35(in_maps: int, pool_maps: int) -> Branches:
    """Figure 5: a 5 x 5 convolution, and two of 3 x 3 instead of a larger one."""
    return Branches(
        unit(in_maps, 64),
        nn.Sequential(unit(in_maps, 48), unit(48, 64, 5)),
        nn.Sequential(unit(in_maps, 64), unit(64, 96, 3), unit(96, 96, 3)),
        nn.Sequential(_average(), unit(in_maps, pool_maps)),
    )


def to_grid17(in_maps: int, *, same: bool) -> Branches:
    """Figure 10: halves the grid, without a bottleneck; `same` pads a grid of a few cells."""
    return Branches(
        unit(in_maps, 384, 3, 2, same=same),
        nn.Sequential(unit(in_maps, 64), unit(64, 96, 3), unit(96, 96, 3, 2, same=same)),
        nn.MaxPool2d(3, 2, padding=int(same)),
    )


def grid17(in_maps: int, width: int) -> Branches:
    """Figure 6: 7 x 7 convolutions, factorised into 1 x 7 and 7 x 1."""
    wide, high = (1, 7), (7, 1)
    return Branches(
        unit(in_maps, 192),
        _chain([in_maps, width, width, 192], [1, wide, high]),
        _chain([in_maps, width, width, width, width, 192], [1, high, wide, high, wide]),
        nn.Sequential(_average(), unit(in_maps, 192)),
    )


def to_grid8(in_maps: int, *, same: bool) -> Branches:
    """Halves the grid to 8 x 8; `same` pads a grid of a few cells."""
    return Branches(
        nn.Sequential(unit(in_maps, 192), unit(192, 320, 3, 2, same=same)),
        nn.Sequential(
            _chain([in_maps, 192, 192, 192], [1, (1, 7), (7, 1)]), unit(192, 192, 3, 2, same=same)
        ),
        nn.MaxPool2d(3, 2, padding=int(same)),
    )


def grid8(in_maps: int) -> Branches:
    """Figure 7: wide at the end, for high-dimensional features."""

    def split(maps: int) -> Branches:
        return Branches(unit(maps, 384, (1, 3)), unit(maps, 384, (3, 1)))

    return Branches(
        unit(in_maps, 320),
        nn.Sequential(unit(in_maps, 384), split(384)),
        nn.Sequential(unit(in_maps, 448), unit(448, 384, 3), split(384)),
        nn.Sequential(_average(), unit(in_maps, 192)),
    )


def _chain(maps: Sequence[int], sizes: Sequence[int | tuple[int, int]]) -> nn.Sequential:
    pairs = zip(maps[:-1], maps[1:], sizes, strict=True)
    return nn.Sequential(*(unit(before, after, size) for before, after, size in pairs))


def _average() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, 1, padding=1)
