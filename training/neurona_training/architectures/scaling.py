"""The steps between a user's units and a network's: part of the network, so of the file."""

from typing import Any

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
    def to_unit_variance(cls, values: NDArray[Any]) -> "Normalise":
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
