"""Xception.

F. Chollet, Xception: Deep Learning with Depthwise Separable Convolutions, CVPR (2017).
"""

from itertools import pairwise

from torch import Tensor, nn

from neurona_training.architectures.input_layers import (
    ConvolutionUnit,
    RgbInput,
    global_average_pool,
)

_SMALL_IMAGE = 64  # pixels; smaller images keep their size in the stem


class Xception(nn.Module):
    """Figure 5 of the paper: images -> logits (rows, classes).

    Args:
        normalise: scales the pixels.
        size: height and width of the images in pixels, 299 in the paper. If one is below 64 the
            first convolution has stride 1, and the stem is padded.
        classes: number of outputs.
    """

    def __init__(self, normalise: nn.Module, *, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        small = min(size) < _SMALL_IMAGE
        self.colours = RgbInput(normalise)
        self.stem = nn.Sequential(
            ConvolutionUnit(3, 32, 3, 1 if small else 2, same=small),
            ConvolutionUnit(32, 64, 3, same=small),
        )
        self.entry = nn.Sequential(
            _Block((64, 128, 128), stride=2, relu_first=False),
            _Block((128, 256, 256), stride=2),
            _Block((256, 728, 728), stride=2),
        )
        self.middle = nn.Sequential(*(_Block((728, 728, 728, 728)) for _ in range(8)))
        self.exit = nn.Sequential(
            _Block((728, 728, 1024), stride=2),
            _Separable(1024, 1536),
            nn.ReLU(),
            _Separable(1536, 2048),
            nn.ReLU(),
        )
        self.output = nn.Linear(2048, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        x = self.exit(self.middle(self.entry(self.stem(self.colours(images)))))
        logits: Tensor = self.output(global_average_pool(x))
        return logits


class _Separable(nn.Sequential):
    """A convolution of each map by itself, one of 1 x 1 over all maps, and a normalisation."""

    def __init__(self, in_maps: int, maps: int) -> None:
        super().__init__(
            nn.Conv2d(in_maps, in_maps, 3, padding=1, groups=in_maps, bias=False),
            nn.Conv2d(in_maps, maps, 1, bias=False),
            nn.BatchNorm2d(maps),
        )


class _Block(nn.Module):
    """Separable convolutions with a shortcut.

    Args:
        maps: of the input, then of the output of each convolution.
        stride: 2 halves the maps at the end and on the shortcut.
        relu_first: whether the first convolution has a ReLU before it.
    """

    def __init__(self, maps: tuple[int, ...], stride: int = 1, *, relu_first: bool = True) -> None:
        super().__init__()
        self.change = nn.Sequential()
        for index, (in_maps, out_maps) in enumerate(pairwise(maps)):
            if index or relu_first:
                self.change.append(nn.ReLU())
            self.change.append(_Separable(in_maps, out_maps))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.change.append(nn.MaxPool2d(3, stride, padding=1))
            self.shortcut = ConvolutionUnit(maps[0], maps[-1], 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.change(x) + self.shortcut(x)
        return output
