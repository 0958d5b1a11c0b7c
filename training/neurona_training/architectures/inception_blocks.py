"""The blocks of Inception v3, by the figures of the paper (inception.py)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neurona_training.architectures.images import Unit


class Branches(nn.Module):
    """Several ways through a block, whose maps end side by side."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([way(x) for way in self.ways], dim=1)


def unit(
    seen: int, maps: int, size: int | tuple[int, int] = 1, stride: int = 1, *, same: bool = True
) -> Unit:
    """A convolution with the paper's epsilon in its normalisation."""
    return Unit(seen, maps, size, stride, same=same, epsilon=1e-3)


def grid35(seen: int, of_pool: int) -> Branches:
    """Figure 5: a 5 x 5 convolution and two 3 x 3 ones in the place of a larger one."""
    return Branches(
        unit(seen, 64),
        nn.Sequential(unit(seen, 48), unit(48, 64, 5)),
        nn.Sequential(unit(seen, 64), unit(64, 96, 3), unit(96, 96, 3)),
        nn.Sequential(_mean(), unit(seen, of_pool)),
    )


def to_grid17(seen: int, *, same: bool) -> Branches:
    """Figure 10: half the grid, without a bottleneck. same: keeps a grid of a few cells."""
    return Branches(
        unit(seen, 384, 3, 2, same=same),
        nn.Sequential(unit(seen, 64), unit(64, 96, 3), unit(96, 96, 3, 2, same=same)),
        nn.MaxPool2d(3, 2, padding=int(same)),
    )


def grid17(seen: int, width: int) -> Branches:
    """Figure 6: 7 x 7 convolutions as 1 x 7 and 7 x 1 ones."""
    wide, high = (1, 7), (7, 1)
    return Branches(
        unit(seen, 192),
        _chain([seen, width, width, 192], [1, wide, high]),
        _chain([seen, width, width, width, width, 192], [1, high, wide, high, wide]),
        nn.Sequential(_mean(), unit(seen, 192)),
    )


def to_grid8(seen: int, *, same: bool) -> Branches:
    return Branches(
        nn.Sequential(unit(seen, 192), unit(192, 320, 3, 2, same=same)),
        nn.Sequential(
            _chain([seen, 192, 192, 192], [1, (1, 7), (7, 1)]), unit(192, 192, 3, 2, same=same)
        ),
        nn.MaxPool2d(3, 2, padding=int(same)),
    )


def grid8(seen: int) -> Branches:
    """Figure 7: wide at the end, where high-dimensional answers are wanted."""

    def split(maps: int) -> Branches:
        return Branches(unit(maps, 384, (1, 3)), unit(maps, 384, (3, 1)))

    return Branches(
        unit(seen, 320),
        nn.Sequential(unit(seen, 384), split(384)),
        nn.Sequential(unit(seen, 448), unit(448, 384, 3), split(384)),
        nn.Sequential(_mean(), unit(seen, 192)),
    )


def _chain(maps: Sequence[int], sizes: Sequence[int | tuple[int, int]]) -> nn.Sequential:
    pairs = zip(maps[:-1], maps[1:], sizes, strict=True)
    return nn.Sequential(*(unit(seen, made, size) for seen, made, size in pairs))


def _mean() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, 1, padding=1)
