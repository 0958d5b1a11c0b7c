"""What all charts share: colours, figures, and their form in a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image

# Distinguishable with any colour vision: M. Okabe and K. Ito, Color Universal Design (2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, GREY, PALE = "#222222", "#767676", "#E4E4E4"
SIGNED = "RdBu_r"  # colour map: white at 0, blue below, red above
DOTS_PER_INCH = 120
_LARGE_NUMBER, _HUGE_NUMBER = 1e4, 1e8
_PIXELS_PER_INCH = 96  # of CSS


@dataclass(frozen=True)
class Picture:
    """A chart inside a page.

    png: base64.
    description: for readers who cannot see it.
    width: in CSS pixels.
    """

    png: str
    description: str
    width: int


@dataclass(frozen=True)
class Section:
    """One section of the page: a line on how to read it, pictures, a table.

    Args:
        title: of the section.
        caption: how to read it.
        pictures: in order.
        table: its first line is the head; None without.
        words: of the glossary, explained here unless an earlier section has done it.
    """

    title: str
    caption: str = ""
    pictures: tuple[Picture, ...] = ()
    table: list[list[str]] | None = None
    words: tuple[str, ...] = ()


def make_picture(figure: Figure, description: str) -> Picture:
    """Renders a figure as PNG."""
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", facecolor="white", metadata={"Software": None})
    # 256 colours are a third of the bytes, and a chart has no more.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        content, format="png", optimize=True
    )
    width = round(figure.get_size_inches()[0] * _PIXELS_PER_INCH)
    return Picture(base64.b64encode(content.getvalue()).decode(), description, width)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, drawn by Agg: no screen, no global state of pyplot."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_plot(axes: Axes) -> None:
    """Leaves two of the four edges, and a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def style_image(axes: Axes) -> None:
    """Leaves only a pale frame around an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(PALE)


def spread_rows(count: int, most: int) -> NDArray[np.int64]:
    """Indices of at most so many of `count` rows, from all of them at equal distances.

    The first rows would not do: a file may have its classes one after the other.
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def shorten(text: str, limit: int = 22) -> str:
    """Cuts a text to `limit` characters, the last one an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def format_number(value: float) -> str:
    """Four digits that count: `0.01234`, `68,060`, with a minus sign that is one."""
    if abs(value) >= _LARGE_NUMBER:
        digits = math.floor(math.log10(abs(value)))
        return f"{round(value, 3 - digits):,.0f}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def limit_ticks(axis: Axis, count: int = 5) -> None:
    """At most so many ticks, and commas in large numbers, so that they do not collide."""
    axis.set_major_locator(MaxNLocator(count))
    low, high = axis.get_view_interval()
    if _LARGE_NUMBER <= max(abs(low), abs(high)) < _HUGE_NUMBER:
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def escape_math(text: str) -> str:
    """Escapes dollar signs, between which matplotlib reads formulas."""
    return text.replace("$", r"\$")


def draw_image(axes: Axes, pixels: NDArray[Any], brightest: float) -> None:
    """Draws (height, width), or (channel, height, width) with one or three channels."""
    style_image(axes)
    if pixels.ndim == 3 and len(pixels) == 3:
        axes.imshow(np.clip(pixels.transpose(1, 2, 0) / max(brightest, 1e-9), 0, 1))
        return
    plane = pixels if pixels.ndim == 2 else pixels[0]
    axes.imshow(plane, cmap="gray", vmin=0, vmax=brightest)


def draw_tiles(axes: Axes, tiles: Sequence[Sequence[NDArray[Any]]], height: int = 48) -> None:
    """Draws rows of small pictures as one, which is much faster than axes for each.

    Args:
        axes: gets the width of all tiles as its x axis in units of tiles, their rows as y axis.
        tiles: rows of pictures (height, width, 3) of 0..1 and of the same shape.
        height: pixels of each tile, at least; they are enlarged by a whole factor.
    """
    first = tiles[0][0]
    factor = max(1, -(-height // first.shape[0]))
    high, wide = factor * first.shape[0], factor * first.shape[1]
    gap = max(1, round(0.07 * high))
    across = max(len(row) for row in tiles)
    canvas = np.ones((len(tiles) * (high + gap) - gap, across * (wide + gap) - gap, 3))
    for index, row in enumerate(tiles):
        for column, tile in enumerate(row):
            top, left = index * (high + gap), column * (wide + gap)
            enlarged = tile.repeat(factor, axis=0).repeat(factor, axis=1)
            canvas[top : top + high, left : left + wide] = enlarged
    axes.imshow(canvas, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([(wide + gap) * (column + 0.5) - gap / 2 for column in range(across)], [])
    axes.set_yticks([(high + gap) * (row + 0.5) - gap / 2 for row in range(len(tiles))], [])
    axes.xaxis.tick_top()


def image_tile(pixels: NDArray[Any], brightest: float) -> NDArray[Any]:
    """A picture, (height, width) or (channel, height, width), as (height, width, 3) of 0..1."""
    scaled = np.clip(pixels / max(brightest, 1e-9), 0, 1)
    if scaled.ndim == 2:
        return np.stack([scaled] * 3, axis=-1)
    planes = scaled if len(scaled) == 3 else [scaled[0]] * 3
    return np.stack(list(planes), axis=-1)


def signed_tile(values: NDArray[Any], largest: float) -> NDArray[Any]:
    """Numbers, (height, width), as colours: white at 0, blue below, red above."""
    scaled = 0.5 + 0.5 * values / (largest or 1.0)
    colours: NDArray[Any] = colormaps[SIGNED](np.clip(scaled, 0, 1))[..., :3]
    return colours
