"""Columns of text as inputs: their categories, and the numbers that these become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Input

MAX_CATEGORIES = 100  # of one column; other texts count as none of them
_RESERVED = ("features", "probabilities", "value")  # names of tensors in the exported file


@dataclass(frozen=True)
class TextColumn:
    """A column of text as an input: its categories, and the columns that they become."""

    name: str
    categories: tuple[str, ...]
    table: NDArray[np.float32]
    columns: tuple[str, ...]

    def codes(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns the position of each text among the categories, their number if unknown."""
        code_of = {category: code for code, category in enumerate(self.categories)}
        unknown = len(self.categories)
        return np.array([code_of.get(text, unknown) for text in texts], np.int64)


def encode_text(name: str, training_texts: Sequence[str], *, fills: bool) -> TextColumn:
    """Makes the most frequent texts of the training rows categories, in alphabetical order.

    A missing text is empty. It is a category of its own if the training rows have it, else it
    counts as the most frequent one.
    """
    counts = Counter(training_texts)
    has_missing = counts.pop("", 0) > 0
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    frequent = by_count[:MAX_CATEGORIES]  # whatever the order of the rows
    common = sorted(text for text, _ in frequent)
    own = [*([""] if has_missing else []), *common]
    table = np.eye(len(own) + 1, len(own), dtype=np.float32)  # the last row: zeros
    categories = own
    if fills and not has_missing and common:
        categories = ["", *own]
        table = np.concatenate([table[[own.index(frequent[0][0])]], table])
    names = (f"{name} is {category}" if category else f"{name} is missing" for category in own)
    return TextColumn(name, tuple(categories), table, tuple(names))


def describe_text(column: TextColumn, names: list[str], *, fills: bool, has_unknown: bool) -> Input:
    """Describes a column of text.

    has_unknown: whether rows beside the training rows have other texts: the network was measured
        on them, so a caller may send them, too.
    """
    texts = sum(category != "" for category in column.categories)
    missing = ", or empty if it is missing" if fills else ""
    others = "; any other counts as none of them" if has_unknown else ""
    return Input(
        name=_tensor_name(column.name, [*_RESERVED, *names]),
        axes=("batch",),
        description=f"column {column.name!r}: one of {texts} texts{missing}{others}",
        unit="category",
        categories=column.categories,
        columns=(column.name,),
        allow_nan=fills,
        open_categories=has_unknown,
    )


def _tensor_name(column: str, reserved: list[str]) -> str:
    """A name of letters, digits and _, as every tool that reads ONNX accepts it."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in column)
    while name in reserved or not name or name[0].isdigit():
        name = f"_{name}"
    return name
