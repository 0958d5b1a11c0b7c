"""The neocognitron.

K. Fukushima, Neocognitron: A Self-organizing Neural Network Model for a Mechanism of Pattern
Recognition Unaffected by Shift in Position, Biological Cybernetics 36 (1980).

Its cells respond with 0 or more. They learn without a gradient: learning/competitive.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SATURATION = 0.5  # alpha of the paper: the input at which a C-cell has half its largest response
_MIN_SIZE = 16  # pixels; smaller images are enlarged, or two layers would leave nothing
_MAX_GRID = 8  # C-cells across that the readout sees; its matrices grow with the fourth power


class Neocognitron(nn.Module):
    """S-cells find features, C-cells tolerate shifts of them: images -> logits (rows, classes).

    Images are (rows, height, width) or (rows, channel, height, width). The last layer of the
    paper, where each cell responds to one pattern, is a linear readout here; of large images it
    reads the strongest of neighbouring C-cells, so that it sees at most 8 x 8 positions.

    Args:
        normalise: scales the pixels to 0 and above.
        size: height and width of the images, in pixels; any.
        classes: number of outputs.
        planes: number of planes of S-cells in each layer; a plane finds one feature anywhere.
        selectivity: of the S-cells in each layer: r of the paper.
    """

    def __init__(
        self,
        normalise: nn.Module,
        *,
        size: tuple[int, int],
        classes: int,
        planes: tuple[int, ...],
        selectivity: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.enlarge: nn.Module = nn.Identity()
        height, width = (max(_MIN_SIZE, pixels) for pixels in size)
        if (height, width) != tuple(size):
            self.enlarge = nn.Upsample((height, width), mode="bilinear")
        self.layers = nn.ModuleList()
        in_maps = 1
        for count, r in zip(planes, selectivity, strict=True):
            self.layers.append(nn.Sequential(SCells(in_maps, count, 5, r), CCells(5)))
            in_maps, height, width = count, (height + 1) // 2, (width + 1) // 2
        self.pool: nn.Module = nn.Identity()
        if max(height, width) > _MAX_GRID:
            block = (-(-height // _MAX_GRID), -(-width // _MAX_GRID))
            self.pool = nn.MaxPool2d(block, ceil_mode=True)
            height, width = -(-height // block[0]), -(-width // block[1])
        self.output = nn.Linear(in_maps * height * width, classes)
        self.output.requires_grad_(requires_grad=False)

    def first_layer_input(self, images: Tensor) -> Tensor:
        """Scales, averages over channels and enlarges: (rows, 1, height, width), 0 for blank."""
        x: Tensor = self.normalise(images)
        x = x.unsqueeze(1) if x.ndim == 3 else x.mean(dim=1, keepdim=True)
        enlarged: Tensor = self.enlarge(x)
        return enlarged

    def features(self, images: Tensor) -> Tensor:
        """Responses of the last C-cells, (rows, planes x height x width)."""
        x = self.first_layer_input(images)
        for layer in self.layers:
            x = layer(x)
        features: Tensor = self.pool(x).flatten(1)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.output(self.features(images))
        return logits


class SCells(nn.Module):
    """Cells that respond to the pattern that their plane has learned.

    (rows, in_maps, height, width) -> (rows, planes, height, width). Equation 2 of the paper:
    excitation by `excitatory` (a), inhibition by `inhibitory` (b) in proportion to the
    strength of the input, so that the pattern counts and not its contrast. A plane that has
    learned nothing does not respond.

    Args:
        in_maps: maps of the input.
        planes: of cells, each for one pattern.
        size: of the patch that a cell reads.
        selectivity: r of the paper.
    """

    reach: Tensor

    def __init__(self, in_maps: int, planes: int, size: int, selectivity: float) -> None:
        super().__init__()
        self.selectivity = selectivity
        self.register_buffer("reach", _falling_weights(size) / in_maps)  # c: less weight outwards
        a, b = torch.zeros(planes, in_maps, size, size), torch.zeros(planes)
        self.excitatory = nn.Parameter(a, requires_grad=False)
        self.inhibitory = nn.Parameter(b, requires_grad=False)

    def strength(self, x: Tensor) -> Tensor:
        """Strength of the input, by the inhibitory V-cells (v): (rows, 1, height, width)."""
        kernel = self.reach.expand(1, x.shape[1], -1, -1)
        return functional.conv2d(x.square(), kernel, padding="same").sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the responses of all planes, 0 or more."""
        excitation = functional.conv2d(x, self.excitatory, padding="same")
        factor = self.selectivity / (1 + self.selectivity)
        inhibition = factor * self.inhibitory[:, None, None] * self.strength(x)
        return self.selectivity * functional.relu((1 + excitation) / (1 + inhibition) - 1)

    def reinforce(self, plane: int, patch: Tensor, learning_rate: float) -> None:
        """Lets a plane learn the input of one of its cells: patch (in_maps, size, size)."""
        self.excitatory[plane] += learning_rate * self.reach * patch
        self.inhibitory[plane] += learning_rate * (self.reach * patch.square()).sum().sqrt()


class CCells(nn.Module):
    """Cells that respond when a nearby S-cell does, in their plane more than in the others.

    (rows, planes, height, width) -> the same with half the height and width (equation 5).
    """

    reach: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("reach", _falling_weights(size))  # d

    def forward(self, x: Tensor) -> Tensor:
        """Returns the responses of all planes, 0 to 1."""
        planes, size = x.shape[1], self.reach.shape[-1]
        kernel = self.reach.expand(planes, 1, size, size)
        near = functional.conv2d(x, kernel, stride=2, padding=size // 2, groups=planes)
        inhibition = near.mean(dim=1, keepdim=True)
        active = functional.relu((1 + near) / (1 + inhibition) - 1)
        return active / (_SATURATION + active)


def _falling_weights(size: int) -> Tensor:
    """Weights of size x size that fall off from the centre and sum to 1."""
    distance = torch.arange(size) - (size - 1) / 2
    weights = torch.exp(-(distance.square() / (size / 2) ** 2))
    square = torch.outer(weights, weights)
    return square / square.sum()
