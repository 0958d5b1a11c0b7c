"""Tables that are printed: the list of recipes and data sets, and the results of trained models.

What needs numpy or onnx is imported late, so that the list is fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from neurona_training.data.catalogue import SOURCES
from neurona_training.errors import OutputError
from neurona_training.recipes import RECIPES


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


_HEAD = ("model", "recipe", "data", "test", "against", "parameters", "best epoch")


def results_table(models: Path) -> list[str]:
    """Lines of --table: Markdown, a row for the newest version of each trained model.

    Args:
        models: the model repository; each file's own metadata has its results.

    Raises:
        OutputError: a model cannot be read, or none has been trained here.
    """
    import onnx

    from neurona_protos import metadata

    rows: list[tuple[str, ...]] = []
    for path in _newest_versions(models):
        try:
            props = onnx.load(path, load_external_data=False).metadata_props
            text = {item.key: item.value for item in props}.get(metadata.KEY)
            if text is None:
                continue  # not trained by neurona-train
            described = metadata.from_json(text)
        except Exception as error:  # protobuf's, onnx's and ours have no common class
            raise OutputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        if "recipe" in described.provenance:
            unit = described.values[0].unit if described.values else ""
            name = path.parents[1].name
            rows.append(_table_row(name, described.figures, described.provenance, unit))
    if not rows:
        raise OutputError(f"{models}: no trained models (expected NAME/VERSION/model.onnx)")
    return [
        _markdown_line(_HEAD),
        _markdown_line(["---"] * len(_HEAD)),
        *(_markdown_line(row) for row in rows),
    ]


def _newest_versions(models: Path) -> list[Path]:
    newest: dict[Path, int] = {}
    for path in models.glob("*/*/model.onnx"):
        if path.parent.name.isdecimal():
            model = path.parents[1]
            newest[model] = max(newest.get(model, 0), int(path.parent.name))
    return [model / str(version) / "model.onnx" for model, version in sorted(newest.items())]


def _table_row(
    name: str, figures: Mapping[str, float], provenance: Mapping[str, str], unit: str
) -> tuple[str, ...]:
    from neurona_training.learning.evaluation import TEST_METRICS, format_metric

    baselines = [
        format_metric(metric, value, unit)
        for metric, value in sorted(figures.items())
        if metric.endswith(("_accuracy", "_rmse"))
        and not metric.startswith(("test_", "validation_", "float32_"))
    ]
    tested = [
        format_metric(metric, figures[metric], unit) for metric in TEST_METRICS if metric in figures
    ]
    recipe, best = provenance["recipe"], provenance.get("best_epoch", "")
    return (
        name,
        f"{recipe} ({provenance['variant']})" if "variant" in provenance else recipe,
        provenance.get("data_set", ""),
        ", ".join(tested),
        ", ".join(baselines),
        f"{int(provenance['parameters']):,}" if "parameters" in provenance else "",
        "by hand" if best == "0" else f"{best} of {provenance.get('epochs', '')}",
    )


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
