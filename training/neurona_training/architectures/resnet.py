"""Residual networks.

K. He, X. Zhang, S. Ren and J. Sun, Deep Residual Learning for Image Recognition, CVPR (2016).

The stride of a bottleneck is in its 3 x 3 convolution, as in most implementations; the paper
has it in the first 1 x 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from neurona_training.architectures.input_layers import (
    SMALL_IMAGE,
    ConvolutionUnit,
    RgbInput,
    global_average_pool,
)


class ResNet(nn.Module):
    """A residual network: images -> logits (rows, classes).

    Args:
        normalise: scales the pixels.
        size: height and width of the images, in pixels. If one is below 16 the first
            convolution is 3 x 3 of stride 1 instead of 7 x 7 of stride 2, which would leave
            one pixel to the stages.
        classes: number of outputs.
        blocks: in each of the four stages (Table 1 of the paper).
        bottleneck: three convolutions a block, the outer ones 1 x 1, instead of two.
    """

    def __init__(
        self,
        normalise: nn.Module,
        *,
        size: tuple[int, int],
        classes: int,
        blocks: Sequence[int],
        bottleneck: bool,
    ) -> None:
        super().__init__()
        self.colours = RgbInput(normalise)
        self.stem = nn.Sequential(
            ConvolutionUnit(3, 64, 3)
            if min(size) < SMALL_IMAGE
            else ConvolutionUnit(3, 64, 7, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.Sequential()
        in_maps = 64
        for stage, count in enumerate(blocks):
            width = 64 * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                block = Bottleneck if bottleneck else Block
                self.stages.append(block(in_maps, width, stride))
                in_maps = width * block.widening
        self.output = nn.Linear(in_maps, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        x = self.stages(self.stem(self.colours(images)))
        logits: Tensor = self.output(global_average_pool(x))
        return logits


class Residual(nn.Module, ABC):
    """The input plus the output of convolutions."""

    widening = 1  # output maps for each of `width`

    def __init__(self, in_maps: int, width: int, stride: int) -> None:
        super().__init__()
        maps = width * self.widening
        self.change = self.convolutions(in_maps, width, stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_maps != maps:
            self.shortcut = ConvolutionUnit(in_maps, maps, 1, stride, relu=False)

    @staticmethod
    @abstractmethod
    def convolutions(in_maps: int, width: int, stride: int) -> nn.Sequential:
        """Makes the convolutions of the block, (rows, in_maps, height, width) -> maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Adds input and convolutions, then ReLU."""
        return functional.relu(self.shortcut(x) + self.change(x))


class Block(Residual):
    """Two 3 x 3 convolutions."""

    @staticmethod
    def convolutions(in_maps: int, width: int, stride: int) -> nn.Sequential:
        """Makes two convolutions of 3 x 3."""
        return nn.Sequential(
            ConvolutionUnit(in_maps, width, 3, stride), ConvolutionUnit(width, width, 3, relu=False)
        )


class Bottleneck(Residual):
    """A 3 x 3 convolution between two of 1 x 1; the last one widens by 4."""

    widening = 4

    @staticmethod
    def convolutions(in_maps: int, width: int, stride: int) -> nn.Sequential:
        """Makes three convolutions: 1 x 1, 3 x 3, 1 x 1."""
        return nn.Sequential(
            ConvolutionUnit(in_maps, width, 1),
            ConvolutionUnit(width, width, 3, stride),
            ConvolutionUnit(width, 4 * width, 1, relu=False),
        )
