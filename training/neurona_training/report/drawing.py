"""What all charts share: colours, figures, and their form in a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Distinguishable with any colour vision: M. Okabe and K. Ito, Color Universal Design (2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, GREY, PALE = "#222222", "#767676", "#E4E4E4"
SIGNED = "RdBu_r"  # colour map: white at 0, blue below, red above
DOTS_PER_INCH = 120
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


def make_picture(figure: Figure, description: str) -> Picture:
    """Renders a figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor="white", metadata={"Software": None})
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


def shorten(text: str, limit: int = 22) -> str:
    """Cuts a text to `limit` characters, the last one an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def escape_math(text: str) -> str:
    """Escapes dollar signs, between which matplotlib reads formulas."""
    return text.replace("$", r"\$")
