"""The first and last layers of many networks, between a caller's units and the network's own.

Normalise                           one scale for all numbers
Denormalise                         a scale for each predicted value
ValueScale, PredictionInterval      bounds of what a regression predicts
StandardiseColumns, Features        rows and images for fully connected networks
Temperature                         calibrated probabilities
RgbInput, ConvolutionUnit, global_average_pool    images for deep convolutional networks
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurona_training.architectures.columns import EncodedColumns
from neurona_training.data import Dataset

Scale = Literal["identity", "root", "log"]

_LARGEST_LOG = 80.0  # e ** 80 is a finite float32
_SMALLEST_SQUARED, _LARGEST_SQUARED = 1e-15, 1e15  # whose squares are well within float32
LARGE_BYTES = 1 << 30  # arrays above may be larger than memory
_UNITS_RATIO = 100.0
SMALL_IMAGE = 16  # pixels; a stem made for photographs would shrink a smaller image to nothing


class Normalise(nn.Module):
    """x -> (x - offset) * factor, any shape.

    Args:
        offset: in the user's unit.
        factor: per user's unit.
    """

    offset: Tensor
    factor: Tensor

    def __init__(self, offset: float, factor: float) -> None:
        super().__init__()
        self.has_offset = offset != 0  # without: one node less in the graph
        self.register_buffer("offset", torch.tensor(offset))
        self.register_buffer("factor", torch.tensor(factor))

    @classmethod
    def to_unit_variance(cls, values: NDArray[Any]) -> Normalise:
        """Returns the layer that gives these values mean 0 and variance 1."""
        return cls(_mean(values), 1 / _standard_deviation(values))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the input."""
        if self.has_offset:
            x = x - self.offset
        return x * self.factor


class Denormalise(nn.Module):
    """Scales each column of mean 0 and variance 1 back to its mean and variance in `values`.

    Args:
        values: (rows, columns).
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, values: NDArray[Any]) -> None:
        super().__init__()
        mean, spread = values.mean(axis=0, dtype=np.float64), column_spreads(values)
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("spread", torch.from_numpy(spread.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the outputs, (..., columns)."""
        return x * self.spread + self.mean


