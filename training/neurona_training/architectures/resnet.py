"""Residual networks: K. He, X. Zhang, S. Ren and J. Sun, Deep Residual Learning for Image
Recognition, CVPR (2016).

The stride of a bottleneck stands in its 3 x 3 convolution, as in the authors' later work and
in the 25,557,032 parameters' usual form; the paper has it in the first 1 x 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from neurona_training.architectures.input_layers import SMALL, Colours, Unit, pooled


class ResNet(nn.Module):
    """Square images -> logits (rows, classes).

    bottleneck: three convolutions a block, of which the outer ones are 1 x 1, instead of two.
    blocks: how many in each of the four stages (Table 1 of the paper).
    size: of the images. Those smaller than 16 pixels meet a 3 x 3 convolution of stride 1
        first, in the place of the 7 x 7 of stride 2, which would leave one pixel of them to
        the stages that follow.
    """

    def __init__(
        self,
        normalise: nn.Module,
        *,
        size: int,
        classes: int,
        blocks: Sequence[int],
        bottleneck: bool,
    ) -> None:
        super().__init__()
        self.colours = Colours(normalise)
        self.stem = nn.Sequential(
            Unit(3, 64, 3) if size < SMALL else Unit(3, 64, 7, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.Sequential()
        seen = 64
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            for place in range(count):
                stride = 2 if stage and not place else 1
                block = Bottleneck if bottleneck else Block
                self.stages.append(block(seen, width, stride))
                seen = width * block.widening
        self.output = nn.Linear(seen, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(self.colours(images)))
        logits: Tensor = self.output(pooled(x))
        return logits


class Residual(nn.Module, ABC):
    """What comes in, plus what the block makes of it."""

    widening = 1  # maps that come out, for each of `width`

    def __init__(self, seen: int, width: int, stride: int) -> None:
        super().__init__()
        maps = width * self.widening
        self.change = self.convolutions(seen, width, stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or seen != maps:
            self.shortcut = Unit(seen, maps, 1, stride, bend=False)

    @staticmethod
    @abstractmethod
    def convolutions(seen: int, width: int, stride: int) -> nn.Sequential:
        """What the block makes of `seen` maps."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.change(x))


class Block(Residual):
    """Two 3 x 3 convolutions."""

    @staticmethod
    def convolutions(seen: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Unit(seen, width, 3, stride), Unit(width, width, 3, bend=False))


class Bottleneck(Residual):
    """A 3 x 3 convolution between two of 1 x 1, of which the last widens by 4."""

    widening = 4

    @staticmethod
    def convolutions(seen: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            Unit(seen, width, 1),
            Unit(width, width, 3, stride),
            Unit(width, 4 * width, 1, bend=False),
        )
