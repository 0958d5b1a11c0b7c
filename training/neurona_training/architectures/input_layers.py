"""What deep networks for colour photographs have in common: how an image gets into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Normalise(nn.Module):
    """x -> (x - offset) * factor, any shape; `offset` and `factor` are in the user's units."""

    offset: Tensor
    factor: Tensor

    def __init__(self, offset: float, factor: float) -> None:
        super().__init__()
        self.has_offset = offset != 0  # one step less in the graph
        self.register_buffer("offset", torch.tensor(offset))
        self.register_buffer("factor", torch.tensor(factor))

    @classmethod
    def to_unit_variance(cls, values: NDArray[Any]) -> Normalise:
        """The step that gives these values mean 0 and variance 1."""
        return cls(float(np.mean(values)), 1 / _spread(values))

    def forward(self, x: Tensor) -> Tensor:
        if self.has_offset:
            x = x - self.offset
        return x * self.factor


class Denormalise(nn.Module):
    """Mean 0 and variance 1 back to the mean and variance of these values, any shape."""

    mean: Tensor
    spread: Tensor

    def __init__(self, values: NDArray[Any]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(float(np.mean(values))))
        self.register_buffer("spread", torch.tensor(_spread(values)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.spread + self.mean


def _spread(values: NDArray[Any]) -> float:
    """The standard deviation; 1 for values that are all the same, which stay as they are."""
    return float(np.std(values)) or 1.0


if TYPE_CHECKING:
    from neurona_training.data import Dataset


class Features(nn.Module):
    """Rows or images in a caller's units -> plain numbers near 0, (rows, width).

    Columns get mean 0 and variance 1 each; all pixels of an image have one scale.
    """

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        inputs = data.train.inputs
        of_images = data.kind == "images"
        self.scale = Normalise.to_unit_variance(inputs) if of_images else Columns(inputs)
        self.width = int(np.prod(inputs.shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.scale(x)
        return scaled if scaled.ndim == 2 else scaled.flatten(1)


class Columns(nn.Module):
    """(rows, columns) -> the same with mean 0 and variance 1 in each column of `values`."""

    mean: Tensor
    factor: Tensor

    def __init__(self, values: NDArray[Any]) -> None:
        super().__init__()
        spread = values.std(axis=0, dtype=np.float64)
        spread[spread == 0] = 1  # a column that is always the same stays so
        mean = values.mean(axis=0, dtype=np.float64)
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("factor", torch.from_numpy((1 / spread).astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.factor


class OneHot(nn.Module):
    """The network behind a 1 for each row's own category and 0 for all others.

    forward(numbers, codes, codes, …) or, without numbers, forward(codes, …): numbers of shape
    (rows, columns), codes int64 of shape (rows,). A code beyond the categories, of a text that
    training has never seen, becomes zeros alone.

    categories: how many each of the codes has.
    """

    def __init__(self, network: nn.Module, categories: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.tables = [f"table{place}" for place in range(len(categories))]
        for name, count in zip(self.tables, categories, strict=True):
            self.register_buffer(name, torch.eye(count + 1, count))  # the last row: zeros

    def forward(self, *inputs: Tensor) -> Tensor:
        numbers, codes = inputs[: -len(self.tables)], inputs[-len(self.tables) :]
        hot = [self.get_buffer(name)[code] for name, code in zip(self.tables, codes, strict=True)]
        answer: Tensor = self.network(torch.cat([*numbers, *hot], dim=1))
        return answer


SMALL = 16  # pixels; a stem made for photographs would shrink a smaller image to nothing


class Colours(nn.Module):
    """Images in a caller's units -> (rows, 3, height, width) near 0.

    (rows, height, width) or (rows, channel, height, width), of one or three channels. Grey is
    shown to all three colours, so that the network behind is the published one.
    """

    def __init__(self, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalise(images)
        if x.ndim == 3:
            x = x.unsqueeze(1)
        return x if x.shape[1] == 3 else torch.cat([x, x, x], dim=1)


class Unit(nn.Sequential):
    """Convolution without bias, batch normalisation (S. Ioffe and C. Szegedy, 2015), ReLU.

    size: of the kernel, one number or height and width. same: padded so that only the stride
    makes the map smaller.
    """

    def __init__(
        self,
        seen: int,
        maps: int,
        size: int | tuple[int, int],
        stride: int = 1,
        *,
        same: bool = True,
        bend: bool = True,
        epsilon: float = 1e-5,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if same else (0, 0)
        convolution = nn.Conv2d(seen, maps, (height, width), stride, padding, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(convolution, nn.BatchNorm2d(maps, epsilon))
        if bend:
            self.append(nn.ReLU())


def pooled(x: Tensor) -> Tensor:
    """The mean of each map: (rows, maps, height, width) -> (rows, maps)."""
    return x.mean(dim=(2, 3))
