"""Rows of a series in the order of time, by a column of dates or numbers.

    ordered = sort_by_time(UserData(Path("prices.csv"), series="close", time="day"), table)

Each time must be there once. Missing times, as of weekends, are no error: they are counted, for the
person who started the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.dates import format_day
from neurona_training.data.user.spec import UserData
from neurona_training.data.user.table import UserTable
from neurona_training.errors import DataError

_GAP = 1.5  # of the usual step; months and years differ by less


@dataclass(frozen=True)
class OrderedTable:
    """A table whose rows follow each other in time.

    Args:
        table: the rows in that order.
        column: by which they were sorted; empty if they are in the order of the file.
        date_order: of day and month in that column; empty if it does not say.
        notes: a line about the times.
    """

    table: UserTable
    column: str = ""
    date_order: str = ""
    notes: tuple[str, ...] = ()


def sort_by_time(user_data: UserData, table: UserTable) -> OrderedTable:
    """Sorts rows by `UserData.time`, or by the only column of dates.

    Raises:
        DataError: no such column, a cell without a time, or a time that is there twice.
    """
    column = user_data.time
    if column is None:
        dates = table.columns_of_dates([str(user_data.series), *user_data.ignored])
        if len(dates) != 1:
            return OrderedTable(table)
        (column,) = dates
    table.require_column(column, "--time")
    times = table.moments(column, default=user_data.date_order)
    order = np.argsort(times, kind="stable")
    _check_duplicates(user_data, table, column, times, order)
    is_date = table.kind(column) == "dates"
    note = _describe_steps(times[order], column, is_date=is_date)
    if (np.diff(order) < 0).any():
        note += "; rows sorted"
    date_order = (table.date_order([column]) or user_data.date_order or "") if is_date else ""
    return OrderedTable(table.select(order.tolist()), column, date_order, (note,))


def _check_duplicates(
    user_data: UserData,
    table: UserTable,
    column: str,
    times: NDArray[np.float64],
    order: NDArray[np.int64],
) -> None:
    same = np.flatnonzero(np.diff(times[order]) == 0)
    if not len(same):
        return
    first, second = sorted((int(order[same[0]]), int(order[same[0] + 1])))
    advice = "" if user_data.time else f"; --ignore {column!r} takes the order of the file"
    raise DataError(
        f"{table.location(second, column)}: {table.table.columns[column][second]!r} is the time of "
        f"line {table.table.lines[first]}, too (expected one series, each time once{advice})"
    )


def _describe_steps(times: NDArray[np.float64], column: str, *, is_date: bool) -> str:
    """Describes the times and how many steps between them are longer than usual."""
    ends = [format_day(time) if is_date else f"{time:g}" for time in times[[0, -1]]]
    steps = np.diff(times)
    if not len(steps):
        return f"in the order of {column!r}"
    usual = float(np.median(steps))
    unit = " days" if is_date else ""
    text = f"in the order of {column!r}, {ends[0]} to {ends[1]}, usual step {usual:g}{unit}"
    gaps = np.flatnonzero(steps > _GAP * usual)
    if len(gaps):
        longest = int(gaps[steps[gaps].argmax()])
        start = format_day(times[longest]) if is_date else f"{times[longest]:g}"
        text += (
            f"; {len(gaps)} of {len(steps)} steps are longer, up to {steps[longest]:g}{unit} after "
            f"{start}"
        )
    return text
