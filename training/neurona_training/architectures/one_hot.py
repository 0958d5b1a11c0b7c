"""Texts for a network of numbers: which of its categories each one is."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
