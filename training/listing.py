"""What `neurona-train --list` prints."""

from __future__ import annotations

from collections.abc import Sequence

from neurona_training.data.catalogue import SOURCES
from neurona_training.recipes import RECIPES


def listing() -> list[str]:
    """The recipes with their data sets, and then the data sets, as a table."""
    recipes = [
        (recipe.name, ", ".join(recipe.trainings), recipe.description)
        for recipe in RECIPES.values()
    ]
    sources = [(source.name, "", source.description) for source in SOURCES.values()]
    rows = [
        ("RECIPE", "DATA (default first)", ""),
        *recipes,
        ("", "", ""),
        ("DATA", "", ""),
        *sources,
    ]
    return _table(rows)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
