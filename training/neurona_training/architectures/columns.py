"""The first layer of networks for tables: fills missing values, encodes dates and texts.

It is alone because it is put before a network after its training, whatever the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurona_training.data.user.encoding import (
    CIRCLE_STEPS,
    DAYS_PER_YEAR,
    TWO_PI,
    WEEKDAY_OF_DAY_0,
    ColumnEncoding,
)


class EncodeColumns(nn.Module):
    """From a caller's columns to those that a network was trained on, see `ColumnEncoding`.

    A missing number is NaN. An unknown text, whose code is beyond the others', has the last row of
    its table.

    Args:
        encoding: what becomes of each column.
    """

    medians: Tensor
    passed_on: Tensor
    indicators: Tensor
    weekdays: Tensor

    def __init__(self, encoding: ColumnEncoding) -> None:
        super().__init__()
        self.encoding = encoding
        self.register_buffer("medians", torch.tensor(encoding.medians))
        self.register_buffer("passed_on", torch.tensor(encoding.passed_on, dtype=torch.int64))
        self.register_buffer("indicators", torch.tensor(encoding.indicators, dtype=torch.int64))
        self.register_buffer("weekdays", torch.arange(7, dtype=torch.float32))
        self.tables = [f"table{index}" for index in range(len(encoding.tables))]
        for name, table in zip(self.tables, encoding.tables, strict=True):
            self.register_buffer(name, torch.from_numpy(table))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Takes numbers (rows, width), if there are any, then int64 codes (rows,) for each text."""
        columns: list[Tensor] = []
        codes = list(inputs)
        if self.encoding.width:
            columns += self._encode_numbers(codes.pop(0))
        for name, code in zip(self.tables, codes, strict=True):
            columns.append(functional.embedding(code, self.get_buffer(name)))
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    def _encode_numbers(self, numbers: Tensor) -> list[Tensor]:
        encoding = self.encoding
        is_missing = torch.isnan(numbers) if encoding.medians else None
        if is_missing is not None:
            numbers = torch.where(is_missing, self.medians, numbers)
        columns = [numbers.index_select(1, self.passed_on) if encoding.omitted else numbers]
        if not encoding.passed_on:  # ONNX Runtime need not join an array without columns
            columns = []
        for position in encoding.dates:
            days = numbers[:, position : position + 1]
            columns += self._calendar(days, has_time=position in encoding.times)
        if is_missing is not None and encoding.indicators:
            columns.append(is_missing.index_select(1, self.indicators).to(torch.float32))
        return columns

    def _calendar(self, days: Tensor, *, has_time: bool) -> list[Tensor]:
        """Season, weekday and time of (rows, 1) days since 1970-01-01."""
        weekday = torch.floor(days) + WEEKDAY_OF_DAY_0
        weekday = weekday - 7 * torch.floor(weekday / 7)
        columns = [*_circle(days / DAYS_PER_YEAR), (weekday == self.weekdays).to(torch.float32)]
        if has_time:
            columns += _circle(days)
        return columns


def _circle(turns: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of a number of turns, of which only the fraction counts."""
    angle = (turns - torch.floor(turns)) * TWO_PI
    return _on_grid(torch.sin(angle)), _on_grid(torch.cos(angle))


def _on_grid(values: Tensor) -> Tensor:
    return torch.round(values * CIRCLE_STEPS) / CIRCLE_STEPS


class EncodedColumns(nn.Module):
    """A network behind the encoding of its columns.

    Args:
        network: takes the encoded columns, (rows, columns).
        encoding: of the columns that a caller sends.
    """

    def __init__(self, network: nn.Module, encoding: ColumnEncoding) -> None:
        super().__init__()
        self.encode = EncodeColumns(encoding)
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """Takes numbers (rows, width), if there are any, then int64 codes (rows,) for each text."""
        output: Tensor = self.network(self.encode(*inputs))
        return output
