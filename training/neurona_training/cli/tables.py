"""Tables that are printed: the list of recipes and data sets, and the results of trained models.

What needs numpy or onnx is imported late, so that the list is fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neurona_training.cli.results import (
    best_baseline,
    error_unit,
    figures_by_seed,
    format_test_metrics,
    read_metadata,
)
from neurona_training.data.catalogue import SOURCES
from neurona_training.errors import OutputError
from neurona_training.recipes import RECIPES

if TYPE_CHECKING:
    from neurona_protos.prediction_pb2 import ModelMetadata


def listing() -> list[str]:
    """Lines of --list: the recipes, each with its data sets below it, then all data sets."""
    recipes = [("RECIPE", "and its data sets, the default first; others of the same kind work too")]
    for recipe in RECIPES.values():
        recipes += [
            (recipe.name, recipe.description),
            ("", ", ".join(recipe.tuned)),
        ]
    sources = [("DATA", "or the path of own data, see --help")]
    sources += [(source.name, source.description) for source in SOURCES.values()]
    return [*_align(recipes), "", *_align(sources)]


def _align(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


_HEAD = (
    *("model", "recipe", "data", "on the test rows", "seeds", "best baseline on the same rows"),
    *("parameters", "one training"),
)


def results_table(models: Path) -> list[str]:
    """Lines of --table: Markdown, a row for the newest version of each trained model.

    A model that was trained from several seeds has mean and standard deviation of its metrics.

    Args:
        models: the model repository; each file's own metadata has its results, and
            report/seeds.json those of other seeds.

    Raises:
        OutputError: a model cannot be read, or none has been trained here.
    """
    rows: list[tuple[int, tuple[str, ...]]] = []
    order = {name: position for position, name in enumerate(RECIPES)}
    for path in _newest_versions(models):
        described = read_metadata(path)
        if described is not None and "recipe" in described.provenance:
            position = order.get(described.provenance["recipe"], len(order))
            rows.append((position, _table_row(path, described)))
    if not rows:
        raise OutputError(f"{models}: no trained models (expected NAME/VERSION/model.onnx)")
    return [
        _markdown_line(_HEAD),
        _markdown_line(["---"] * len(_HEAD)),
        *(_markdown_line(row) for _, row in sorted(rows)),
    ]


def _newest_versions(models: Path) -> list[Path]:
    newest: dict[Path, int] = {}
    for path in models.glob("*/*/model.onnx"):
        if path.parent.name.isdecimal():
            model = path.parents[1]
            newest[model] = max(newest.get(model, 0), int(path.parent.name))
    return [model / str(version) / "model.onnx" for model, version in sorted(newest.items())]


def _table_row(path: Path, described: ModelMetadata) -> tuple[str, ...]:
    runs, provenance = figures_by_seed(path, described), described.provenance
    figures = [run.figures for run in runs]
    unit = error_unit(described)
    recipe = provenance["recipe"]
    return (
        path.parents[1].name,
        f"{recipe} ({provenance['variant']})" if "variant" in provenance else recipe,
        provenance.get("data_set", ""),
        format_test_metrics(figures, unit),
        "by hand" if provenance.get("initialisation") == "by hand" else str(len(runs)),
        best_baseline(figures, unit),
        f"{int(provenance['parameters']):,}" if "parameters" in provenance else "",
        _format_seconds([run.seconds for run in runs if run.seconds is not None]),
    )


def _format_seconds(seconds: Sequence[float]) -> str:
    """The mean duration; empty if no other seed was trained."""
    if not seconds:
        return ""
    mean = sum(seconds) / len(seconds)
    if mean < 1:
        return "< 1 s"
    return f"{mean:.0f} s" if mean < 120 else f"{mean / 60:.0f} min"


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
