"""A user's CSV file: one or more columns predicted from the others of their row.

Columns of numbers and of dates are one input, `features`; each column of text is an input of its
own, to which callers send strings. A network learns from numbers alone: missing values are filled,
dates become season and weekday, text is one-hot encoded, and the exported file does the same
(`encoding.ColumnEncoding`). Everything that is learned from the columns, such as medians and
categories, is of the training rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_client.files.numbers import format_of_other_file
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import (
    RowIndices,
    Target,
    divide_rows,
    encode_classes,
    infer_task,
)
from neurona_training.data.user.categories import (
    MAX_CATEGORIES,
    TextColumn,
    describe_text,
    encode_text,
)
from neurona_training.data.user.encoding import ColumnEncoding
from neurona_training.data.user.parts import PartsOfFiles, read_parts
from neurona_training.data.user.rounding import describe_rounding
from neurona_training.data.user.spec import LoadedUserData, UserData
from neurona_training.data.user.table import UserTable
from neurona_training.errors import DataError

Arrays = list[NDArray[Any]]  # one for each input: float32, or int64 codes of text

_PANDAS_INDEX = "Unnamed: 0"  # what pandas calls a nameless first column
# Columns that may count without being an index: times, and the argument of a function.
_COUNTING_NAMES = {
    *("t", "x", "time", "second", "minute", "hour", "day", "week", "month", "quarter", "year"),
    *("step", "trial", "age"),
}


@dataclass(frozen=True)
class _Columns:
    """The columns from which the target is predicted.

    Args:
        numbers: columns of numbers and of dates, in the order of the file.
        dates: those that are dates.
        texts: columns of text.
        omitted: dates by which the rows are divided: later ones are beyond all that the network
            has seen, so only their season, weekday and time are used.
        notes: what was left out, and why.
    """

    numbers: list[str]
    dates: list[str]
    texts: list[str]
    omitted: list[str]
    notes: list[str]

    @property
    def names(self) -> list[str]:
        return [*self.numbers, *self.texts]

    @property
    def plain(self) -> list[str]:
        """Columns of numbers that are no dates."""
        dates = set(self.dates)
        return [name for name in self.numbers if name not in dates]


def load_rows(user_data: UserData, table: UserTable) -> LoadedUserData:
    """Makes one row of a data set of each row of the table.

    Raises:
        DataError: with the column, and the line if one cell is wrong.
    """
    if not user_data.targets:
        raise DataError(
            f"{user_data.path}: --target or --series must name a column "
            f"(available: {', '.join(table.names)})"
        )
    for name in user_data.targets:
        table.require_column(name, "--target")
    for name in user_data.ignored:
        table.require_column(name, "--ignore")
    for name in user_data.kept:
        table.require_column(name, "--keep")
    parts = read_parts(user_data, table)
    columns = _choose_columns(user_data, parts)
    for other in parts.tables[1:]:
        for name in columns.names:
            other.require_column(name, f"an input in {table.path.name}")
    where = f"{user_data.path}, column {', '.join(map(repr, user_data.targets))}"
    target = _read_target(user_data, parts, columns, where)
    rows = divide_rows(
        target, where, own_parts=parts.own_parts, groups=parts.groups, times=parts.times
    )
    fills = _fills(user_data, parts, columns)
    texts = {
        name: [text for one in parts.tables for text in one.texts(name, allow_missing=fills)]
        for name in columns.texts
    }
    text_columns = [
        encode_text(name, [cells[row] for row in rows[0]], fills=fills)
        for name, cells in texts.items()
    ]
    described: list[Input] = []
    arrays: Arrays = []
    if columns.numbers:
        numbers = _read_numbers(user_data, parts, columns, fills=fills)
        arrays.append(numbers)
        described.append(_features_input(user_data, table, columns, fills=fills))
    for column in text_columns:
        codes = column.codes(texts[column.name])
        names = [one.name for one in described]
        has_unknown = bool((codes == len(column.categories)).any())
        described.append(describe_text(column, names, fills=fills, has_unknown=has_unknown))
        arrays.append(codes)
    encoding = _make_encoding(user_data, table, columns, arrays, rows[0], text_columns, fills)
    data = _make_dataset(user_data, target, described, arrays, rows, parts)
    notes = _notes(user_data, parts, columns, texts, arrays, fills=fills)
    if encoding.is_identity:
        return LoadedUserData(data, data, notes=notes)
    encoded_names = encoding.column_names(columns.numbers, [one.columns for one in text_columns])
    features = Input(
        name="features",
        axes=("batch", "feature"),
        description=f"in this order: {', '.join(encoded_names)}",
        unit="as in the file",
        columns=encoded_names,
    )
    encoded: Arrays = [encoding.encode(arrays)]
    return LoadedUserData(
        training_view=_make_dataset(user_data, target, [features], encoded, rows, parts),
        caller_view=data,
        encoding=replace(encoding, names=encoded_names),
        notes=notes,
    )


def _choose_columns(user_data: UserData, parts: PartsOfFiles) -> _Columns:
    """Decides which columns are inputs, and what each of them is."""
    table = parts.tables[0]
    excluded = {*user_data.targets, *user_data.ignored, *parts.columns}
    columns = _Columns([], [], [], [], [])
    with_values = sum(table.kind(name) != "nothing" for name in table.names)
    left_out = [f"the nameless column {one}" for one in table.table.index_columns]
    for name in table.names:
        kind = table.kind(name)
        is_time = name == user_data.time
        if name in excluded and not (is_time and kind == "dates"):
            continue
        reason = ""
        if name not in user_data.kept and not is_time:
            reason = _reason_to_leave_out(table, name, is_alone=with_values <= 2)
        if reason:
            left_out.append(f"{name!r} ({reason})")
        elif kind == "text":
            columns.texts.append(name)
        else:
            columns.numbers.append(name)
            columns.dates.extend([name] if kind == "dates" else [])
            columns.omitted.extend([name] if is_time else [])
    if left_out:
        columns.notes.append(f"left out: {', '.join(left_out)}")
    if not columns.names:
        predicted = ", ".join(map(repr, user_data.targets))
        detail = f"; {columns.notes[0]}" if left_out else ""
        raise DataError(f"{user_data.path}: no column is left to predict {predicted} from{detail}")
    return columns


def _reason_to_leave_out(table: UserTable, name: str, *, is_alone: bool) -> str:
    """Why a column cannot be learned from; empty if it can.

    Args:
        table: that has the column.
        name: of the column.
        is_alone: whether no other column has values, but one.

    Raises:
        DataError: the column would be numbers if it were not for their unit.
    """
    kind = table.kind(name)
    if kind == "nothing":
        return "no values"
    if name == _PANDAS_INDEX and kind == "dates":
        return "an index"
    counts = name.lower() not in _COUNTING_NAMES and table.is_row_number(name)
    if (counts or table.is_identifier(name)) and not is_alone:
        reason = "counts the rows" if counts else "another number in each row"
        return f"{reason}; --keep {name!r} keeps it"
    if kind != "text":
        return ""
    different = len(set(table.whole.columns[name]))
    limit = min(MAX_CATEGORIES, max(2, len(table.whole) // 2))
    unit = table.unit_of(name)
    if different > limit and unit:
        raise DataError(
            f"{table.path}, column {name!r}: {different} different texts in {len(table.whole)} "
            f"rows (expected at most {limit}); numbers with the unit {unit!r} are text, without "
            f"it numbers; --ignore {name!r} leaves it out"
        )
    if 2 * different > len(table.whole) and different > 2:
        return f"{different} different texts in {len(table.whole)} rows"
    return ""


def _read_target(user_data: UserData, parts: PartsOfFiles, columns: _Columns, where: str) -> Target:
    table, task = parts.tables[0], user_data.task
    beside = columns.plain
    kinds = {name: table.kind(name) for name in user_data.targets}
    if len(kinds) > 1 and (task == "classification" or set(kinds.values()) != {"numbers"}):
        name = next((one for one, kind in kinds.items() if kind != "numbers"), "")
        problem = f"{name!r} has {kinds[name]}" if name else "a classification"
        raise DataError(f"{where}: {problem} (expected numbers: several targets are a regression)")
    if set(kinds.values()) == {"numbers"} and task != "classification":
        values = _numbers_of_parts(parts, user_data.targets, beside)
        if len(kinds) == 1:
            task = task or infer_task(values[:, 0].tolist(), numeric=True)
        if task != "classification":
            rounding = describe_rounding(user_data.targets, values)
            rounded = values.astype(np.float32)
            if rounding and (rounded == rounded[0]).all():
                raise DataError(f"{user_data.path}, column {rounding[0]}")
            columns.notes.extend(rounding)
            units = [user_data.unit or ("%" if table.is_percentage(name) else "") for name in kinds]
            return Target(rounded, values=tuple(map(Value, kinds, units)))
    elif task == "regression":
        (kind,) = kinds.values()
        raise DataError(f"{where}: {kind} (expected numbers for a regression)")
    elif kinds[user_data.targets[0]] == "dates":
        raise DataError(f"{where}: dates (expected numbers or classes)")
    (name,) = user_data.targets
    try:
        return encode_classes(
            [one for file in parts.tables for one in file.names_of_rows(name)], where
        )
    except DataError as error:
        unit = table.unit_of(name) if kinds[name] == "text" else ""
        advice = f"; numbers with the unit {unit!r} are text, without it numbers" if unit else ""
        if kinds[name] == "numbers" and user_data.task is None:
            advice = "; --task regression predicts the number"
        marks = ", ".join(map(repr, parts.missing_marks))
        advice += f"; cells {marks} are missing values" if marks else ""
        raise DataError(f"{error}{advice}") from error


def _fills(user_data: UserData, parts: PartsOfFiles, columns: _Columns) -> bool:
    """Whether the network fills missing values."""
    if user_data.missing is not None:
        return user_data.missing == "fill"
    return any(one.is_missing(name).any() for one in parts.tables for name in columns.names)


def _numbers_of_parts(
    parts: PartsOfFiles,
    names: Sequence[str],
    beside: Sequence[str],
    *,
    allow_missing: bool = False,
) -> NDArray[np.float64]:
    """Reads columns of all files, each as it is written; the first may say it for the others."""
    first, *others = parts.tables
    arrays = [first.numbers(names, beside, allow_missing=allow_missing)]
    mark = first.decimal_mark([*names, *beside])
    arrays += [
        one.numbers(
            names,
            beside,
            default=format_of_other_file(mark, one.table.separator),
            allow_missing=allow_missing,
        )
        for one in others
    ]
    return np.concatenate(arrays)


def _read_numbers(
    user_data: UserData, parts: PartsOfFiles, columns: _Columns, *, fills: bool
) -> NDArray[np.float32]:
    """Reads numbers and dates, (rows, columns), in the order of the file."""
    table = parts.tables[0]
    values = np.empty((len(parts), len(columns.numbers)), np.float32)
    positions = {name: position for position, name in enumerate(columns.numbers)}
    if columns.plain:
        # The target may say what a comma in the inputs means, so it counts for all of them.
        beside = [name for name in user_data.targets if table.is_numeric(name)]
        numbers = _numbers_of_parts(parts, columns.plain, beside, allow_missing=fills)
        columns.notes.extend(describe_rounding(columns.plain, numbers))
        values[:, [positions[name] for name in columns.plain]] = numbers
    if columns.dates:
        order = table.date_order(columns.dates) or user_data.date_order
        dates = [
            one.dates(columns.dates, default=order, allow_missing=fills) for one in parts.tables
        ]
        values[:, [positions[name] for name in columns.dates]] = np.concatenate(dates)
    return values


def _make_encoding(
    user_data: UserData,
    table: UserTable,
    columns: _Columns,
    arrays: Arrays,
    training_rows: RowIndices,
    text_columns: list[TextColumn],
    fills: bool,
) -> ColumnEncoding:
    medians: tuple[float, ...] = ()
    indicators: tuple[int, ...] = ()
    if columns.numbers and fills:
        numbers = arrays[0][training_rows]
        is_missing = np.isnan(numbers)
        for position in np.flatnonzero(is_missing.all(axis=0)):
            raise DataError(
                f"{user_data.path}, column {columns.numbers[position]!r}: no value in the "
                f"training rows (expected --ignore {columns.numbers[position]!r})"
            )
        medians = tuple(np.nanmedian(numbers, axis=0).astype(np.float32).tolist())
        indicators = tuple(np.flatnonzero(is_missing.any(axis=0)).tolist())
    dates = tuple(columns.numbers.index(name) for name in columns.dates)
    return ColumnEncoding(
        width=len(columns.numbers),
        medians=medians,
        indicators=indicators,
        dates=dates,
        times=tuple(one for one in dates if table.has_times(columns.numbers[one])),
        omitted=tuple(columns.numbers.index(name) for name in columns.omitted),
        tables=tuple(one.table for one in text_columns),
    )


def _make_dataset(
    user_data: UserData,
    target: Target,
    described: list[Input],
    arrays: Arrays,
    rows: tuple[RowIndices, RowIndices, RowIndices],
    parts: PartsOfFiles,
) -> Dataset:
    main, *extra = arrays
    group_codes = None
    if parts.groups is not None:
        group_codes = np.unique(np.array(parts.groups), return_inverse=True)[1].astype(np.int64)
    elif parts.times is not None:
        moments, codes = np.unique(parts.times, return_inverse=True)
        if len(moments) < len(parts.times):  # rows of the same time stay together
            group_codes = codes.astype(np.int64)

    def select(part: RowIndices) -> Split:
        extra_inputs = tuple(array[part] for array in extra)
        return Split(
            main[part],
            target.targets[part],
            extra_inputs=extra_inputs,
            allow_nan=described[0].allow_nan,
            groups=None if group_codes is None else group_codes[part],
        )

    times = parts.times
    if times is not None:
        rows = tuple(part[np.argsort(times[part], kind="stable")] for part in rows)  # type: ignore[assignment]
    train, validation, test = map(select, rows)
    targets = user_data.targets
    predicted = f"column{'s' * (len(targets) > 1)} {', '.join(map(repr, targets))}"
    return Dataset(
        name=user_data.name,
        source=f"{user_data.path.name}, {predicted} from the others{parts.description}",
        train=train,
        validation=validation,
        test=test,
        input=described[0],
        extra_inputs=tuple(described[1:]),
        labels=target.labels,
        values=target.values,
        target=", ".join(targets),
        in_time_order=times is not None,
    )


def _features_input(
    user_data: UserData, table: UserTable, columns: _Columns, *, fills: bool
) -> Input:
    beside = [name for name in user_data.targets if table.is_numeric(name)]
    order = table.date_order(columns.dates) or user_data.date_order or ""
    description = f"in this order: {', '.join(columns.numbers)}"
    if columns.dates:
        description += f"; as days since 1970-01-01 00:00 UTC: {', '.join(columns.dates)}"
    if fills:
        description += "; NaN is a missing value"
    return Input(
        name="features",
        axes=("batch", "feature"),
        description=description,
        unit="as in the file",
        columns=tuple(columns.numbers),
        decimal_mark=table.decimal_mark([*columns.plain, *beside]),
        allow_nan=fills,
        date_columns=tuple(columns.dates),
        date_order=order if columns.dates else "",
    )


def _notes(
    user_data: UserData,
    parts: PartsOfFiles,
    columns: _Columns,
    texts: dict[str, list[str]],
    arrays: Arrays,
    *,
    fills: bool,
) -> tuple[str, ...]:
    """Lines about how the file was read, for the person who started the run."""
    table = parts.tables[0]
    marked = [*columns.plain, *(name for name in user_data.targets if table.is_numeric(name))]
    counts = [
        f"{count} of {kind}"
        for count, kind in (
            (len(columns.plain), "numbers"),
            (len(columns.dates), "dates"),
            (len(columns.texts), "text"),
        )
        if count
    ]
    first = (
        f"{len(parts)} rows; {table.describe_form(marked, columns.dates)}; columns: "
        f"{', '.join(counts)}"
    )
    others = [*columns.notes, *parts.notes]
    missing = (
        {
            **dict(zip(columns.numbers, np.isnan(arrays[0]).sum(axis=0), strict=True)),
            **{name: cells.count("") for name, cells in texts.items()},
        }
        if columns.numbers
        else {name: cells.count("") for name, cells in texts.items()}
    )
    filled = [f"{count} of {name!r}" for name, count in missing.items() if count]
    if fills and filled:
        others.append(f"missing cells filled: {', '.join(filled)}")
    for name, cells in texts.items():
        different = len({*cells} - {""})
        if different > MAX_CATEGORIES:
            others.append(
                f"{name!r}: the {MAX_CATEGORIES} most frequent of {different} texts, the others "
                "count as none of them"
            )
    return tuple(f"{user_data.path.name}: {line}" for line in (first, "; ".join(others)) if line)
