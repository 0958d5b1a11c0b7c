"""A user's CSV file: columns by name, each of numbers or of text, and errors that say where."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_training.errors import DataError

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SEPARATORS = ",;\t"
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")  # as programs write a missing value


@dataclass(frozen=True)
class Table:
    """Cells of a CSV file as text.

    columns: every cell of each column, by its name.
    lines: the line of each row in the file.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def require_column(self, name: str, flag: str) -> None:
        """Checks that a column exists.

        Raises:
            DataError: no such column; names the command line's flag that asked for it.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path}: no column {name!r} ({flag}); available: {', '.join(self.columns)}"
            )

    def is_numeric(self, name: str) -> bool:
        """Whether most cells are numbers, so that one typing error does not hide the others."""
        cells = self.columns[name]
        return 2 * sum(_parse_number(cell) is not None for cell in cells) > len(cells)

    def numbers(self, name: str) -> NDArray[np.float32]:
        """Returns a column as float32 of shape (rows,).

        Raises:
            DataError: with the line of the first cell that is missing or no finite number.
        """
        values = np.zeros(len(self), np.float32)
        for row, cell in enumerate(self.texts(name)):
            number = _parse_number(cell)
            if number is None:
                raise DataError(f"{self._location(row, name)}: {cell!r} is not a number")
            if not abs(number) <= _FLOAT32_MAX:
                raise DataError(f"{self._location(row, name)}: {cell!r} is not finite in float32")
            values[row] = number
        return values

    def texts(self, name: str) -> list[str]:
        """Returns a column as text.

        Raises:
            DataError: with the line of the first cell that has no value.
        """
        cells = self.columns[name]
        for row, cell in enumerate(cells):
            if cell.lower() in _MISSING:
                raise DataError(f"{self._location(row, name)}: missing value ({cell!r})")
        return cells

    def _location(self, row: int, column: str) -> str:
        return f"{self.path} line {self.lines[row]}, column {column!r}"


def read_table(path: Path) -> Table:
    """Reads a CSV file whose first line has the column names.

    Columns are separated by comma, semicolon or tab; the encoding is UTF-8.

    Raises:
        DataError: the file is no such table; with the line that has another number of cells.
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
        raise DataError(f"{path} line {len(lines) + 1}: not CSV in UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror}") from error
    if len(rows) < 2:
        raise DataError(f"{path}: no data (expected a line of column names and rows below it)")
    names, body = rows[0], rows[1:]
    _check_names(path, names)
    for line, row in zip(lines[1:], body, strict=True):
        if len(row) != len(names):
            raise DataError(f"{path} line {line}: {len(row)} cells (expected {len(names)})")
    columns = {
        name: list(cells) for name, cells in zip(names, zip(*body, strict=True), strict=True)
    }
    return Table(path, columns, lines[1:])


def _check_names(path: Path, names: Sequence[str]) -> None:
    for position, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{path} line 1: column {position} has no name")
        if names.count(name) > 1:
            raise DataError(f"{path} line 1: duplicate column {name!r}")
    if all(_parse_number(name) is not None for name in names):
        raise DataError(f"{path} line 1: numbers only (expected the names of the columns)")


def _parse_number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return None if math.isnan(number) else number
