"""A series of counts foretold by its change, on a scale where changes are alike."""

import torch
from torch import Tensor, nn

from neurona_training.architectures.recurrent import Cell, LastState
from neurona_training.architectures.scaling import Normalise
from neurona_training.data import Split

OFFSET = 10.0  # counts, added before the root: near 0 it would spread the smallest ones too far
FACTOR = 0.5  # of a training row's random factor, the largest logarithm, either way


class NextCount(LastState):
    """(rows, time, 1) counts -> (rows, 1), the count that follows the last.

    The larger counts are the more they vary; their square roots vary alike (M. Bartlett, The
    Square Root Transformation in Analysis of Variance, 1936). The network reads the roots, and
    says how far the next one is from the last.

    In training each row is multiplied by a random factor, and its answer divided by it: what
    is learned then holds for series that run higher than any before, as the latest do.
    """

    def __init__(self, cell: Cell, train: Split, *, hidden: int, dropout: float) -> None:
        inputs, targets = torch.from_numpy(train.inputs), torch.from_numpy(train.targets)
        changes = _root(targets) - _root(inputs)[:, -1]
        super().__init__(
            Normalise.to_unit_variance(_root(inputs).numpy()),
            cell,
            features=1,
            hidden=hidden,
            outputs=1,
            denormalise=Normalise(0, float(changes.std())),
            dropout=dropout,
        )

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
        if not self.training:
            return self._next(sequence, lengths)
        power = torch.rand(sequence.shape[0], 1, device=sequence.device) * 2 - 1
        factor = torch.exp(FACTOR * power)
        return self._next(sequence * factor[:, None], lengths) / factor

    def _next(self, sequence: Tensor, lengths: Tensor | None) -> Tensor:
        roots = _root(sequence)
        last = roots[:, -1]
        if lengths is not None:
            last = roots[torch.arange(roots.shape[0], device=roots.device), lengths - 1]
        # The answer is no smaller than 0 counts.
        following = nn.functional.relu(last + super().forward(roots, lengths) - OFFSET**0.5)
        counts: Tensor = (following + OFFSET**0.5).square() - OFFSET
        return counts


def _root(counts: Tensor) -> Tensor:
    return torch.sqrt(counts.clamp(min=0) + OFFSET)
