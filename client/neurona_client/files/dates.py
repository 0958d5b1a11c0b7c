"""Dates as tables have them: ISO 8601, and the forms of spreadsheets and of English text.

A date becomes a number, the days since 1970-01-01 00:00, with the time of day as a fraction; a
zone is converted to UTC. Whether "03/04/2024" is in April or in March is said by the other cells
of its column, else by the other columns of its table; where they do not say it, it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Literal, NamedTuple

from neurona_client.files.content import FileContentError
from neurona_client.files.numbers import (
    NumberEvidence,
    is_missing,
    is_number,
    number_formats,
)

DateOrder = Literal["day-month-year", "month-day-year"]
ORDERS: tuple[DateOrder, DateOrder] = ("day-month-year", "month-day-year")

_EPOCH = date(1970, 1, 1).toordinal()
_SECONDS_PER_DAY = 86400
_MAX_LENGTH = 48  # of a cell that may be a date
_LAST_YEAR_OF_2000S = 68  # of two digits, as POSIX reads them: 69 is 1969
_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
_NAME = r"(?P<name>[A-Za-z]{3,9})\.?"
_TIME = (
    r"(?:(?:[T ]|, )\s*(?P<hour>\d{1,2}):(?P<minute>\d\d)"
    r"(?::(?P<second>\d\d(?:[.,]\d{1,9})?))?\s?(?P<half>[AaPp]\.?[Mm]\.?)?"
    r"\s?(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?)?"
)
_FORMS = tuple(
    re.compile(form + _TIME, re.ASCII)
    for form in (
        r"(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})",
        r"(?P<year>\d{4})[-/](?P<month>\d{1,2})",
        r"(?P<day>\d{1,2})\. ?(?P<month>\d{1,2})\. ?(?P<year>\d{4}|\d\d)",
        r"(?P<first>\d{1,2})/(?P<second_number>\d{1,2})/(?P<year>\d{4}|\d\d)",
        r"(?P<first>\d{1,2})-(?P<second_number>\d{1,2})-(?P<year>\d{4})",
        r"(?P<day>\d{1,2})(?:st|nd|rd|th)?[-/ ]" + _NAME + r",?[-/ ](?P<year>\d{4}|\d\d)",
        _NAME + r" (?P<day>\d{1,2})(?:st|nd|rd|th)?,? (?P<year>\d{4})",
        _NAME + r"[- ](?P<year>\d{4})",
    )
)


class _Date(NamedTuple):
    """A cell that is a date: its days since 1970-01-01 in either order, None where impossible."""

    day_first: float | None
    month_first: float | None


def is_date(cell: str) -> bool:
    """Whether a cell is a date in any of the ways in which tables write them."""
    return _parse(cell) is not None


@dataclass
class DateEvidence:
    """What the cells of one column say about the order of day and month."""

    where: str
    """The column, for error messages, such as "column 'sold'"."""
    day_first: tuple[int, str] | None = None
    """Line and text of the first date that begins with the day."""
    month_first: tuple[int, str] | None = None
    """The same for the month."""
    has_time: bool = False
    """Whether a cell has a time of day other than midnight."""

    def add(self, line: int, cell: str) -> None:
        """Takes a cell into account; what is no date is ignored.

        Raises:
            FileContentError: another cell of the column contradicts it.
        """
        read = _parse(cell)
        if read is None:
            return
        days = read.day_first if read.day_first is not None else read.month_first
        self.has_time = self.has_time or days != int(days or 0)
        if read.month_first is None:
            self.day_first = self.day_first or (line, cell)
        elif read.day_first is None:
            self.month_first = self.month_first or (line, cell)
        if self.day_first is not None and self.month_first is not None:
            raise FileContentError(
                f"line {line}, {self.where}: day first and month first: {self.day_first[1]!r} in "
                f"line {self.day_first[0]} and {self.month_first[1]!r} in line "
                f"{self.month_first[0]} (expected one of the two)"
            )


@dataclass(frozen=True)
class DateFormat:
    """How the dates of a column are written: `parse` reads them."""

    order: DateOrder | None = None
    """Of day and month; None if no cell of the table says it."""

    def parse(self, cell: str) -> float:
        """Reads a date as days since 1970-01-01.

        Raises:
            FileContentError: the cell is missing, no date, or one of two dates.
        """
        read = _parse(cell)
        if read is None:
            if is_missing(cell):
                raise FileContentError(f"missing value ({cell!r})")
            raise FileContentError(f"{cell!r} is not a date (expected one such as 2024-03-31)")
        readings = [days for days in read if days is not None]
        if len(set(readings)) == 1:
            return readings[0]
        if self.order is not None:
            return readings[ORDERS.index(self.order)]
        (words, iso), (other_words, other_iso) = map(_describe, readings)
        raise FileContentError(
            f"{cell!r} may be {words} or {other_words}, and no other cell says which "
            f"(expected {iso} or {other_iso})"
        )


def common_order(columns: Iterable[DateEvidence]) -> DateOrder | None:
    """Returns the order of a table's columns; None if no cell says it, or they differ."""
    columns = list(columns)
    days = any(column.day_first for column in columns)
    months = any(column.month_first for column in columns)
    return None if days == months else "day-month-year" if days else "month-day-year"


