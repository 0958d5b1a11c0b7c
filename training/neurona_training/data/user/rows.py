"""A user's CSV file: one column predicted from the others of its row.

Numeric columns are one input, `features`; each column of text is an input of its own, to which
callers send strings. A network learns from numbers alone: text is one-hot encoded, a column
for each category, and the exported file does the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import (
    RowIndices,
    Target,
    encode_classes,
    infer_task,
    split_rows,
)
from neurona_training.data.user.spec import LoadedUserData, UserData
from neurona_training.data.user.table import UserTable
from neurona_training.errors import DataError

Arrays = list[NDArray[Any]]  # one for each input: float32, or int64 codes of text

_RESERVED = ("features", "probabilities", "value")  # names of tensors in the exported file
_MAX_CATEGORIES = 100  # of one column; a column of names or identifiers has more


def load_rows(user_data: UserData, table: UserTable) -> LoadedUserData:
    """Makes one row of a data set of each row of the table.

    Raises:
        DataError: with the column, and the line if one cell is wrong.
    """
    if user_data.target is None:
        raise DataError(
            f"{user_data.path}: --target or --series must name a column "
            f"(available: {', '.join(table.names)})"
        )
    table.require_column(user_data.target, "--target")
    for name in user_data.ignored:
        table.require_column(name, "--ignore")
    excluded = {user_data.target, *user_data.ignored}
    input_columns = [name for name in table.names if name not in excluded]
    if not input_columns:
        raise DataError(f"{user_data.path}: no column is left to predict {user_data.target!r} from")
    numeric = [name for name in input_columns if table.is_numeric(name)]
    target = _read_target(user_data, table, numeric)
    text_columns = {name: _categories(table, name) for name in input_columns if name not in numeric}

    described: list[Input] = []
    arrays: Arrays = []
    if numeric:
        # The target may say what a comma in the inputs means, so it counts for all of them.
        beside = [user_data.target] if table.is_numeric(user_data.target) else []
        mark = table.decimal_mark([*numeric, *beside])
        described.append(replace(_features_input(numeric), decimal_mark=mark))
        arrays.append(table.numbers(numeric, beside))
    for name, categories in text_columns.items():
        reserved = [*_RESERVED, *(one.name for one in described)]
        described.append(
            Input(
                name=_tensor_name(name, reserved),
                axes=("batch",),
                description=f"column {name!r}: one of {len(categories)} texts; "
                "any other counts as none of them",
                unit="category",
                categories=categories,
                columns=(name,),
            )
        )
        code_of = {category: code for code, category in enumerate(categories)}
        arrays.append(np.array([code_of[text] for text in table.texts(name)], np.int64))
    if not text_columns:
        data = _make_dataset(user_data, target, described, arrays)
        return LoadedUserData(data, data)

    counts = tuple(len(categories) for categories in text_columns.values())
    numbers, codes = arrays[: -len(counts)], arrays[-len(counts) :]
    one_hot = [np.eye(count, dtype=np.float32)[c] for count, c in zip(counts, codes, strict=True)]
    one_hot_names = [
        f"{name} is {category}"
        for name, categories in text_columns.items()
        for category in categories
    ]
    columns = np.concatenate([*numbers, *one_hot], axis=1)
    features = [_features_input([*numeric, *one_hot_names])]
    return LoadedUserData(
        training_view=_make_dataset(user_data, target, features, [columns]),
        caller_view=_make_dataset(user_data, target, described, arrays),
        category_counts=counts,
    )


def _make_dataset(
    user_data: UserData,
    target: Target,
    described: list[Input],
    arrays: Arrays,
) -> Dataset:
    """Divides the rows."""
    where = f"{user_data.path}, column {user_data.target!r}"
    main, *extra = arrays

    def select(rows: RowIndices) -> Split:
        extra_inputs = tuple(array[rows] for array in extra)
        return Split(main[rows], target.targets[rows], extra_inputs=extra_inputs)

    train, validation, test = (select(rows) for rows in split_rows(target, where))
    return Dataset(
        name=user_data.name,
        source=f"{user_data.path.name}, column {user_data.target!r} from the others",
        train=train,
        validation=validation,
        test=test,
        input=described[0],
        extra_inputs=tuple(described[1:]),
        labels=target.labels,
        values=target.values,
        target=str(user_data.target),
    )


def _read_target(user_data: UserData, table: UserTable, numeric_inputs: list[str]) -> Target:
    name = str(user_data.target)
    where = f"{user_data.path}, column {name!r}"
    texts, numeric = table.texts(name), table.is_numeric(name)
    task = user_data.task
    if numeric and task != "classification":
        values = table.numbers([name], beside=numeric_inputs)
        task = task or infer_task(values[:, 0].tolist(), numeric=True)
        if task == "regression":
            unit = user_data.unit or ("%" if table.is_percentage(name) else "")
            return Target(values, values=(Value(name, unit),))
    elif task == "regression":
        raise DataError(f"{where}: text (expected numbers for a regression)")
    return encode_classes(texts, where)


def _categories(table: UserTable, name: str) -> tuple[str, ...]:
    categories = tuple(sorted(set(table.texts(name))))
    limit = min(_MAX_CATEGORIES, max(2, len(table) // 2))
    if len(categories) > limit:
        unit = table.unit_of(name)
        advice = f"numbers with the unit {unit!r} are text, without it numbers; " if unit else ""
        raise DataError(
            f"{table.path}, column {name!r}: {len(categories)} different texts in "
            f"{len(table)} rows (expected at most {limit}); {advice}--ignore {name!r} leaves it out"
        )
    return categories


def _features_input(names: list[str]) -> Input:
    return Input(
        name="features",
        axes=("batch", "feature"),
        description=f"in this order: {', '.join(names)}",
        unit="as in the file",
        columns=tuple(names),
    )


def _tensor_name(column: str, reserved: list[str]) -> str:
    """A name of letters, digits and _, as every tool that reads ONNX accepts it."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in column)
    while name in reserved or not name or name[0].isdigit():
        name = f"_{name}"
    return name
