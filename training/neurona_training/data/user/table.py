"""A user's table: columns by name, each of numbers or of text, and errors that say where.

The client reads tables by the same functions, so that a model is asked with the values that it
was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.content import FileContentError
from neurona_client.files.numbers import (
    NumberEvidence,
    common_mark,
    is_missing,
    is_number,
    number_formats,
)
from neurona_client.files.tables import Table, read_table
from neurona_training.errors import DataError

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class UserTable:
    """Cells of a user's table as text, and where they are from.

    Args:
        path: of the file.
        table: its content.
    """

    path: Path
    table: Table
    _evidence_by_name: dict[str, NumberEvidence] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the order of the file."""
        return list(self.table.columns)

    def require_column(self, name: str, flag: str) -> None:
        """Checks that a column exists.

        Raises:
            DataError: no such column; names the command line's flag that asked for it.
        """
        if name not in self.table.columns:
            raise DataError(
                f"{self.path}: no column {name!r} ({flag}); available: {', '.join(self.names)}"
            )

    def is_numeric(self, name: str) -> bool:
        """Whether most cells are numbers, so that one typing error does not hide the others."""
        cells = self.table.columns[name]
        return 2 * sum(map(is_number, cells)) > len(cells)

    def is_percentage(self, name: str) -> bool:
        """Whether most cells have a sign of per cent."""
        cells = self.table.columns[name]
        return 2 * sum(cell.endswith("%") for cell in cells) > len(cells)

    def numbers(self, names: Sequence[str], beside: Sequence[str] = ()) -> NDArray[np.float32]:
        """Returns columns as float32 of shape (rows, columns).

        Args:
            names: of columns that are read together: the decimal mark of one of them decides
                where another's may be a separator of thousands.
            beside: further columns whose marks count.

        Raises:
            DataError: with the line of the first cell that is missing, no finite number, or
                written unlike the others.
        """
        values = np.zeros((len(self), len(names)), np.float32)
        formats = number_formats(map(self._evidence, [*names, *beside]))
        for column, (name, number_format) in enumerate(zip(names, formats, strict=False)):
            for row, cell in enumerate(self.table.columns[name]):
                try:
                    number = number_format.parse(cell)
                except FileContentError as error:
                    raise DataError(f"{self._location(row, name)}: {error}") from error
                if not abs(number) <= _FLOAT32_MAX:
                    raise DataError(
                        f"{self._location(row, name)}: {cell!r} is not finite in float32"
                    )
                values[row, column] = number
        return values

    def decimal_mark(self, names: Sequence[str]) -> str:
        """Returns the decimal mark of these columns; empty if it differs or no cell has one.

        Raises:
            DataError: with the line of a cell that is written unlike others of its column.
        """
        return common_mark(map(self._evidence, names)) or ""

    def texts(self, name: str) -> list[str]:
        """Returns a column as text.

        Raises:
            DataError: with the line of the first cell that has no value.
        """
        cells = self.table.columns[name]
        for row, cell in enumerate(cells):
            if is_missing(cell):
                raise DataError(f"{self._location(row, name)}: missing value ({cell!r})")
        return cells

    def unit_of(self, name: str) -> str:
        """The text beside the number of most cells, such as "kg" or "€"; empty if there is none."""
        return _common_unit(self.table.columns[name])

    def _evidence(self, name: str) -> NumberEvidence:
        if name not in self._evidence_by_name:
            try:
                self._evidence_by_name[name] = self.table.number_evidence(name)
            except FileContentError as error:
                raise DataError(f"{self.path} {error}") from error
        return self._evidence_by_name[name]

    def _location(self, row: int, column: str) -> str:
        return f"{self.path} line {self.table.lines[row]}, column {column!r}"


def read_user_table(path: Path) -> UserTable:
    """Reads a CSV or TSV file whose first row has the column names.

    Raises:
        DataError: the file is no such table; with the line that is wrong.
    """
    try:
        return UserTable(path, read_table(path.read_bytes()))
    except FileContentError as error:
        separator = " " if str(error).startswith("line ") else ": "
        raise DataError(f"{path}{separator}{error}") from error
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror}") from error


def _common_unit(cells: Iterable[str]) -> str:
    units: dict[str, int] = {}
    count = 0
    for cell in cells:
        count += 1
        unit = cell.strip("+-0123456789., \u00a0\u202f'\u2019")
        is_code = unit.isalnum() and cell.startswith(unit)  # such as "B12"
        is_beside = cell.startswith(unit) or cell.endswith(unit)
        if unit and is_beside and not is_code and is_number(cell.replace(unit, "", 1)):
            units[unit] = units.get(unit, 0) + 1
    unit = max(units, key=units.__getitem__, default="")
    return unit if 2 * units.get(unit, 0) > count else ""
