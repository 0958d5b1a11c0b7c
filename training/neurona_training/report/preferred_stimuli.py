"""What the cells of a neocognitron respond to: bars and edges of each direction.

D. Hubel and T. Wiesel, Receptive Fields, Binocular Interaction and Functional Architecture in
the Cat's Visual Cortex, Journal of Physiology 160 (1962), showed bars and edges to cells and
found that each prefers one direction. K. Fukushima modelled his S- and C-cells on theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from neurona_training.architectures.neocognitron import Neocognitron, SCells
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Section,
    make_picture,
    new_figure,
    style_image,
)
from neurona_training.report.results import RunResults

_DIRECTIONS = 16  # of bars over half a turn; edges have as many over each half
_SIZE = 15  # pixels across a stimulus
_BAR_WIDTH = 2.0
_MAX_PLANES = 24
_MAX_COLUMNS = 8  # of cells beside each other


@dataclass(frozen=True)
class Stimulus:
    """A picture that is shown to the cells.

    Args:
        name: "bar", "edge", "bar end" or "corner".
        degrees: direction of the bar, or of the edge's line, 0 = horizontal; 180 to 360 for
            edges that are bright on their other side.
        pixels: (size, size), 0..1.
    """

    name: str
    degrees: float
    pixels: NDArray[np.float32]


def preferred_stimuli_section(results: RunResults) -> Section | None:
    """Patterns, tuning curves and favourite stimuli; None for another network."""
    networks = [one for one in results.network.modules() if isinstance(one, Neocognitron)]
    if not networks:
        return None
    cells = cast(SCells, cast(nn.Sequential, networks[0].layers[0])[0])
    learned = torch.nonzero(cells.inhibitory)[:, 0].tolist()[:_MAX_PLANES]
    if not learned:
        return None
    stimuli = make_stimuli()
    responses = plane_responses(cells, stimuli)
    figure = _draw(cells, learned, stimuli, responses)
    names = [_best(responses, stimuli, plane) for plane in learned]
    counts = {
        name: sum(best is not None and best.name == name for best in names)
        for name in ("bar", "edge", "bar end", "corner")
    }
    counted = ", ".join(f"{count} {name}s" for name, count in counts.items() if count)
    caption = (
        "As Hubel and Wiesel did with a cat's cells in 1959, bars, edges, ends of bars and "
        "corners of every direction are shown to the S-cells of the first layer. For each plane: "
        "the pattern that it has learned, the stimulus to which it responds most, and its "
        "response by direction (bars "
        "blue, edges orange; to the right is horizontal, up is vertical). Preferred by "
        f"{len(learned)} planes: {counted}. They learned that from pictures, without labels."
    )
    picture = make_picture(figure, "patterns, preferred stimuli and tuning curves of S-cells")
    words = ("S-cell", "C-cell", "preferred stimulus")
    return Section("Which bars and edges its cells prefer", caption, (picture,), words=words)


def make_stimuli() -> list[Stimulus]:
    """Bars of each direction, then edges, dark on the one side, then ends of bars and corners."""
    centre = (_SIZE - 1) / 2
    y, x = np.mgrid[:_SIZE, :_SIZE] - centre
    stimuli = []
    for index in range(_DIRECTIONS):
        angle = math.pi * index / _DIRECTIONS
        distance = x * math.sin(angle) + y * math.cos(angle)  # from the line; y points down
        bar = np.clip(_BAR_WIDTH / 2 + 0.5 - np.abs(distance), 0, 1).astype(np.float32)
        stimuli.append(Stimulus("bar", math.degrees(angle), bar))
    for index in range(2 * _DIRECTIONS):
        angle = math.pi * index / _DIRECTIONS
        distance = x * math.sin(angle) + y * math.cos(angle)
        edge = np.clip(distance + 0.5, 0, 1).astype(np.float32)
        stimuli.append(Stimulus("edge", math.degrees(angle), edge))
    bars, edges = stimuli[:_DIRECTIONS], stimuli[_DIRECTIONS:]
    for index, edge in enumerate(edges):  # what one edge cuts off another one, or a bar
        across = edges[(index + _DIRECTIONS // 2) % len(edges)]
        bar = bars[index % _DIRECTIONS]
        stimuli.append(Stimulus("bar end", edge.degrees, bar.pixels * across.pixels))
        stimuli.append(Stimulus("corner", edge.degrees, edge.pixels * across.pixels))
    return stimuli


@torch.no_grad()
def plane_responses(cells: SCells, stimuli: list[Stimulus]) -> NDArray[Any]:
    """Largest response of each plane to each stimulus, (planes, stimuli).

    Cells whose patch reaches over the border of a stimulus do not count: there, the border is
    an edge too.
    """
    images = torch.from_numpy(np.stack([one.pixels for one in stimuli]))[:, None]
    margin = cells.excitatory.shape[-1] // 2
    responses = cells(images)[:, :, margin:-margin, margin:-margin]
    values: NDArray[Any] = responses.amax(dim=(2, 3)).T.numpy()
    return values


def _best(responses: NDArray[Any], stimuli: list[Stimulus], plane: int) -> Stimulus | None:
    """The stimulus to which a plane responds most; None for a plane that responds to none."""
    if not responses[plane].any():
        return None
    return stimuli[int(responses[plane].argmax())]


def _draw(
    cells: SCells, planes: list[int], stimuli: list[Stimulus], responses: NDArray[Any]
) -> Figure:
    across = min(_MAX_COLUMNS, len(planes))
    down = -(-len(planes) // across)
    figure = new_figure(9.5 * across / _MAX_COLUMNS + 0.1, 2.2 * down)
    parts = figure.subfigures(down, across, squeeze=False)
    patterns = cells.excitatory.mean(dim=1).numpy()
    for plane, part in zip(planes, parts.flat, strict=False):
        best = _best(responses, stimuli, plane)
        grid = part.add_gridspec(2, 2, height_ratios=[1, 1.25])
        pattern, stimulus = (part.add_subplot(grid[0, column]) for column in (0, 1))
        blank = np.zeros_like(stimuli[0].pixels)
        shown = ((pattern, patterns[plane]), (stimulus, best.pixels if best else blank))
        for axes, pixels in shown:
            style_image(axes)
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=float(pixels.max()) or 1)
        pattern.set_title(f"plane\n{plane + 1}", fontsize=7.5, color=INK)
        text = f"{best.name}\n{best.degrees % 180:.0f}°" if best else "none\nof them"
        stimulus.set_title(text, fontsize=7.5, color=INK)
        tuning = part.add_subplot(grid[1, :], projection="polar")
        _draw_tuning(tuning, responses[plane])
    return figure


def _draw_tuning(axes: Axes, responses: NDArray[Any]) -> None:
    """Response by direction; a bar looks the same after half a turn."""
    bars, edges = responses[:_DIRECTIONS], responses[_DIRECTIONS : 3 * _DIRECTIONS]
    angles = np.linspace(0, 2 * math.pi, 2 * _DIRECTIONS + 1)
    for values, colour in ((np.tile(bars, 2), BLUE), (edges, ORANGE)):
        axes.plot(angles, np.append(values, values[0]), color=colour, linewidth=1.2)
    axes.set_xticks(np.arange(0, 2 * math.pi, math.pi / 4), [""] * 8)
    axes.set_yticks([])
    axes.spines["polar"].set_color(GREY)
    axes.set_ylim(0, float(max(bars.max(), edges.max())) * 1.05 or 1)
