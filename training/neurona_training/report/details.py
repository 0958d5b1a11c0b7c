"""The sections of the page that are tables: variants, inputs and outputs, provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from neurona_training.report.story import Story
from neurona_training.table import told

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
