"""The first step of networks that read a row as a whole, or an image as one long row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurona_training.architectures.scaling import Normalise

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
