"""The rows of a user's tables, and which of them the user chose for which part.

    parts = read_parts(UserData(Path("train.csv"), target="y", test=Path("test.csv")), table)
    divide_rows(target, where, own_parts=parts.own_parts, groups=parts.groups, times=parts.times)

Without a choice rows are divided at random. `--validation` and `--test` are files of their own,
`--split-column` says it row by row; `--group` keeps the rows of a patient, a customer or a machine
in one part, `--time` tests on the latest rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neurona_training.data.splits import Part
from neurona_training.data.user.spec import UserData
from neurona_training.data.user.table import UserTable, read_user_table
from neurona_training.errors import DataError

_PART_NAMES: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("validation", "valid", "validate", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}


@dataclass(frozen=True)
class PartsOfFiles:
    """The rows of one or more files, one after the other, without those that lack a target.

    Args:
        tables: the main file first.
        own_parts: the part of each row; None where it is not own_parts.
        groups: of each row, if rows are divided by group.
        times: of each row, if they are divided by time.
        columns: those that say so, which are no inputs.
        description: how rows are divided; empty if at random.
        notes: what was left out.
        missing_marks: cells of the target, other than empty ones, that are missing values.
    """

    tables: tuple[UserTable, ...]
    own_parts: tuple[Part | None, ...]
    groups: tuple[str, ...] | None
    times: NDArray[np.float64] | None
    columns: tuple[str, ...]
    description: str
    notes: tuple[str, ...]
    missing_marks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.tables))


def read_parts(user_data: UserData, table: UserTable) -> PartsOfFiles:
    """Reads the further files, and what their columns say about the parts.

    Raises:
        DataError: a file or column that does not exist, or a cell that names no part or time.
    """
    if user_data.group is not None and user_data.time is not None:
        raise DataError(f"{user_data.path}: --group and --time exclude each other")
    flags = (
        (user_data.split_column, "--split-column"),
        (user_data.group, "--group"),
        (user_data.time, "--time"),
    )
    tables, notes, own_parts = [], [], list[Part | None]()
    missing_marks: set[str] = set()
    for file, file_part in _read_files(user_data, table):
        for name in user_data.targets:
            file.require_column(name, "--target")
        for column, flag in flags:
            if column is not None and not (file_part and flag == "--split-column"):
                file.require_column(column, flag)
        rows, note, marks = _rows_with_target(user_data, file)
        missing_marks |= marks
        notes += [note] if note else []
        one = file if len(rows) == len(file) else file.select(rows)
        tables.append(one)
        if file_part is None and user_data.split_column is not None:
            own_parts += _chosen_parts(user_data, one)
        else:
            own_parts += [file_part] * len(one)
    if user_data.split_column is not None and "validation" not in own_parts:
        # Validation rows are taken from those for training.
        own_parts = [None if part == "train" else part for part in own_parts]
    groups = times = None
    if user_data.group is not None:
        name = user_data.group
        groups = tuple(text for one in tables for text in one.names_of_rows(name))
    if user_data.time is not None:
        order = table.date_order(table.columns_of_dates(user_data.ignored)) or user_data.date_order
        times = np.concatenate(
            [
                one.moments(
                    user_data.time,
                    default=one.date_order(one.columns_of_dates(user_data.ignored)) or order,
                )
                for one in tables
            ]
        )
    description = _describe(user_data)
    notes += [description.removeprefix("; ")] if description else []
    return PartsOfFiles(
        tuple(tables),
        tuple(own_parts),
        groups,
        times,
        tuple(name for name, _ in flags if name is not None),
        description,
        tuple(notes),
        tuple(sorted(missing_marks)),
    )


def _read_files(
    user_data: UserData, table: UserTable
) -> list[tuple[UserTable, Literal["validation", "test"] | None]]:
    """Reads the files of validation and test rows, and returns them behind the main one."""
    files: list[tuple[UserTable, Literal["validation", "test"] | None]] = [(table, None)]
    paths: tuple[tuple[Path | None, Literal["validation", "test"]], ...] = (
        (user_data.validation, "validation"),
        (user_data.test, "test"),
    )
    for path, part in paths:
        if path is None:
            continue
        if any(path.resolve() == file.path.resolve() for file, _ in files):
            raise DataError(f"{path}: --{part} is another part, too (expected other rows)")
        files.append((read_user_table(path), part))
    return files


def _rows_with_target(
    user_data: UserData, table: UserTable
) -> tuple[NDArray[np.int64], str, set[str]]:
    """Returns the rows that have all targets, a line about the others, and their marks.

    A row without a target cannot be learned from; it may be one that is to be predicted.
    """
    lacking = np.zeros(len(table), np.bool_)
    marks: set[str] = set()
    if user_data.missing != "error":
        for name in user_data.targets:
            is_missing = table.is_missing(name)
            lacking |= is_missing
            cells = table.table.columns[name]
            marks |= {cells[row] for row in np.flatnonzero(is_missing).tolist()} - {""}
    # A class may be called so: "none" of several diseases.
    described = f" (cells {', '.join(map(repr, sorted(marks)))})" if marks else ""
    rows = np.flatnonzero(~lacking)
    if not len(rows):
        names = ", ".join(user_data.targets)
        raise DataError(f"{table.path}: no row has a value of {names}{described}")
    note = f"rows without a target left out: {lacking.sum()} of {table.path.name}{described}"
    return rows, note if lacking.any() else "", marks


def _chosen_parts(user_data: UserData, table: UserTable) -> list[Part | None]:
    name = str(user_data.split_column)
    parts: list[Part | None] = []
    for row, text in enumerate(table.texts(name)):
        part = _PART_NAMES.get(text.lower())
        if part is None:
            raise DataError(
                f"{table.location(row, name)}: {text!r} is no part (expected train, validation or "
                "test)"
            )
        parts.append(part)
    if "test" not in parts and user_data.test is None:
        raise DataError(f"{table.path}, column {name!r}: no row is for the test (expected some)")
    return parts


def _describe(user_data: UserData) -> str:
    ways = [
        *([f"validation rows: {user_data.validation.name}"] if user_data.validation else []),
        *([f"test rows: {user_data.test.name}"] if user_data.test else []),
        *([f"parts as in {user_data.split_column!r}"] if user_data.split_column else []),
        *([f"no {user_data.group!r} in two parts"] if user_data.group else []),
        *([f"later rows by {user_data.time!r} are the test"] if user_data.time else []),
    ]
    return "".join(f"; {way}" for way in ways)