def date_formats(
    columns: Iterable[DateEvidence], default: DateOrder | None = None
) -> list[DateFormat]:
    """Decides how the dates of each column of a table are written.

    Args:
        columns: with all cells added.
        default: of columns for which no cell of the table says it.

    Returns:
        The format of each column, in their order.
    """
    columns = list(columns)
    order = common_order(columns) or default
    return [
        DateFormat("day-month-year")
        if column.day_first
        else DateFormat("month-day-year")
        if column.month_first
        else DateFormat(order)
        for column in columns
    ]


@lru_cache(1 << 16)  # a cell is read for its kind, its order and its value
def _parse(cell: str) -> _Date | None:
    text = cell.strip()
    if len(text) > _MAX_LENGTH or not any(map(str.isdigit, text)):
        return None
    for form in _FORMS:
        match = form.fullmatch(text)
        if match is not None:
            return _read_match(match)
    return None


def _read_match(match: re.Match[str]) -> _Date | None:
    """Returns the date of a cell in one of the forms; None if there is no such day or time."""
    parts = match.groupdict()
    time = _time_of_day(parts)
    if time is None:
        return None
    year = int(parts["year"])
    if len(parts["year"]) == 2:
        year += 2000 if year <= _LAST_YEAR_OF_2000S else 1900
    if "first" in parts:
        first, second = int(parts["first"]), int(parts["second_number"])
        day_first, month_first = _days(year, second, first), _days(year, first, second)
    else:
        month = _month(parts["name"]) if "name" in parts else int(parts["month"])
        day_first = month_first = _days(year, month, int(parts.get("day") or 1))
    if day_first is None and month_first is None:
        return None
    return _Date(
        None if day_first is None else day_first + time,
        None if month_first is None else month_first + time,
    )


def _days(year: int, month: int, day: int) -> int | None:
    try:
        return date(year, month, day).toordinal() - _EPOCH
    except ValueError:  # such as 30 February
        return None


def _month(name: str) -> int:
    """Returns the number of an English month or of its abbreviation; 0 if there is none."""
    name = name.lower()
    for number, month in enumerate(_MONTHS, start=1):
        if name in (month, month[:3]) or (name == "sept" and number == 9):
            return number
    return 0


def _time_of_day(parts: dict[str, str | None]) -> float | None:
    """Returns the time as a fraction of a day, in UTC; None if there is no such time."""
    if parts["hour"] is None:
        return 0.0
    hour, minute = int(parts["hour"]), int(parts["minute"] or 0)
    second = float((parts["second"] or "0").replace(",", "."))
    if parts["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if parts["half"][0] in "pP" else 0)
    if hour > 23 or minute > 59 or second >= 60:
        return None
    zone = parts["zone"] or ""
    offset = 0
    if zone[:1] in ("+", "-") and zone:
        digits = zone[1:].replace(":", "")
        offset = int(digits[:2]) * 60 + int(digits[2:] or 0)
        offset = -offset if zone[0] == "-" else offset
    return (hour * 3600 + (minute - offset) * 60 + second) / _SECONDS_PER_DAY


def read_times(
    cells: Sequence[tuple[int, str]], where: str, default: DateOrder | None = None
) -> list[float]:
    """Reads a column by which rows can be put in order: of dates, or of numbers.

    Args:
        cells: line and text of each.
        where: the column, for error messages, such as "column 'day'".
        default: of day and month if no cell says it.

    Returns:
        Days since 1970-01-01, or the numbers.

    Raises:
        FileContentError: with the line of a cell that is missing or neither date nor number.
    """
    dates = DateEvidence(where)
    numbers = NumberEvidence(where)
    is_numeric = 2 * sum(is_number(cell) for _, cell in cells) > len(cells)
    for line, cell in cells:
        if is_numeric:
            numbers.add(line, cell)
        else:
            dates.add(line, cell)
    parse = (
        number_formats([numbers])[0].parse
        if is_numeric
        else date_formats([dates], default)[0].parse
    )
    times = []
    for line, cell in cells:
        try:
            times.append(parse(cell))
        except FileContentError as error:
            raise FileContentError(f"line {line}, {where}: {error}") from error
    return times


def format_day(days: float) -> str:
    """Returns the date of days since 1970-01-01, such as "2024-03-31"."""
    return _describe(days)[1]


def _describe(days: float) -> tuple[str, str]:
    """Returns a date in words and in ISO 8601, for a message."""
    day = date.fromordinal(int(days // 1) + _EPOCH)
    return f"{day.day} {_MONTHS[day.month - 1].title()} {day.year}", day.isoformat()
