"""Numbers as tables have them: with decimal points or commas, in groups of thousands, per cent.

Whether "1,234" is 1234 or 1.234 is said by the other cells of its column, else by the other
columns of its table; where they do not say it, it is an error. "12 %" is 12, if all of the column
is per cent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from neurona_client.files.content import FileContentError

DecimalMark = Literal[".", ","]

MISSING = frozenset(
    (
        *("", "na", "n/a", "nan", "null", "none", "?", "<na>", "nat", "-nan"),
        *("\\n", "."),  # databases write \N, SAS and Stata a point
        *("#n/a", "#na", "#div/0!", "#name?", "#null!", "#num!", "#ref!", "#value!"),  # Excel
    )
)
"""What programs write for a missing value, in lower case."""

_EXPONENT = r"(?:[eE][+-]?\d+)?"
_SPACES = " \u00a0\u2009\u202f'\u2019"  # that group thousands: spaces, and Swiss apostrophes
# Each without its sign, in the order in which they are tried.
_PLAIN = re.compile(rf"\d+{_EXPONENT}", re.ASCII)
# With its sign, a decimal number that has no three digits which may be thousands.
_SIMPLE = re.compile(r"[+-]?(?:\d+\.(?:\d\d?|\d{4,})|(?:0|\d{4,})\.\d+)", re.ASCII)
# Cells, each with the end of a line: without a value, integers, or such decimal numbers.
_SIMPLE_CELLS = re.compile(
    r"(?:(?:[+-]?(?:(?:0|\d{4,})(?:\.\d+)?|\d+(?:\.(?:\d\d?|\d{4,}))?))?\n)*+", re.ASCII
)
_INFINITE = re.compile(r"inf(?:inity)?", re.IGNORECASE)
_EITHER = re.compile(r"[1-9]\d{0,2}[.,]\d{3}", re.ASCII)  # thousands or decimals
_POINT = re.compile(
    rf"(?:\d+\.\d*|\.\d+){_EXPONENT}|[1-9]\d{{0,2}}(?:,\d{{3}})+\.\d*"
    r"|[1-9]\d{0,2}(?:,\d{3}){2,}|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d*)?",  # the last: in India
    re.ASCII,
)
_COMMA = re.compile(
    rf"(?:\d+,\d*|,\d+){_EXPONENT}|[1-9]\d{{0,2}}(?:\.\d{{3}})+,\d*|[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}",
    re.ASCII,
)
_SPACED = re.compile(rf"[1-9]\d{{0,2}}(?:([{_SPACES}])\d{{3}})(?:\1\d{{3}})*", re.ASCII)


class _Number(NamedTuple):
    """A cell that is a number."""

    text: str
    """Without the sign of per cent and without spaces between thousands."""
    mark: DecimalMark | Literal["either"] | None = None
    """The decimal mark that it has; "either" if its only mark may also group thousands."""
    is_percent: bool = False
    """Whether a sign of per cent follows it."""


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.strip().lower() in MISSING


def is_number(cell: str) -> bool:
    """Whether a cell is a number in any of the ways in which tables write them; not NaN."""
    return _parse(cell) is not None


def are_simple(cells: Sequence[str]) -> bool:
    """Whether each cell is empty or a number that Python's `float` reads, whatever the others are.

    Large tables mostly have such columns, and reading them cell by cell takes much longer.
    """
    text = "\n".join(cells)
    is_simple = text.count("\n") == len(cells) - 1  # no cell has an end of a line itself
    return is_simple and _SIMPLE_CELLS.fullmatch(f"{text}\n") is not None


@dataclass
class NumberEvidence:
    """What the cells of one column say about the way in which its numbers are written."""

    where: str
    """The column, for error messages, such as "column 'price'"."""
    point: tuple[int, str] | None = None
    """Line and text of the first number that has a decimal point."""
    comma: tuple[int, str] | None = None
    """The same for a decimal comma."""
    percent: tuple[int, str] | None = None
    """The same for a sign of per cent."""
    bare: tuple[int, str] | None = None
    """The same for a number without that sign."""

    def add(self, line: int, cell: str) -> None:
        """Takes a cell into account; what is no number is ignored.

        Raises:
            FileContentError: another cell of the column contradicts it.
        """
        number = _parse(cell)
        if number is None:
            return
        if number.mark == ".":
            self.point = self.point or (line, cell)
        elif number.mark == ",":
            self.comma = self.comma or (line, cell)
        if number.is_percent:
            self.percent = self.percent or (line, cell)
        else:
            self.bare = self.bare or (line, cell)
        for one, other, both in (
            (self.point, self.comma, "decimal points and decimal commas"),
            (self.percent, self.bare, "numbers with and without a sign of per cent"),
        ):
            if one is not None and other is not None:
                raise FileContentError(
                    f"line {line}, {self.where}: {both}: {one[1]!r} in line {one[0]} and "
                    f"{other[1]!r} in line {other[0]} (expected one of the two)"
                )


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a column are written: `parse` reads them."""

    mark: DecimalMark | None = None
    """The decimal mark; None if no cell of the table says it."""
    refuses_points: bool = False
    """Whether 1.234 is an error without a mark, as 1,234 is; else it is a decimal number."""

    def parse(self, cell: str) -> float:
        """Reads a number.

        Raises:
            FileContentError: the cell is missing, no number, or one of two numbers.
        """
        number = _parse(cell)
        if number is None:
            if is_missing(cell):
                raise FileContentError(f"missing value ({cell!r})")
            raise FileContentError(f"{cell!r} is not a number")
        text, mark = number.text, number.mark
        if mark == "either":
            if self.mark is None and ("," in text or self.refuses_points):
                whole, fraction = re.split("[.,]", text)
                raise FileContentError(
                    f"{cell!r} may be {whole}{fraction} or {whole}.{fraction}, and no other cell "
                    "says which (expected a decimal point and no separators of thousands)"
                )
            mark = self.mark or "."
        if mark == ",":
            text = text.replace(".", "").replace(",", ".")
        elif mark == ".":
            text = text.replace(",", "")
        return float(text)


