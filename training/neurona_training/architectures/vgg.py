"""VGG16: K. Simonyan and A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image
Recognition, ICLR (2015), configuration D.
"""

from torch import Tensor, nn

from neurona_training.architectures.input_layers import Colours

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_WIDTH = 4096  # of the fully connected layers


class VGG16(nn.Module):
    """Square images -> logits (rows, classes).

    13 convolutions of 3 x 3, in five stages that each halve the image, and three fully
    connected layers. 224 pixels end as 7 x 7; a stage of a smaller image that has come down
    to one pixel leaves it, and the first fully connected layer is as wide as what is left.
    """

    def __init__(self, normalise: nn.Module, *, size: int, classes: int) -> None:
        super().__init__()
        self.colours = Colours(normalise)
        self.stages = nn.Sequential()
        seen = 3
        for stage in _STAGES:
            for maps in stage:
                self.stages.extend([_convolution(seen, maps, size), nn.ReLU()])
                seen = maps
            if size > 1:
                self.stages.append(nn.MaxPool2d(2))
                size //= 2
        self.classifier = nn.Sequential(
            _connected(seen * size * size, _WIDTH),
            nn.ReLU(),
            nn.Dropout(0.5),
            _connected(_WIDTH, _WIDTH),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(_WIDTH, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.colours(images))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


def _convolution(seen: int, maps: int, size: int) -> nn.Conv2d:
    """size: of the maps."""
    convolution = nn.Conv2d(seen, maps, 3, padding=1)
    # He and others' first weights (2015): with the paper's own, 16 layers had to be trained
    # in steps, the shallow ones first. They keep what comes in as strong as it is, if only the
    # places are counted that are not padding: one of nine in a map of one pixel.
    places = min(size, 3) ** 2
    nn.init.normal_(convolution.weight, std=(2 / (seen * places)) ** 0.5)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


def _connected(seen: int, units: int) -> nn.Linear:
    layer = nn.Linear(seen, units)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer
