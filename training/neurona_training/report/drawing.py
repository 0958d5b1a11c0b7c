"""What all pictures share: colours that everybody can tell apart, and how they get into a page."""

from __future__ import annotations

import base64
import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# M. Okabe and K. Ito, Color Universal Design (2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, GREY, PALE = "#222222", "#767676", "#E4E4E4"
SIGNED = "RdBu_r"  # white at 0, blue below, red above
DOTS_PER_INCH = 120


def figure(width: float, height: float) -> Figure:
    """In inches. Drawn by Agg, without a screen and without pyplot's global figures."""
    drawn = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def plain(axes: Axes) -> None:
    """No frame but the two axes, and lines that lead the eye."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)


def bare(axes: Axes) -> None:
    """A frame only, around an image."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(PALE)


def short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def literal(text: str) -> str:
    """For a label: matplotlib reads formulas between dollars, and a user's text has none."""
    return text.replace("$", r"\$")


def png(drawn: Figure) -> bytes:
    content = io.BytesIO()
    drawn.savefig(content, format="png", facecolor="white", metadata={"Software": None})
    return content.getvalue()


def embedded(drawn: Figure, says: str) -> str:
    """The picture as HTML. says: what it shows, for who cannot see it."""
    from html import escape

    width = round(drawn.get_size_inches()[0] * 96)
    coded = base64.b64encode(png(drawn)).decode()
    return f'<img src="data:image/png;base64,{coded}" alt="{escape(says)}" style="width:{width}px">'
