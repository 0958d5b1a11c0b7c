"""A user's CSV file: one column predicted from the others of its row.

Columns of numbers are one input, `features`; each column of texts is an input of its own, to
which callers send strings. A network learns from numbers alone: of each text it sees which of
the column's categories it is (architectures/one_hot.py), and the exported file does the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import Rows, Target, classes, divided, found_task, least_squares
from neurona_training.data.user.load import Brought, Own
from neurona_training.data.user.table import Table
from neurona_training.errors import DataError

Arrays = list[NDArray[Any]]  # one for each input, float32 or the int64 codes of texts

_TAKEN = ("features", "probabilities", "value")  # names of other tensors in the exported file
_MOST_CATEGORIES = 100  # of one column; a column of names or numbers of persons has more


def rows(own: Own, table: Table) -> Brought:
    """Raises DataError with the column, and the line where it is about one cell."""
    if own.target is None:
        raise DataError(
            f"{own.path}: --target or --series must name a column; "
            f"there are {', '.join(table.columns)}"
        )
    target = _target(own, table)
    for name in own.ignored:
        table.column(name, "--ignore")
    given = [name for name in table.columns if name != own.target and name not in own.ignored]
    if not given:
        raise DataError(f"{own.path}: no column is left to predict {own.target!r} from")
    numbers = [name for name in given if table.is_numbers(name)]
    texts = {name: _categories(table, name) for name in given if name not in numbers}

    described: list[Input] = []
    arrays: Arrays = []
    if numbers:
        described.append(_features(numbers))
        arrays.append(np.stack([table.numbers(name) for name in numbers], axis=1))
    for name, categories in texts.items():
        described.append(
            Input(
                name=_input_name(name, [*_TAKEN, *(one.name for one in described)]),
                axes=("batch",),
                description=f"column {name!r}: one of {len(categories)} texts; "
                "any other counts as none of them",
                unit="category",
                categories=categories,
            )
        )
        place = {category: code for code, category in enumerate(categories)}
        arrays.append(np.array([place[text] for text in table.texts(name)], np.int64))
    if not texts:
        data = _dataset(own, target, described, arrays, arrays[0])
        return Brought(data, data)
    from neurona_training.architectures.input_layers import OneHot

    sizes = [len(categories) for categories in texts.values()]
    codes = arrays[-len(texts) :]
    hot = [np.eye(size, dtype=np.float32)[code] for size, code in zip(sizes, codes, strict=True)]
    names = [f"{name} is {one}" for name, categories in texts.items() for one in categories]
    columns = np.concatenate([*arrays[: -len(texts)], *hot], axis=1)
    return Brought(
        learned=_dataset(own, target, [_features([*numbers, *names])], [columns], columns),
        asked=_dataset(own, target, described, arrays, columns),
        facing=lambda network: OneHot(network, sizes),
    )


def _dataset(
    own: Own,
    target: Target,
    described: list[Input],
    arrays: Arrays,
    columns: NDArray[np.float32],
) -> Dataset:
    """columns: the rows as numbers, which a linear function has to answer from."""
    where = f"{own.path}, column {own.target!r}"
    main, *others = arrays

    def split(some: Rows) -> Split:
        return Split(main[some], target.targets[some], others=tuple(one[some] for one in others))

    parts = divided(target, where)
    train, validation, test = (split(some) for some in parts)
    baselines = {}
    if not target.labels:
        first, _, last = parts
        baselines["mean"] = np.full_like(test.targets, train.targets.mean())
        baselines["linear"] = least_squares(columns[first], train.targets, columns[last])
    return Dataset(
        name=own.name,
        source=f"{own.path.name}, column {own.target!r} from the others",
        train=train,
        validation=validation,
        test=test,
        input=described[0],
        others=tuple(described[1:]),
        labels=target.labels,
        values=target.values,
        baselines=baselines,
    )


def _target(own: Own, table: Table) -> Target:
    name = str(own.target)
    table.column(name, "--target")
    texts, numbers = table.texts(name), table.is_numbers(name)
    task = own.task
    if numbers and task != "classification":
        values = table.numbers(name)  # tells of a slip among them
        task = task or found_task(texts, numbers=True)
        if task == "regression":
            return Target(values[:, None], values=(Value(name, own.unit),))
    elif task == "regression":
        raise DataError(f"{own.path}: column {name!r} has texts; a regression needs numbers")
    return classes(texts, f"{own.path}, column {name!r}")


def _categories(table: Table, name: str) -> tuple[str, ...]:
    categories = tuple(sorted(set(table.texts(name))))
    if len(categories) > min(_MOST_CATEGORIES, max(2, len(table) // 2)):
        raise DataError(
            f"{table.path}: column {name!r} has {len(categories)} different texts in "
            f"{len(table)} rows, too many to learn from; --ignore {name!r} leaves it out"
        )
    return categories


def _features(names: list[str]) -> Input:
    return Input(
        name="features",
        axes=("batch", "feature"),
        description=f"in this order: {', '.join(names)}",
        unit="as in the file",
        columns=tuple(names),
    )


def _input_name(column: str, taken: list[str]) -> str:
    """Made of letters, digits and _, as every tool that reads ONNX takes it."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in column)
    while name in taken or not name or name[0].isdigit():
        name = f"_{name}"
    return name
