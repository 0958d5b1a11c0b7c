"""LeNet-5, the convolutional network of 1998.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-Based Learning Applied to Document
Recognition, Proceedings of the IEEE 86 (1998).
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# Table I of the paper: which of the 6 maps of S2 each of the 16 maps of C3 reads. Not all, so
# that the maps are forced to find different features.
_C3_CONNECTIONS = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    (0, 1, 2, 3, 4, 5),
)


class LeNet5(nn.Module):
    """LeNet-5, with the paper's 60,000 parameters up to F6.

    (rows, height, width), or (rows, channels, height, width) -> logits (rows, classes); an
    image of any size is resized to the paper's 32 x 32, one that is not square is stretched.
    Two things differ from the paper: the output is a softmax layer instead of radial basis
    functions, and tanh is unscaled, since the weights around it can absorb the paper's 1.7159
    and 2/3.

    Args:
        normalise: scales the pixels.
        size: height and width of the images, in pixels.
        classes: number of outputs.
        channels: of the images.
    """

    def __init__(
        self, normalise: nn.Module, size: tuple[int, int], classes: int, channels: int = 1
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.enlarge = _resize_to_32(size)
        self.c1 = nn.Conv2d(channels, 6, 5)  # -> 6 maps of 28 x 28
        self.s2 = Subsampling(6)  # -> 14 x 14
        self.c3 = PartialConvolution(6, _C3_CONNECTIONS, 5)  # -> 16 maps of 10 x 10
        self.s4 = Subsampling(16)  # -> 5 x 5
        self.c5 = nn.Linear(16 * 5 * 5, 120)  # a convolution over the whole map
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits."""
        x = self.normalise(image)
        x = self.enlarge(x if x.ndim == 4 else x.unsqueeze(1))
        x = torch.tanh(self.c1(x))
        x = torch.tanh(self.s2(x))
        x = torch.tanh(self.c3(x))
        x = torch.tanh(self.s4(x))
        x = torch.tanh(self.c5(x.flatten(1)))
        x = torch.tanh(self.f6(x))
        logits: Tensor = self.output(x)
        return logits


def _resize_to_32(size: tuple[int, int]) -> nn.Upsample:
    """A layer that makes 32 x 32 of images of this height and width."""
    factors = (32 / size[0], 32 / size[1])
    # The file has the factors in float32; runtimes multiply in float32 or in float64.
    products = np.array(size) * np.array(factors, np.float32).astype(np.float64)
    exact = np.array(size) * np.array(factors)
    if all(
        np.floor(one).tolist() == [32, 32] for one in (products, products.astype(np.float32), exact)
    ):
        return nn.Upsample(scale_factor=factors, mode="bilinear")  # two nodes less than the other
    return nn.Upsample(size=(32, 32), mode="bilinear")  # rounding would lose a pixel


class Subsampling(nn.Module):
    """The sum of each 2 x 2 block, times one learned weight a map, plus one learned bias."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((maps,), 0.25))  # at first: the mean of the block
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor) -> Tensor:
        """Halves height and width of (rows, maps, height, width)."""
        means = functional.avg_pool2d(x, 2)
        return means * (4 * self.weight)[:, None, None] + self.bias[:, None, None]

    def for_export(self) -> nn.Module:
        """Returns an equal convolution of each map by itself: one node in the graph, not three."""
        maps = len(self.weight)
        kernel = self.weight[:, None, None, None].expand(maps, 1, 2, 2)
        return _make_convolution(kernel, self.bias, stride=2, groups=maps)


class PartialConvolution(nn.Module):
    """A convolution whose map i reads only the input maps `connections[i]`.

    Only existing connections are parameters: weight is (connections, size, size).
    """

    mask: Tensor

    def __init__(self, maps: int, connections: tuple[tuple[int, ...], ...], size: int) -> None:
        super().__init__()
        mask = torch.zeros(len(connections), maps, dtype=torch.bool)
        for index, inputs in enumerate(connections):
            mask[index, list(inputs)] = True
        self.register_buffer("mask", mask, persistent=False)
        # Uniform, with the range of torch's own convolution of this many inputs.
        width = (maps * size * size) ** -0.5
        self.weight = nn.Parameter(torch.empty(int(mask.sum()), size, size))
        self.bias = nn.Parameter(torch.empty(len(connections)))
        nn.init.uniform_(self.weight, -width, width)
        nn.init.uniform_(self.bias, -width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (rows, maps, height, width), without padding."""
        return functional.conv2d(x, self._kernel(), self.bias)

    def for_export(self) -> nn.Module:
        """Returns an equal convolution with zeros for the missing connections."""
        return _make_convolution(self._kernel(), self.bias)

    def _kernel(self) -> Tensor:
        kernel = self.weight.new_zeros(*self.mask.shape, *self.weight.shape[1:])
        kernel[self.mask] = self.weight
        return kernel


def _make_convolution(kernel: Tensor, bias: Tensor, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Returns a convolution with these weights; kernel is (maps, in_maps, size, size)."""
    maps, in_maps, size, _ = kernel.shape
    convolution = nn.Conv2d(in_maps * groups, maps, size, stride, groups=groups)
    convolution.weight = nn.Parameter(kernel.detach().clone())
    convolution.bias = nn.Parameter(bias.detach().clone())
    return convolution
