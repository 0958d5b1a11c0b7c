"""Inception v3: C. Szegedy and others, Rethinking the Inception Architecture for Computer
Vision, CVPR (2016), as its authors published it in code.
"""

from torch import Tensor, nn

from neurona_training.architectures.images import Colours, pooled
from neurona_training.architectures.inception_blocks import (
    grid8,
    grid17,
    grid35,
    to_grid8,
    to_grid17,
    unit,
)

_SMALL = 75  # pixels; of fewer the unpadded convolutions would leave nothing


class InceptionV3(nn.Module):
    """Square images -> logits (rows, classes).

    auxiliary: a second classifier, on the 17 x 17 grid: it is there for training alone, gives
        its logits by `train_logits` and is no part of an exported file.
    size: of the images, 299 in the paper. Those smaller than 75 pixels keep their size in the
        stem, and are padded where a grid is halved.
    """

    def __init__(
        self, normalise: nn.Module, *, size: int, classes: int, auxiliary: bool = False
    ) -> None:
        super().__init__()
        small = size < _SMALL
        self.colours = Colours(normalise)
        self.stem = _small_stem() if small else _stem()
        self.grid35 = nn.Sequential(grid35(192, 32), grid35(256, 64), grid35(288, 64))
        self.grid17 = nn.Sequential(
            to_grid17(288, same=small), *(grid17(768, width) for width in (128, 160, 160, 192))
        )
        self.grid8 = nn.Sequential(to_grid8(768, same=small), grid8(1280), grid8(2048))
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(2048, classes)
        self.auxiliary = _Auxiliary(768, classes, small=small) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor:
        x = self.grid8(self.grid17(self.grid35(self.stem(self.colours(images)))))
        logits: Tensor = self.output(self.dropout(pooled(x)))
        return logits

    def train_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both classifiers. Raises ValueError without the auxiliary one."""
        if self.auxiliary is None:
            raise ValueError("this network has no auxiliary classifier")
        x = self.grid17(self.grid35(self.stem(self.colours(images))))
        logits: Tensor = self.output(self.dropout(pooled(self.grid8(x))))
        return logits, self.auxiliary(x)


class _Auxiliary(nn.Module):
    """Figure 8, on what the 17 x 17 grid answers."""

    def __init__(self, seen: int, classes: int, *, small: bool) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Identity() if small else nn.AvgPool2d(5, 3),
            unit(seen, 128),
            unit(128, 768, 5, same=small),
        )
        self.output = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.output(pooled(self.maps(x)))
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


def _small_stem() -> nn.Sequential:
    """The same convolutions on a grid that is not made smaller; (size) -> 192 maps of it."""
    return nn.Sequential(
        unit(3, 32, 3), unit(32, 32, 3), unit(32, 64, 3), unit(64, 80), unit(80, 192, 3)
    )
