"""VGG16.

K. Simonyan and A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image
Recognition, ICLR (2015), configuration D.
"""

from torch import Tensor, nn

from neurona_training.architectures.input_layers import RgbInput

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_WIDTH = 4096  # of the fully connected layers


class VGG16(nn.Module):
    """13 convolutions of 3 x 3 in five stages that halve the image, and 3 fully connected layers.

    Images -> logits (rows, classes). 224 pixels become 7 x 7; a smaller image is halved until it
    has one pixel across, one down, or both, and the first fully connected layer has the width of
    what is left.

    Args:
        normalise: scales the pixels.
        size: height and width of the images, in pixels.
        classes: number of outputs.
    """

    def __init__(self, normalise: nn.Module, *, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.colours = RgbInput(normalise)
        self.stages = nn.Sequential()
        in_maps = 3
        for stage in _STAGES:
            for maps in stage:
                self.stages.extend([_make_convolution(in_maps, maps, size), nn.ReLU()])
                in_maps = maps
            if max(size) > 1:
                blocks = (min(2, size[0]), min(2, size[1]))
                self.stages.append(nn.MaxPool2d(blocks))
                size = (size[0] // blocks[0], size[1] // blocks[1])
        self.classifier = nn.Sequential(
            _make_linear(in_maps * size[0] * size[1], _WIDTH),
            nn.ReLU(),
            nn.Dropout(0.5),
            _make_linear(_WIDTH, _WIDTH),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(_WIDTH, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        x = self.stages(self.colours(images))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def _make_convolution(in_maps: int, maps: int, size: tuple[int, int]) -> nn.Conv2d:
    """A 3 x 3 convolution for maps of this height and width."""
    convolution = nn.Conv2d(in_maps, maps, 3, padding=1)
    # Initial weights of He and others (2015): with the paper's own, 16 layers had to be trained
    # in stages, the shallow ones first. They keep the variance of the input if only positions
    # that are not padding are counted: one of nine in a map of one pixel.
    positions = min(size[0], 3) * min(size[1], 3)
    nn.init.normal_(convolution.weight, std=(2 / (in_maps * positions)) ** 0.5)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


def _make_linear(in_maps: int, units: int) -> nn.Linear:
    layer = nn.Linear(in_maps, units)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
