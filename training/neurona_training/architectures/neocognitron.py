"""The neocognitron: K. Fukushima, Neocognitron: A Self-organizing Neural Network Model for a
Mechanism of Pattern Recognition Unaffected by Shift in Position, Biological Cybernetics 36
(1980).

Its cells answer 0 or more. What they have learned was never a gradient's work: competition.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SATURATION = 0.5  # alpha of the paper: the answer at which a C-cell is half as active as it can be
_SMALLEST = 16  # pixels; smaller images are enlarged, or two layers would leave nothing of them


class Neocognitron(nn.Module):
    """Images -> logits (rows, classes): S-cells find features, C-cells forgive where they are.

    (rows, height, width) or (rows, channel, height, width), square. The last layer of the
    paper, where each cell stands for one pattern, is a linear read-out here.

    planes: of S-cells, at most, in each layer: one feature each, looked for everywhere.
    selectivity: of S-cells, in each layer: r of the paper.
    """

    def __init__(
        self,
        normalise: nn.Module,
        *,
        size: int,
        classes: int,
        planes: tuple[int, ...],
        selectivity: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.enlarge: nn.Module = nn.Identity()
        if size < _SMALLEST:
            self.enlarge = nn.Upsample((_SMALLEST, _SMALLEST), mode="bilinear")
            size = _SMALLEST
        self.layers = nn.ModuleList()
        seen = 1
        for count, r in zip(planes, selectivity, strict=True):
            self.layers.append(nn.Sequential(SCells(seen, count, 5, r), CCells(5)))
            seen, size = count, (size + 1) // 2
        self.size = size
        self.output = nn.Linear(seen * size * size, classes)
        self.output.requires_grad_(requires_grad=False)

    def seen(self, images: Tensor) -> Tensor:
        """What the first layer looks at, (rows, 1, height, width), from 0 for nothing."""
        x: Tensor = self.normalise(images)
        x = x.unsqueeze(1) if x.ndim == 3 else x.mean(dim=1, keepdim=True)
        enlarged: Tensor = self.enlarge(x)
        return enlarged

    def features(self, images: Tensor) -> Tensor:
        """What the last C-cells answer, (rows, planes x height x width)."""
        x = self.seen(images)
        for layer in self.layers:
            x = layer(x)
        return x.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.features(images))
        return logits


class SCells(nn.Module):
    """Each answers when the cells that it sees look like what its plane has learned.

    (rows, seen, height, width) -> (rows, planes, height, width). Equation 2 of the paper:
    excitation by `excitatory` (a), inhibition by `inhibitory` (b) of the cells' own strength,
    so that what counts is the pattern, whether faint or strong. A plane that has learned
    nothing is silent.
    """

    reach: Tensor

    def __init__(self, seen: int, planes: int, size: int, selectivity: float) -> None:
        super().__init__()
        self.selectivity = selectivity
        self.register_buffer("reach", _falling(size) / seen)  # c: it sees less clearly outwards
        a, b = torch.zeros(planes, seen, size, size), torch.zeros(planes)
        self.excitatory = nn.Parameter(a, requires_grad=False)
        self.inhibitory = nn.Parameter(b, requires_grad=False)

    def strength(self, x: Tensor) -> Tensor:
        """The inhibitory V-cells (v): how much there is to see, (rows, 1, height, width)."""
        kernel = self.reach.expand(1, x.shape[1], -1, -1)
        return functional.conv2d(x.square(), kernel, padding="same").sqrt()

    def forward(self, x: Tensor) -> Tensor:
        excited = functional.conv2d(x, self.excitatory, padding="same")
        kept = self.selectivity / (1 + self.selectivity)
        inhibited = kept * self.inhibitory[:, None, None] * self.strength(x)
        return self.selectivity * functional.relu((1 + excited) / (1 + inhibited) - 1)

    def reinforce(self, plane: int, patch: Tensor, speed: float) -> None:
        """The plane learns what one of its cells sees: patch (seen, size, size)."""
        self.excitatory[plane] += speed * self.reach * patch
        self.inhibitory[plane] += speed * (self.reach * patch.square()).sum().sqrt()


class CCells(nn.Module):
    """Each answers when some S-cell near it does, in its own plane more than in the others.

    (rows, planes, height, width) -> the same with half the height and width (equation 5).
    """

    reach: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("reach", _falling(size))  # d

    def forward(self, x: Tensor) -> Tensor:
        planes, size = x.shape[1], self.reach.shape[-1]
        kernel = self.reach.expand(planes, 1, size, size)
        near = functional.conv2d(x, kernel, stride=2, padding=size // 2, groups=planes)
        inhibited = near.mean(dim=1, keepdim=True)
        active = functional.relu((1 + near) / (1 + inhibited) - 1)
        return active / (_SATURATION + active)


def _falling(size: int) -> Tensor:
    """Weights that fall off from the middle of size x size, and sum to 1."""
    away = torch.arange(size) - (size - 1) / 2
    weights = torch.exp(-(away.square() / (size / 2) ** 2))
    square = torch.outer(weights, weights)
    return square / square.sum()
