"""Xception: F. Chollet, Xception: Deep Learning with Depthwise Separable Convolutions, CVPR
(2017)."""

from itertools import pairwise

from torch import Tensor, nn

from neurona_training.architectures.input_layers import Colours, Unit, pooled

_SMALL = 64  # pixels; smaller images keep their size in the stem


class Xception(nn.Module):
    """Square images -> logits (rows, classes): Figure 5 of the paper.

    size: of the images, 299 in the paper. Those smaller than 64 pixels meet a first
        convolution of stride 1, and the stem is padded.
    """

    def __init__(self, normalise: nn.Module, *, size: int, classes: int) -> None:
        super().__init__()
        small = size < _SMALL
        self.colours = Colours(normalise)
        self.stem = nn.Sequential(
            Unit(3, 32, 3, 1 if small else 2, same=small), Unit(32, 64, 3, same=small)
        )
        self.entry = nn.Sequential(
            _Block((64, 128, 128), stride=2, bend_first=False),
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
        x = self.exit(self.middle(self.entry(self.stem(self.colours(images)))))
        logits: Tensor = self.output(pooled(x))
        return logits


class _Separable(nn.Sequential):
    """Each map is convolved by itself, then all are mixed by 1 x 1, and normalised."""

    def __init__(self, seen: int, maps: int) -> None:
        super().__init__(
            nn.Conv2d(seen, seen, 3, padding=1, groups=seen, bias=False),
            nn.Conv2d(seen, maps, 1, bias=False),
            nn.BatchNorm2d(maps),
        )


class _Block(nn.Module):
    """Separable convolutions with a way around them.

    maps: what comes in, then what each convolution gives.
    stride: 2 halves the maps at the end, on both ways.
    """

    def __init__(self, maps: tuple[int, ...], stride: int = 1, *, bend_first: bool = True) -> None:
        super().__init__()
        self.change = nn.Sequential()
        for place, (seen, made) in enumerate(pairwise(maps)):
            if place or bend_first:
                self.change.append(nn.ReLU())
            self.change.append(_Separable(seen, made))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.change.append(nn.MaxPool2d(3, stride, padding=1))
            self.shortcut = Unit(maps[0], maps[-1], 1, stride, bend=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.change(x) + self.shortcut(x)
        return answer