def common_mark(columns: Iterable[NumberEvidence]) -> DecimalMark | None:
    """Returns the decimal mark of a table's columns; None if no cell has one, or they differ."""
    columns = list(columns)
    points = any(column.point for column in columns)
    commas = any(column.comma for column in columns)
    return None if points == commas else "." if points else ","


def number_formats(
    columns: Iterable[NumberEvidence], default: NumberFormat | None = None
) -> list[NumberFormat]:
    """Decides how the numbers of each column of a table are written.

    Args:
        columns: with all cells added.
        default: of columns for which no cell of the table says it.

    Returns:
        The format of each column, in their order.
    """
    columns = list(columns)
    mark = common_mark(columns)
    others = NumberFormat(mark) if mark else default or NumberFormat()
    return [
        NumberFormat(".") if column.point else NumberFormat(",") if column.comma else others
        for column in columns
    ]


def format_of_other_file(mark: str, separator: str) -> NumberFormat:
    """Returns how 1,234 and 1.234 are read in a file none of whose cells says it.

    A semicolon between cells, as in the locales with decimal commas, agrees with the comma of the
    file that a model was trained on, and a comma between cells with its point.

    Args:
        mark: the decimal mark of the file that the model was trained on, or empty.
        separator: between the cells of the other file.
    """
    if mark == ",":
        return NumberFormat(refuses_points=True) if separator == "," else NumberFormat(",")
    return NumberFormat(".") if mark and separator == "," else NumberFormat()


def _parse(cell: str) -> _Number | None:
    # Most cells of most tables are one of these two.
    if cell.isdigit() and cell.isascii():
        return _Number(cell)
    if _SIMPLE.fullmatch(cell):
        return _Number(cell, ".")
    text = cell.strip().replace("\u2212", "-")  # the sign that typesetters use
    is_percent = text.endswith("%")
    if is_percent:
        text = text[:-1].rstrip()
    sign = text[:1] if text[:1] in ("+", "-") else ""
    digits = text[len(sign) :]
    groups = _SPACED.match(digits)
    if groups is not None:
        rest = digits[groups.end() :]
        if not re.fullmatch(r"(?:[.,]\d*)?", rest, re.ASCII):
            return None
        digits = re.sub(f"[{_SPACES}]", "", groups[0]) + rest
        return _Number(sign + digits, rest[0] if rest else None, is_percent)  # type: ignore[arg-type]
    mark: DecimalMark | Literal["either"] | None
    if _PLAIN.fullmatch(digits) or _INFINITE.fullmatch(digits):
        mark = None
    elif _EITHER.fullmatch(digits):
        mark = "either"
    elif _POINT.fullmatch(digits):
        mark = "."
    elif _COMMA.fullmatch(digits):
        mark = ","
    else:
        return None
    return _Number(sign + digits, mark, is_percent)
