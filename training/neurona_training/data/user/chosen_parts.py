"""Rows that their user has divided into training, validation and test.

It is alone because files in folders and arrays in a file are divided in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from neurona_training.data.splits import Part, RowIndices, Target, divide_rows

_TITLES = (("train", "training"), ("validation", "validation"), ("test", "the test"))
# Rows for training are free for the parts that are missing.
_FIXED_PARTS: dict[str, Part | None] = {"train": None, "validation": "validation", "test": "test"}


def divide_as_chosen(
    target: Target, parts: Sequence[str], where: str
) -> tuple[RowIndices, RowIndices, RowIndices]:
    """Returns the rows for training, validation and test.

    A part that no row has is taken from the training rows, of each class in proportion.

    Args:
        target: of all rows.
        parts: "train", "validation" or "test" for each row.
        where: file or folder, for errors.

    Raises:
        DataError: no rows for training, or none of a class.
    """
    return divide_rows(target, where, own_parts=[_FIXED_PARTS[part] for part in parts])


def describe_division(parts: Sequence[str]) -> str:
    """Says how many rows each part has, and which is taken from training."""
    counts = Counter(parts)
    texts = [f"{counts[part]:,} for {title}" for part, title in _TITLES if counts[part]]
    missing = [title for part, title in _TITLES if not counts[part]]
    taken = f"; those for {' and '.join(missing)} taken from the first" if missing else ""
    return f"divided by their user: {', '.join(texts)}{taken}"
