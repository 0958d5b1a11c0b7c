"""A user's CSV file: columns by name, each of numbers or of texts, and errors that say where."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_training.errors import DataError

_LARGEST = float(np.finfo(np.float32).max)
_SEPARATORS = ",;\t"
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")  # as programs write an absent value


@dataclass(frozen=True)
class Table:
    """columns: by name, every cell as text.  lines: where each row stands in the file."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, flag: str) -> list[str]:
        """Raises DataError, for a user who has named the column by `flag`."""
        if name not in self.columns:
            raise DataError(
                f"{self.path}: no column {name!r} ({flag}); there are {', '.join(self.columns)}"
            )
        return self.columns[name]

    def is_numbers(self, name: str) -> bool:
        """By most of its cells, so that one slip among numbers is found and does not hide."""
        cells = self.columns[name]
        return 2 * sum(_number(cell) is not None for cell in cells) > len(cells)

    def numbers(self, name: str) -> NDArray[np.float32]:
        """Raises DataError with the line of the first cell that is no finite number."""
        values = np.zeros(len(self), np.float32)
        for row, cell in enumerate(self.texts(name)):
            number = _number(cell)
            if number is None:
                raise DataError(f"{self._where(row, name)}: {cell!r} is not a number")
            if not abs(number) <= _LARGEST:
                raise DataError(f"{self._where(row, name)}: {cell!r} is not finite in float32")
            values[row] = number
        return values

    def texts(self, name: str) -> list[str]:
        """Raises DataError with the line of the first cell that has nothing in it."""
        cells = self.columns[name]
        for row, cell in enumerate(cells):
            if cell.lower() in _MISSING:
                raise DataError(f"{self._where(row, name)}: the value is missing ({cell!r})")
        return cells

    def _where(self, row: int, column: str) -> str:
        return f"{self.path} line {self.lines[row]}, column {column!r}"


def read(path: Path) -> Table:
    """The first line names the columns; separated by comma, semicolon or tab.

    Raises DataError for a file that is no such table: with the line that is not as long as
    the first one.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # sig: as Excel writes it
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(_SEPARATORS, key=first.count), strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append([cell.strip() for cell in cells])
                    lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} line {len(lines) + 1}: no CSV in UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(rows) < 2:
        raise DataError(f"{path}: needs a line with the names of the columns, and rows below it")
    names, body = rows[0], rows[1:]
    _check_names(path, names)
    for line, row in zip(lines[1:], body, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"{path} line {line}: {len(row)} cells; the first line has {len(names)}"
            )
    columns = {
        name: list(cells) for name, cells in zip(names, zip(*body, strict=True), strict=True)
    }
    return Table(path, columns, lines[1:])


def _check_names(path: Path, names: Sequence[str]) -> None:
    for place, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{path} line 1: column {place} has no name")
        if names.count(name) > 1:
            raise DataError(f"{path} line 1: {names.count(name)} columns are called {name!r}")
    if all(_number(name) is not None for name in names):
        raise DataError(f"{path} line 1: numbers; it must have the names of the columns")


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return None if math.isnan(number) else number
