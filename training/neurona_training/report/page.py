"""The page: figures first, then the pictures, then how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from neurona_training.cli.tables import told
from neurona_training.report import charts
from neurona_training.report.story import Story

_MOST_DETAIL = 300  # characters of one value


def variants(story: Story) -> str:
    if len(story.sizes) < 2:
        return ""
    shown = [
        one for one in ("test_accuracy", "test_auc", "test_rmse") if one in story.described.figures
    ]
    lines = [["", "bytes", *("test" for _ in shown)]]
    for variant, (size, described) in story.sizes.items():
        values = [told(one, described.figures[one], story.unit) for one in shown]
        lines.append([variant, f"{size:,}", *values])
    return _table(lines)


def signature(story: Story) -> str:
    lines = [["input", "shape", "unit", "what"]]
    lines += [
        [
            given.name,
            f"({', '.join(_sizes(given.axes, array.shape))})",
            given.unit,
            given.description,
        ]
        for given, array in zip(story.data.inputs, story.data.test.arrays, strict=True)
    ]
    said = [
        f"{value.name} ({value.unit})" if value.unit else value.name for value in story.data.values
    ]
    answer = f"Answer: {story.described.answer}, {', '.join(said or story.data.labels[:50])}"
    return f"{_table(lines)}<p>{escape(answer)}</p>"


def _sizes(axes: Iterable[str], shape: Iterable[int]) -> list[str]:
    return [
        axis if axis in ("batch", "time") else f"{axis} {size}"
        for axis, size in zip(axes, shape, strict=True)
    ]


def details(provenance: Mapping[str, str]) -> str:
    rows = [
        [
            name.replace("_", " "),
            value if len(value) <= _MOST_DETAIL else f"{value[:_MOST_DETAIL]}…",
        ]
        for name, value in sorted(provenance.items())
        if value
    ]
    return _table([["what", ""], *rows])


def _table(lines: list[list[str]]) -> str:
    head, *rows = lines
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


_STYLE = """
body{font:16px/1.55 system-ui,sans-serif;color:#222;max-width:960px;margin:2.5rem auto;
padding:0 1.2rem;background:#fff}
h1{font-size:1.9rem;margin:0}h2{font-size:1.2rem;margin:2.4rem 0 .5rem}
p{margin:.4rem 0 .8rem}.quiet{color:#666}img{max-width:100%;height:auto;vertical-align:top}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.4rem 0}
.tile{flex:1 1 8rem;border:1px solid #e4e4e4;border-radius:10px;padding:.7rem 1rem}
.tile b{display:block;font-size:1.5rem;line-height:1.3}.tile span{color:#666;font-size:.85rem}
.tile.first{background:#0072B2;border-color:#0072B2;color:#fff}.tile.first span{color:#fff}
.split{display:flex;border-radius:8px;overflow:hidden;color:#fff;font-size:.8rem}
.split div{padding:.45rem .5rem;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
table{border-collapse:collapse;font-size:.9rem}th,td{text-align:left;padding:.3rem .8rem .3rem 0;
border-bottom:1px solid #e4e4e4;vertical-align:top}th{color:#666;font-weight:600}
td.bar{width:45%}td.bar div{height:.8rem;border-radius:3px;background:#bbb}
td.bar div.own{background:#0072B2}.wide{overflow-x:auto}td{overflow-wrap:anywhere}
"""
_PARTS = (("train", "#0072B2"), ("validation", "#8a5f00"), ("test", "#00664b"))


def page(story: Story) -> str:
    """The whole page as one HTML file."""
    sections = [
        ("The figures", _figures(story)),
        ("The rows", _parts(story)),
        ("The training", charts.training(story)),
        ("Right and wrong", charts.right_and_wrong(story)),
        ("The worst mistakes", charts.mistakes(story)),
        ("What it looks for", charts.looked_for(story)),
        ("Smaller variants", variants(story)),
        ("What goes in and comes out", signature(story)),
        ("How it was made", details(story.described.provenance)),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>{text}" for title, text in sections if text)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(story.name)}'
        '</title><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(story.name)}</h1>"
        f'<p class="quiet">{escape(story.described.description)}</p>{_tiles(story)}{body}'
        "</body></html>\n"
    )


def _tiles(story: Story) -> str:
    figures, unit = story.described.figures, story.unit
    first = "test_accuracy" if story.data.is_classification else "test_rmse"
    best, epochs = story.fitted.best_epoch, len(story.fitted.history)
    tiles = [_figure(first, figures[first], unit)]
    tiles += [_figure(one, figures[one], unit) for one in ("test_auc",) if one in figures]
    tiles.append((f"{int(story.described.provenance['parameters']):,}", "parameters"))
    if best:
        tiles.append((f"{best}", f"best epoch of {epochs or story.training.epochs}"))
    tiles.append((_time(story.seconds), "from data to file"))
    tiles.append((_bytes(story.sizes["float32"][0]), "ONNX file"))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile{" first" * (place == 0)}"><b>{escape(value)}</b>'
            f"<span>{escape(name)}</span></div>"
            for place, (value, name) in enumerate(tiles)
        )
        + "</div>"
    )


def _figure(name: str, value: float, unit: str) -> tuple[str, str]:
    what, _, number = told(name, value, unit).partition(" ")
    return number, f"{what} on the test rows"


def _figures(story: Story) -> str:
    """The model's own figures in blue, and what has to be beaten in grey."""
    end = "_accuracy" if story.data.is_classification else "_rmse"
    figures = {k: v for k, v in story.described.figures.items() if k.endswith(end)}
    order = sorted(figures, key=lambda name: (not name.startswith(("test", "valid")), name))
    most = max([*figures.values(), 1e-12])
    rows = []
    for name in order:
        own = "own" if name.startswith(("test", "validation")) else ""
        who = name.removesuffix(end).replace("_", " ")
        who = {"majority": "always the most frequent class", "mean": "always the mean"}.get(
            who, who
        )
        value = told(f"test{end}", figures[name], story.unit)
        bar = f'<div class="{own}" style="width:{100 * figures[name] / most:.1f}%"></div>'
        rows.append(
            f'<tr><td>{escape(who)}</td><td class="bar">{bar}</td><td>{escape(value)}</td></tr>'
        )
    better = "" if story.data.is_classification else '<p class="quiet">Shorter is better.</p>'
    return f'<table style="width:100%">{"".join(rows)}</table>{better}'


def _parts(story: Story) -> str:
    data = story.data
    sizes = [len(data.train), len(data.validation), len(data.test)]
    cells = "".join(
        f'<div style="flex:{size} 1 0;min-width:6.5rem;background:{colour}">{part} {size:,} '
        f"({size / sum(sizes):.0%})</div>"
        for (part, colour), size in zip(_PARTS, sizes, strict=True)
    )
    return (
        f'<div class="split">{cells}</div><p class="quiet">The weights learn from the training '
        "rows; the validation rows choose the epoch; the test rows are asked once, at the end.</p>"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