class ValueScale(nn.Module):
    """The scale on which a forecast adds: the values', their square roots or their logarithms.

    Large counts vary more than small ones; their square roots vary equally (M. Bartlett, The
    Square Root Transformation in Analysis of Variance, 1936). What grows by a percentage, and
    swings by one, grows and swings evenly as a logarithm.

    Args:
        scale: which of them.
        smallest: of values whose logarithm is taken; smaller ones count as this one.
    """

    def __init__(self, scale: Scale, smallest: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.smallest = smallest

    def forward(self, values: Tensor) -> Tensor:
        """Returns the values on the scale, of the same shape."""
        if self.scale == "identity":
            return values
        if self.scale == "root":
            return values.clamp(min=0).sqrt()
        return values.clamp(min=self.smallest).log()

    def inverse(self, scaled: Tensor) -> Tensor:
        """Returns the values; roots below 0 are values of 0, and no value is below `smallest`."""
        if self.scale == "identity":
            return scaled
        if self.scale == "root":
            return scaled.clamp(min=0).square()
        # Not below what `forward` takes for the smallest: an interval holds its value.
        return scaled.clamp(min=math.log(self.smallest), max=_LARGEST_LOG).exp()


class PredictionInterval(nn.Module):
    """Adds a lower and an upper bound to each value of a regression.

    (rows, values) -> (rows, 3 * values): the values, all lower bounds, all upper bounds.

    Args:
        network: predicts values.
        scale: on which the bounds are as far below the value as above it.
        distances: on that scale, (values,).
    """

    distances: Tensor

    def __init__(self, network: nn.Module, scale: ValueScale, distances: Tensor) -> None:
        super().__init__()
        self.network = network
        self.scale = scale
        self.register_buffer("distances", distances)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns values and bounds for the network's inputs."""
        values: Tensor = self.network(*inputs)
        scaled = self.scale(values)
        bounds = torch.cat([scaled - self.distances, scaled + self.distances], dim=1)
        return torch.cat([values, self.scale.inverse(bounds)], dim=1)


def column_spreads(values: NDArray[Any]) -> NDArray[np.float64]:
    """The standard deviation of each column; 1 for a constant one, whose scale is kept.

    As constant counts one whose inverse float32 does not hold.
    """
    spreads: NDArray[np.float64] = values.std(axis=0, dtype=np.float64)
    return np.where(spreads < np.finfo(np.float32).tiny, 1.0, spreads)


def _mean(values: NDArray[Any]) -> float:
    with np.errstate(over="ignore"):
        mean = float(np.mean(values))
    return mean if math.isfinite(mean) else float(np.mean(values, dtype=np.float64))


def _standard_deviation(values: NDArray[Any]) -> float:
    """The standard deviation; 1 for constant values, whose scale is kept."""
    if values.nbytes <= LARGE_BYTES:
        with np.errstate(over="ignore"):
            spread = float(np.std(values))
        if not _SMALLEST_SQUARED < spread < _LARGEST_SQUARED:  # squares are not float32's
            spread = float(np.std(values, dtype=np.float64))
        return spread or 1.0
    mean = _mean(values)  # in pieces: numpy would make another array of this size
    squares = sum(float(np.square(row - np.float64(mean)).sum()) for row in values)
    return math.sqrt(squares / values.size) or 1.0


class StandardiseColumns(nn.Module):
    """Scales each column to mean 0 and variance 1 in `values`, (rows, columns)."""

    mean: Tensor
    factor: Tensor

    def __init__(self, values: NDArray[Any]) -> None:
        super().__init__()
        spread = column_spreads(values)
        mean = values.mean(axis=0, dtype=np.float64)
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("factor", torch.from_numpy((1 / spread).astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the columns of (..., columns)."""
        return (x - self.mean) * self.factor


def channel_scale(values: NDArray[Any]) -> nn.Module:
    """Returns one scale for all channels of (rows, time, channels), or one for each.

    Channels whose standard deviations differ more than a hundredfold are of different units.
    """
    steps = values.reshape(-1, values.shape[-1])
    spreads = steps.std(axis=0, dtype=np.float64)
    spreads = spreads[spreads > 0]
    if len(spreads) and spreads.max() > _UNITS_RATIO * spreads.min():
        return StandardiseColumns(steps)
    return Normalise.to_unit_variance(values)


class Features(nn.Module):
    """Scales rows or images and flattens them: inputs of a data set -> (rows, width).

    Columns get mean 0 and variance 1 each; all pixels of an image have one scale.
    """

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        inputs = data.train.inputs
        is_images = data.kind == "images"
        self.scale = Normalise.to_unit_variance(inputs) if is_images else StandardiseColumns(inputs)
        self.width = int(np.prod(inputs.shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (rows, width) for inputs of the data set's shape."""
        scaled: Tensor = self.scale(x)
        return scaled if scaled.ndim == 2 else scaled.flatten(1)


class Temperature(nn.Module):
    """Divides the logits of a network by a temperature, so that their softmax is calibrated.

    Args:
        network: its output is logits, (rows, classes).
        temperature: above 1 makes the probabilities less sure, below 1 surer.
    """

    factor: Tensor

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("factor", torch.tensor(1 / temperature))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Takes the network's inputs; returns logits."""
        logits: Tensor = self.network(*inputs) * self.factor
        return logits


def without_wrappers(network: nn.Module) -> nn.Module:
    """The network that was trained, without what else is in the file around it."""
    while isinstance(network, Temperature | PredictionInterval | EncodedColumns):
        network = network.network
    return network


class RgbInput(nn.Module):
    """Scales images to (rows, 3, height, width).

    Grey images are repeated for all three colours, so that the network behind is the
    published one.
    """

    def __init__(self, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise

    def forward(self, images: Tensor) -> Tensor:
        """Takes (rows, height, width) or (rows, channel, height, width), 1 or 3 channels."""
        x = self.normalise(images)
        if x.ndim == 3:
            x = x.unsqueeze(1)
        return x if x.shape[1] == 3 else torch.cat([x, x, x], dim=1)


class ConvolutionUnit(nn.Sequential):
    """Convolution without bias, batch normalisation (S. Ioffe and C. Szegedy, 2015), ReLU.

    Args:
        in_maps: maps of the input.
        maps: maps of the output.
        size: of the kernel, one number or height and width.
        stride: of the convolution.
        same: padded so that only the stride makes the maps smaller.
        relu: False leaves the ReLU out.
        epsilon: of the normalisation.
    """

    def __init__(
        self,
        in_maps: int,
        maps: int,
        size: int | tuple[int, int],
        stride: int = 1,
        *,
        same: bool = True,
        relu: bool = True,
        epsilon: float = 1e-5,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if same else (0, 0)
        convolution = nn.Conv2d(in_maps, maps, (height, width), stride, padding, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(convolution, nn.BatchNorm2d(maps, epsilon))
        if relu:
            self.append(nn.ReLU())


def global_average_pool(x: Tensor) -> Tensor:
    """The mean of each map: (rows, maps, height, width) -> (rows, maps)."""
    return x.mean(dim=(2, 3))
