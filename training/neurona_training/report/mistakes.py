"""The worst answers of the test, each with what was asked."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from neurona_training.export.parity import as_sent
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    bare,
    figure,
    literal,
    plain,
    short,
)
from neurona_training.report.story import Story

SHOWN = 12
_COLUMNS = 6
_MOST_LINES = 3  # channels of a sequence as lines; more of them as a map of colours
_MOST_PROBABILITIES = 3


def gallery(story: Story) -> Figure | None:
    """Images or sequences with the answers to them; None where the inputs are rows or texts."""
    data = story.data
    if data.kind == "rows" or data.input.categories:
        return None
    rows = story.worst[:SHOWN]
    across = min(_COLUMNS if data.kind == "images" else 4, len(rows))
    down = -(-len(rows) // across)
    tall = 2.0 if not data.is_classification else 2.3 if data.kind == "images" else 2.7
    drawn = figure(9.5, tall * down)
    cells = drawn.subfigures(down, across, squeeze=False)
    for row, cell in zip(rows, cells.flat, strict=False):
        if data.is_classification:
            top, bottom = cell.subplots(2, 1, height_ratios=[3.4, 1])
            _bars(bottom, story, row)
        else:
            top = cell.subplots()
        _draw(top, story, row)
        top.set_title(literal(_said(story, row)), fontsize=8.5, color=INK)
    return drawn


def listed(story: Story) -> str:
    """The same for rows and texts, as a table of HTML."""
    data = story.data
    rows = story.worst[:SHOWN]
    if data.kind == "rows":
        head = [
            name
            for given, array in zip(data.inputs, data.test.arrays, strict=True)
            for name in (story.columns(array.shape[-1]) if array.ndim > 1 else [given.name])
        ]
    else:
        head = [data.input.name]
    head = [*head[:10], *(["…"] if len(head) > 10 else [])]
    lines = []
    for row in rows:
        cells = _cells(story, row)
        cells = [*cells[:10], *(["…"] if len(cells) > 10 else [])]
        lines.append([_said(story, row, short_names=False), *cells])
    return (
        '<div class="wide"><table><tr>'
        + "".join(f"<th>{escape(short(name, 26))}</th>" for name in ["answer", *head])
        + "</tr>"
        + "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines
        )
        + "</table></div>"
    )


def _cells(story: Story, row: int) -> list[str]:
    if story.data.kind != "rows":
        return ["".join(str(one) for one in as_sent(story.shown(row), story.data.input))]
    cells: list[str] = []
    for given, array in zip(story.data.inputs, story.data.test.arrays, strict=True):
        sent = as_sent(array[[row]], given)[0]
        cells += [
            one if isinstance(one, str) else f"{one:.4g}" for one in np.atleast_1d(sent).tolist()
        ]
    return cells


def _said(story: Story, row: int, *, short_names: bool = True) -> str:
    """What was right and what was said."""
    target, answered = story.data.test.targets[row], story.answered[row]
    if not story.data.is_classification:
        worst = int(np.abs(answered - target).argmax())
        return f"true {target[worst]:.4g}, predicted {answered[worst]:.4g}"
    labels = story.data.labels
    said, sure = int(answered.argmax()), f"{answered.max():.0%}"
    if not short_names:
        wrong = "" if said == target else f"{labels[target]}, taken for "
        return f"{wrong}{labels[said]}, {sure}"
    if said == target:
        return f"{short(labels[said], 12)}, {sure}"
    return f"true: {short(labels[target], 12)}\nsaid: {short(labels[said], 10)}, {sure}"


def _draw(axes: Axes, story: Story, row: int) -> None:
    shown = story.shown(row)
    if story.data.kind == "images":
        image(axes, shown, float(story.data.test.inputs.max()))
    elif story.is_series:
        _series(axes, story, row)
    else:
        _sequence(axes, shown)


def image(axes: Axes, pixels: NDArray[Any], most: float) -> None:
    """Grey (height, width), or (channel, height, width) with one or three channels."""
    bare(axes)
    if pixels.ndim == 3 and len(pixels) == 3:
        axes.imshow(np.clip(pixels.transpose(1, 2, 0) / max(most, 1e-9), 0, 1))
        return
    plane = pixels if pixels.ndim == 2 else pixels[0]
    axes.imshow(plane, cmap="gray", vmin=0, vmax=most)


def _series(axes: Axes, story: Story, row: int) -> None:
    window, target, answered = story.shown(row)[:, 0], story.data.test.targets[row], story.answered
    plain(axes)
    axes.tick_params(labelsize=7.5)
    axes.plot(np.arange(-len(window) + 1, 1), window, color=GREY, linewidth=1.3)
    ahead = np.arange(1, len(target) + 1)
    axes.plot(ahead, target, "o-", color=INK, markersize=4, linewidth=1.3)
    axes.plot(ahead, answered[row], "D-", color=ORANGE, markersize=4, linewidth=1.3)


def _sequence(axes: Axes, steps: NDArray[Any]) -> None:
    if steps.ndim == 1 or steps.shape[1] <= _MOST_LINES:
        plain(axes)
        axes.tick_params(labelsize=7)
        for channel, colour in zip(
            steps.reshape(len(steps), -1).T, (BLUE, ORANGE, RED), strict=False
        ):
            axes.plot(channel, color=colour, linewidth=0.9)
        return
    bare(axes)
    # Time goes to the right; each channel a line of the map.
    axes.imshow(steps.T, cmap="cividis", aspect="auto", interpolation="nearest")


def _bars(axes: Axes, story: Story, row: int) -> None:
    """The largest probabilities; the true class in blue."""
    answered, target = story.answered[row], story.data.test.targets[row]
    order = np.argsort(-answered)[:_MOST_PROBABILITIES]
    colours = [BLUE if place == target else ORANGE for place in order]
    axes.barh(range(len(order)), answered[order], color=colours, height=0.7)
    axes.set_xlim(0, 1)
    axes.set_ylim(_MOST_PROBABILITIES - 0.5, -0.5)
    labels = [literal(short(story.data.labels[place], 10)) for place in order]
    axes.set_yticks(range(len(order)), labels, fontsize=7.5)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor(PALE)
