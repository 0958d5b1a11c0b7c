"""Columns of a table as a network reads them best: scaled, and piece by piece.

Yu. Gorishniy and others, On Embeddings for Numerical Features in Tabular Deep Learning, NeurIPS
35 (2022): with a column's position between quantiles as further inputs a fully connected
network follows steps and bends as trees do, and skewed columns have their own resolution.

It is alone because only tables have columns of their own scale each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurona_training.architectures.input_layers import Features
from neurona_training.data import Dataset

_PIECES = 24  # of a column, at most
_LARGEST = 4.0  # standard deviations
_SMALLEST_STEP = 1e-6  # between two quantiles, of the larger of them
_TINY = float(np.finfo(np.float32).tiny)


class TableFeatures(Features):
    """Scales the columns of a table and adds pieces: (rows, columns) -> (rows, width).

    Each column has mean 0 and variance 1, held within _LARGEST so that a mistyped value far
    beyond the training's does not carry the network away. Each piece between two neighbouring
    quantiles of it is a further column: -1/2 before the piece, 1/2 after it, linear within.
    """

    column: Tensor
    lower: Tensor
    factor: Tensor

    def __init__(self, data: Dataset) -> None:
        super().__init__(data)
        columns, lower, upper = [], [], []
        for index, values in enumerate(data.train.inputs.T):
            edges = _edges(values)
            if len(edges) > 2:  # two values have nothing between them
                columns += [index] * (len(edges) - 1)
                lower.append(edges[:-1])
                upper.append(edges[1:])
        low = np.concatenate(lower) if lower else np.zeros(0)
        high = np.concatenate(upper) if upper else np.zeros(0)
        self.register_buffer("column", torch.tensor(columns, dtype=torch.int64))
        self.register_buffer("lower", torch.from_numpy(low.astype(np.float32)))
        self.register_buffer("factor", torch.from_numpy((1 / (high - low)).astype(np.float32)))
        self.width += len(columns)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled columns, then the pieces."""
        scaled: Tensor = self.scale(x).clamp(-_LARGEST, _LARGEST)
        if not len(self.column):
            return scaled
        pieces = ((x[:, self.column] - self.lower) * self.factor).clamp(0, 1)
        return torch.cat([scaled, pieces - 0.5], dim=1)


def _edges(values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the different quantiles of a column, (at most _PIECES + 1,), float64."""
    quantiles = np.quantile(values.astype(np.float64), np.linspace(0, 1, _PIECES + 1))
    edges = np.unique(quantiles.astype(np.float32)).astype(np.float64)
    # Neighbours that float32 hardly tells apart would make steps of rounding. What it tells apart
    # is a matter of both alone: one number of millions leaves those below 100 as they are.
    magnitudes = np.abs(edges)
    smallest = _SMALLEST_STEP * np.maximum(magnitudes[1:], magnitudes[:-1])
    keep = np.concatenate([[True], np.diff(edges) > np.maximum(smallest, _TINY)])
    kept: NDArray[np.float64] = edges[keep]
    return kept
