"""A user's table: columns by name, each of numbers, dates or text, and errors that say where.

The client reads tables by the same functions, so that a model is asked with the values that it
was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.content import FileContentError
from neurona_client.files.dates import (
    DateEvidence,
    DateFormat,
    DateOrder,
    common_order,
    date_formats,
    is_date,
    read_times,
)
from neurona_client.files.numbers import (
    NumberEvidence,
    NumberFormat,
    are_simple,
    common_mark,
    is_missing,
    is_number,
    number_formats,
)
from neurona_client.files.tables import Table, is_row_numbers, read_table
from neurona_training.errors import DataError

ColumnKind = Literal["numbers", "dates", "text", "nothing"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# 1.000 may be a thousand.
_INTEGER = re.compile(r"([+-]?)0*(\d+)(?:\.(?:0|00|0{4,}))?", re.ASCII)
_IDENTIFIER = re.compile(r"(?:^|[\W_])[iI][dD]$|[a-z]I[dD]$")  # user_id, PassengerId; not "paid"
_ORDER_ADVICE = "; --date-order says it"
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}


@dataclass(frozen=True)
class UserTable:
    """Cells of a user's table as text, and where they are from.

    Args:
        path: of the file.
        table: the rows that are used.
        whole: all rows of the file, which say how its numbers and dates are written.
    """

    path: Path
    table: Table
    whole: Table
    _evidence_by_name: dict[str, NumberEvidence] = field(default_factory=dict, repr=False)
    _date_evidence_by_name: dict[str, DateEvidence] = field(default_factory=dict, repr=False)
    _kind_by_name: dict[str, ColumnKind] = field(default_factory=dict, repr=False)
    _is_simple_by_name: dict[str, bool] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the order of the file."""
        return list(self.table.columns)

    def select(self, rows: NDArray[Any] | Sequence[int]) -> UserTable:
        """Returns the table with these rows, in this order."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.table.columns.items()}
        lines = [self.table.lines[row] for row in rows]
        table = Table(
            columns, lines, self.table.index_columns, self.table.separator, self.table.encoding
        )
        return replace(self, table=table)

    def require_column(self, name: str, flag: str) -> None:
        """Checks that a column exists.

        Raises:
            DataError: no such column; names the command line's flag that asked for it.
        """
        if name not in self.table.columns:
            raise DataError(
                f"{self.path}: no column {name!r} ({flag}); available: {', '.join(self.names)}"
            )

    def kind(self, name: str) -> ColumnKind:
        """What most cells with a value are, so that one typing error does not hide the others."""
        if name not in self._kind_by_name:
            cells = self.whole.columns[name]
            if self._is_simple(name):
                self._kind_by_name[name] = "numbers" if any(cells) else "nothing"
                return self._kind_by_name[name]
            cells = [cell for cell in cells if not is_missing(cell)]
            kind: ColumnKind = "text" if cells else "nothing"
            if cells and 2 * sum(map(is_number, cells)) > len(cells):
                kind = "numbers"
            elif cells and 2 * sum(map(is_date, cells)) > len(cells):
                kind = "dates"
            self._kind_by_name[name] = kind
        return self._kind_by_name[name]

    def columns_of_dates(self, ignored: Sequence[str]) -> list[str]:
        """The names of the columns of dates, without those that are ignored."""
        return [one for one in self.names if one not in ignored and self.kind(one) == "dates"]

    def is_numeric(self, name: str) -> bool:
        """Whether most cells with a value are numbers."""
        return self.kind(name) == "numbers"

    def is_percentage(self, name: str) -> bool:
        """Whether most cells have a sign of per cent."""
        cells = self.table.columns[name]
        return 2 * sum(cell.endswith("%") for cell in cells) > len(cells)

    def is_row_number(self, name: str) -> bool:
        """Whether the cells count the rows of the file, from 0 or 1."""
        cells = self.whole.columns[name]
        return len(cells) > 1 and is_row_numbers(cells)

    def is_identifier(self, name: str) -> bool:
        """Whether a column is named as an id, and each row has another integer."""
        cells = self.whole.columns[name]
        is_named = _IDENTIFIER.search(name) is not None
        return is_named and len(set(cells)) == len(cells) > 1 and all(map(str.isdecimal, cells))

    def is_missing(self, name: str) -> NDArray[np.bool_]:
        """Which rows have no value in this column."""
        cells = self.table.columns[name]
        if self._is_simple(name):
            return np.array([not cell for cell in cells], np.bool_)
        return np.array([is_missing(cell) for cell in cells], np.bool_)

    def numbers(
        self,
        names: Sequence[str],
        beside: Sequence[str] = (),
        *,
        default: NumberFormat | None = None,
        allow_missing: bool = False,
    ) -> NDArray[np.float64]:
        """Returns columns as float64 of shape (rows, columns), finite in float32.

        Args:
            names: of columns that are read together: the decimal mark of one of them decides
                where another's may be a separator of thousands.
            beside: further columns whose marks count.
            default: of columns for which no cell of the file says how they are written.
            allow_missing: whether a missing cell is NaN.

        Raises:
            DataError: with the line of the first cell that is missing, no finite number, or
                written unlike the others.
        """
        formats = number_formats(map(self._evidence, [*names, *beside]), default)
        return self._parse(names, [one.parse for one in formats], allow_missing=allow_missing)

    def dates(
        self,
        names: Sequence[str],
        *,
        default: DateOrder | None = None,
        allow_missing: bool = False,
    ) -> NDArray[np.float64]:
        """Returns columns as days since 1970-01-01 00:00 UTC, (rows, columns).

        Args:
            names: of columns that are read together, as `numbers` does.
            default: of day and month in columns for which no cell of the file says it.
            allow_missing: whether a missing cell is NaN.

        Raises:
            DataError: with the line of the first cell that is missing, no date, or one of two.
        """
        formats = date_formats(map(self._date_evidence, names), default)
        parsers = [self._advise_order(one) for one in formats]
        return self._parse(names, parsers, allow_missing=allow_missing)

    def moments(self, name: str, *, default: DateOrder | None = None) -> NDArray[np.float64]:
        """Returns a column of dates or numbers by which rows can be put in order, (rows,).

        Raises:
            DataError: with the line of a cell that is missing or neither date nor number.
        """
        cells = list(zip(self.table.lines, self.table.columns[name], strict=True))
        try:
            return np.array(read_times(cells, f"column {name!r}", default))
        except FileContentError as error:
            advice = _ORDER_ADVICE if " may be " in str(error) else ""
            raise DataError(f"{self.path} {error}{advice}") from error

    def decimal_mark(self, names: Sequence[str]) -> str:
        """Returns the decimal mark of these columns; empty if it differs or no cell has one.

        Raises:
            DataError: with the line of a cell that is written unlike others of its column.
        """
        return common_mark(map(self._evidence, names)) or ""

    def date_order(self, names: Sequence[str]) -> DateOrder | None:
        """Returns the order of day and month of these columns; None if no cell says it.

        Raises:
            DataError: with the line of a cell that is written unlike others of its column.
        """
        return common_order(map(self._date_evidence, names))

    def has_times(self, name: str) -> bool:
        """Whether a date of this column has a time of day."""
        return self._date_evidence(name).has_time

    def texts(self, name: str, *, allow_missing: bool = False) -> list[str]:
        """Returns a column as text; with `allow_missing` a missing cell is empty.

        Raises:
            DataError: with the line of the first cell that has no value.
        """
        cells = self.table.columns[name]
        for row, cell in enumerate(cells):
            if is_missing(cell) and not allow_missing:
                raise DataError(f"{self.location(row, name)}: missing value ({cell!r})")
        return ["" if is_missing(cell) else cell for cell in cells]

    def names_of_rows(self, name: str) -> list[str]:
        """Returns a column by which rows belong together: texts, and numbers as integers.

        A program that read integers and missing values writes 1 as 1.0; both are the same class,
        or the same patient.

        Raises:
            DataError: with the line of the first cell that has no value.
        """
        texts = self.texts(name)
        if self.kind(name) != "numbers":
            return texts
        return [_as_integer(text) for text in texts]

    def unit_of(self, name: str) -> str:
        """The text beside the number of most cells, such as "kg" or "€"; empty if there is none."""
        return _common_unit(self.table.columns[name])

    def describe_form(self, marked: Sequence[str], dates: Sequence[str]) -> str:
        """Describes how the file is written, for the person who started the run.

        Args:
            marked: columns of numbers.
            dates: columns of dates.
        """
        mark = common_mark(map(self._evidence, marked))
        order = self.date_order(dates)
        return ", ".join(
            [
                f"{_SEPARATORS.get(self.table.separator, self.table.separator)} between cells",
                *([f"decimal {'comma' if mark == ',' else 'point'}"] if mark else []),
                *([f"dates as {order}"] if order else []),
                self.table.encoding,
            ]
        )

    def _parse(
        self,
        names: Sequence[str],
        parsers: Sequence[Callable[[str], float]],
        *,
        allow_missing: bool = False,
    ) -> NDArray[np.float64]:
        values = np.zeros((len(self), len(names)))
        for column, (name, parse) in enumerate(zip(names, parsers, strict=False)):
            simple = self._parse_simple(name, allow_missing=allow_missing)
            if simple is not None:
                values[:, column] = simple
                continue
            for row, cell in enumerate(self.table.columns[name]):
                if allow_missing and is_missing(cell):
                    values[row, column] = np.nan
                    continue
                try:
                    number = parse(cell)
                except FileContentError as error:
                    raise DataError(f"{self.location(row, name)}: {error}") from error
                if not abs(number) <= _FLOAT32_MAX:
                    raise DataError(
                        f"{self.location(row, name)}: {cell!r} is not finite in float32"
                    )
                values[row, column] = number
        return values

    def _parse_simple(self, name: str, *, allow_missing: bool) -> NDArray[np.float64] | None:
        """Reads a column of simple numbers; None if it is another, or has an error."""
        if not self._is_simple(name):
            return None
        cells = self.table.columns[name]
        filler = "nan" if allow_missing else "inf"
        numbers = np.fromiter((float(cell or filler) for cell in cells), np.float64, len(cells))
        has_error = (np.abs(numbers) > _FLOAT32_MAX).any()
        return None if has_error else numbers

    def _is_simple(self, name: str) -> bool:
        if name not in self._is_simple_by_name:
            self._is_simple_by_name[name] = are_simple(self.whole.columns[name])
        return self._is_simple_by_name[name]

    def _advise_order(self, date_format: DateFormat) -> Callable[[str], float]:
        """Reads dates; the error for one that may be two names the option that decides."""

        def parse(cell: str) -> float:
            try:
                return date_format.parse(cell)
            except FileContentError as error:
                advice = _ORDER_ADVICE if " may be " in str(error) else ""
                raise FileContentError(f"{error}{advice}") from error

        return parse

    def _evidence(self, name: str) -> NumberEvidence:
        if name not in self._evidence_by_name:
            try:
                self._evidence_by_name[name] = (
                    self._simple_evidence(name)
                    if self._is_simple(name)
                    else self.whole.number_evidence(name)
                )
            except FileContentError as error:
                raise DataError(f"{self.path} {error}") from error
        return self._evidence_by_name[name]

    def _simple_evidence(self, name: str) -> NumberEvidence:
        """What simple numbers say: the first, and the first with a decimal point."""
        evidence = NumberEvidence(f"column {name!r}")
        for line, cell in zip(self.whole.lines, self.whole.columns[name], strict=True):
            if cell and (evidence.bare is None or "." in cell):
                evidence.add(line, cell)
            if evidence.point is not None:
                break
        return evidence

    def _date_evidence(self, name: str) -> DateEvidence:
        if name not in self._date_evidence_by_name:
            evidence = DateEvidence(f"column {name!r}")
            for line, cell in zip(self.whole.lines, self.whole.columns[name], strict=True):
                try:
                    evidence.add(line, cell)
                except FileContentError as error:
                    raise DataError(f"{self.path} {error}") from error
            self._date_evidence_by_name[name] = evidence
        return self._date_evidence_by_name[name]

    def location(self, row: int, column: str) -> str:
        """Names a cell for an error message."""
        return f"{self.path} line {self.table.lines[row]}, column {column!r}"


def read_user_table(path: Path) -> UserTable:
    """Reads a CSV or TSV file whose first row has the column names.

    Raises:
        DataError: the file is no such table; with the line that is wrong.
    """
    try:
        table = read_table(path.read_bytes())
        return UserTable(path, table, whole=table)
    except FileContentError as error:
        separator = " " if str(error).startswith("line ") else ": "
        raise DataError(f"{path}{separator}{error}") from error
    except OSError as error:
        raise DataError(f"{path}: unreadable: {error.strerror}") from error


def _as_integer(cell: str) -> str:
    match = _INTEGER.fullmatch(cell)
    if match is None:
        return cell
    return f"-{match[2]}" if match[1] == "-" and match[2] != "0" else match[2]


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
