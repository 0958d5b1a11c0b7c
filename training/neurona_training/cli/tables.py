"""What the models of a repository reached, from their own metadata: README's table.

neurona-train --table models
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from neurona_training.data.catalogue import SOURCES
from neurona_training.errors import OutputError
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


_HEAD = ("model", "recipe", "data", "test", "against", "parameters", "best epoch")
TESTED = ("test_accuracy", "test_balanced_accuracy", "test_auc", "test_rmse")


def table(models: Path) -> list[str]:
    """Markdown, a line for each model's newest version. Raises OutputError."""
    import onnx

    from neurona_protos import metadata

    rows: list[tuple[str, ...]] = []
    for path in _newest(models):
        try:
            props = onnx.load(path, load_external_data=False).metadata_props
            text = {item.key: item.value for item in props}.get(metadata.KEY)
            if text is None:
                continue  # a model from elsewhere says nothing of how it was trained
            said = metadata.from_json(text)
        except Exception as error:  # protobuf's, onnx's and ours have no common class
            raise OutputError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if "recipe" in said.provenance:
            unit = said.values[0].unit if said.values else ""
            rows.append(_row(path.parents[1].name, said.figures, said.provenance, unit))
    if not rows:
        raise OutputError(f"{models}: no trained models, NAME/VERSION/model.onnx, in it")
    return [_line(_HEAD), _line(["---"] * len(_HEAD)), *(_line(row) for row in rows)]


def told(name: str, value: float, unit: str = "") -> str:
    """One figure in words: `accuracy 99.31 %`, `AUC 0.962`, `RMSE 15.2 sunspots`."""
    what = name.removeprefix("test_").replace("_", " ")
    if what.endswith("accuracy"):
        return f"{what} {100 * value:.2f} %"
    what = what.replace("auc", "AUC").replace("rmse", "RMSE")
    return f"{what} {value:.4g} {unit}".rstrip() if "RMSE" in what else f"{what} {value:.4f}"


def _newest(models: Path) -> list[Path]:
    found: dict[Path, int] = {}
    for path in models.glob("*/*/model.onnx"):
        if path.parent.name.isdecimal():
            model = path.parents[1]
            found[model] = max(found.get(model, 0), int(path.parent.name))
    return [model / str(version) / "model.onnx" for model, version in sorted(found.items())]


def _row(
    name: str, figures: Mapping[str, float], provenance: Mapping[str, str], unit: str
) -> tuple[str, ...]:
    against = [
        told(one, value, unit)
        for one, value in sorted(figures.items())
        if not one.startswith(("test_", "validation_"))
    ]
    recipe, best = provenance["recipe"], provenance.get("best_epoch", "")
    return (
        name,
        f"{recipe} ({provenance['variant']})" if "variant" in provenance else recipe,
        provenance.get("data_set", ""),
        ", ".join(told(one, figures[one], unit) for one in TESTED if one in figures),
        ", ".join(against),
        f"{int(provenance['parameters']):,}" if "parameters" in provenance else "",
        "by hand" if best == "0" else f"{best} of {provenance.get('epochs', '')}",
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
