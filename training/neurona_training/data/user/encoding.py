"""How the columns of a table become the numbers that a network learns from.

    encoding = ColumnEncoding(width=2, medians=(40.0, 1500.0), indicators=(0,))
    encoding.encode([numbers])    # (rows, 3): both numbers, and whether the first was missing

`architectures.columns.EncodeColumns` does the same inside the exported file. This one is in numpy,
so that baselines and charts see the same columns without torch.

It is alone because the reader of rows makes it, and networks and baselines use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAYS_PER_YEAR = 365.2425
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEEKDAY_OF_DAY_0 = 3  # 1970-01-01 was a Thursday
TWO_PI = float(np.float32(2 * np.pi))
# Of sines and cosines: numpy, torch and ONNX Runtime round them differently, and a tree decides
# between numbers that are next to each other. On this grid all have the same ones.
CIRCLE_STEPS = 4096


@dataclass(frozen=True)
class ColumnEncoding:
    """From a caller's columns to those of the training view, which has no missing values.

    The training view has, in this order: the numbers, without `omitted`; of each date the sine and
    cosine of the season, a 1 for its weekday, and, if it has a time, the sine and cosine of that;
    for each of `indicators` a 1 where the number is missing; and the columns of each text.

    Args:
        width: how many columns of numbers there are, dates included.
        medians: what a missing value of each of them becomes; empty if none may be missing.
        indicators: positions of the numbers whose absence is a column of its own.
        dates: positions of the dates, in days since 1970-01-01 00:00.
        times: positions of the dates with a time of day.
        omitted: positions of dates of which only the season, weekday and time are used.
        tables: of each text, the row of numbers for each of its codes, float32 of shape
            (categories + 1, columns); the last row is for a text that is unknown.
        names: of the training view's columns.
    """

    width: int
    medians: tuple[float, ...] = ()
    indicators: tuple[int, ...] = ()
    dates: tuple[int, ...] = ()
    times: tuple[int, ...] = ()
    omitted: tuple[int, ...] = ()
    tables: tuple[NDArray[np.float32], ...] = ()
    names: tuple[str, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether the training view has the caller's numbers as they are."""
        return not (self.medians or self.dates or self.tables)

    @property
    def passed_on(self) -> tuple[int, ...]:
        """Positions of the numbers that are columns of the training view themselves."""
        return tuple(index for index in range(self.width) if index not in self.omitted)

    def encode(self, arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Returns the training view's columns, float32 of shape (rows, columns).

        Args:
            arrays: the numbers (rows, width) with NaN for missing values, unless the width is 0,
                then the codes (rows,) of each text.
        """
        columns: list[NDArray[np.float32]] = []
        codes = list(arrays)
        if self.width:
            numbers = np.asarray(codes.pop(0), np.float32)
            is_missing = np.isnan(numbers)
            if self.medians:
                numbers = np.where(is_missing, np.array(self.medians, np.float32), numbers)
            columns.append(numbers[:, list(self.passed_on)])
            columns += [
                _calendar(numbers[:, position], has_time=position in self.times)
                for position in self.dates
            ]
            columns.append(is_missing[:, list(self.indicators)].astype(np.float32))
        columns += [table[code] for table, code in zip(self.tables, codes, strict=True)]
        return np.concatenate(columns, axis=1)

    def column_names(
        self, numbers: Sequence[str], texts: Sequence[Sequence[str]]
    ) -> tuple[str, ...]:
        """Returns the names of the training view's columns.

        Args:
            numbers: the names of the columns of numbers.
            texts: for each text, the names of the columns of its table.
        """
        names = [numbers[position] for position in self.passed_on]
        for position in self.dates:
            names += [f"{numbers[position]}, {part} of the year" for part in ("sine", "cosine")]
            names += [f"{numbers[position]} is a {day}" for day in WEEKDAYS]
            if position in self.times:
                names += [f"{numbers[position]}, {part} of the day" for part in ("sine", "cosine")]
        names += [f"{numbers[position]} is missing" for position in self.indicators]
        return (*names, *(name for columns in texts for name in columns))


def _calendar(days: NDArray[np.float32], *, has_time: bool) -> NDArray[np.float32]:
    """Season, weekday and time of days since 1970-01-01, (rows, 9) or (rows, 11)."""
    whole = np.floor(days)
    weekday = whole + np.float32(WEEKDAY_OF_DAY_0)
    weekday -= 7 * np.floor(weekday / np.float32(7))
    columns = [*_circle(days / np.float32(DAYS_PER_YEAR))]
    columns += [(weekday == day).astype(np.float32) for day in range(7)]
    if has_time:
        columns += _circle(days)
    return np.stack(columns, axis=1)


def _circle(turns: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sine and cosine of a number of turns, of which only the fraction counts."""
    angle = (turns - np.floor(turns)) * np.float32(TWO_PI)
    steps = np.float32(CIRCLE_STEPS)
    return np.round(np.sin(angle) * steps) / steps, np.round(np.cos(angle) * steps) / steps
