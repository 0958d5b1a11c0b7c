"""What `neurona-train --list` prints."""

from __future__ import annotations

from collections.abc import Sequence

from neurona_training.data.catalogue import SOURCES
from neurona_training.recipes import RECIPES


def listing() -> list[str]:
    """The recipes, each with its data sets below it, and then the data sets."""
    recipes = [
        ("RECIPE", "and its data sets, the default first; it takes others of their kind too")
    ]
    for recipe in RECIPES.values():
        recipes += [(recipe.name, recipe.description), ("", ", ".join(recipe.trainings))]
    sources = [("DATA", "or the path of own data, see --help")]
    sources += [(source.name, source.description) for source in SOURCES.values()]
    return [*_table(recipes), "", *_table(sources)]


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]
