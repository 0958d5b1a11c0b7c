"""A drawing of the network: units and connections, maps, or steps of time."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase

from neurona_training.architectures.forecast import Forecast
from neurona_training.architectures.input_layers import Temperature
from neurona_training.learning.calibration import find_temperature
from neurona_training.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    Section,
    draw_image,
    escape_math,
    make_picture,
    new_figure,
    shorten,
)
from neurona_training.report.network_layers import Layer, format_shape
from neurona_training.report.results import RunResults
from neurona_training.report.weights import input_names

_MAX_CIRCLES = 9  # in a column of units; more are left out in its middle
_MAX_NUMBERS = 12  # connections whose weights are written beside them
_WIDTH = 9.5  # inches

# What happens in a cell at each step, for students who see it for the first time.
_CELL_EQUATIONS = {
    "RNN": (
        r"$h_t = \tanh(W\,x_t + U\,h_{t-1} + b)$",
        "new state = input and last state, weighted",
    ),
    "LSTM": (
        r"$i_t = \sigma(W_i x_t + U_i h_{t-1} + b_i)$",
        "input gate: how much of the new enters",
        r"$f_t = \sigma(W_f x_t + U_f h_{t-1} + b_f)$",
        "forget gate: how much of the memory stays",
        r"$o_t = \sigma(W_o x_t + U_o h_{t-1} + b_o)$",
        "output gate: how much of the memory is shown",
        r"$g_t = \tanh(W_g x_t + U_g h_{t-1} + b_g)$",
        "candidate: what could be remembered",
        r"$c_t = f_t \cdot c_{t-1} + i_t \cdot g_t$",
        "memory cell",
        r"$h_t = o_t \cdot \tanh(c_t)$",
        "state, which the next layer reads",
    ),
    "GRU": (
        r"$r_t = \sigma(W_r x_t + U_r h_{t-1} + b_r)$",
        "reset gate: how much of the state is read",
        r"$z_t = \sigma(W_z x_t + U_z h_{t-1} + b_z)$",
        "update gate: how much of the state stays",
        r"$n_t = \tanh(W_n x_t + r_t \cdot U_n h_{t-1} + b_n)$",
        "candidate: what could replace it",
        r"$h_t = z_t \cdot h_{t-1} + (1 - z_t) \cdot n_t$",
        "state, which the next layer reads",
    ),
}


def architecture_section(results: RunResults) -> Section:
    """The drawing, and the table of layers with output sizes and parameters."""
    layers = results.layers
    words = ["layer", "parameter"]
    if any(isinstance(one, RNNBase) for one in results.network.modules()):
        figure = _draw_steps(results)
        caption = "Each column is one step of time; all steps use the same weights."
        words += (
            ["state", "gate"] if _recurrent_layers(results)[0].mode != "RNN_TANH" else ["state"]
        )
    elif any(layer.is_map for layer in layers):
        figure = _draw_maps(results)
        caption = "From the picture on the left to the answer on the right."
        words += ["map", "kernel", "convolution", "pooling"]
    else:
        figure = _draw_units(results)
        caption = (
            "Circles are units, lines are weights: red above zero, blue below, strong ones darker."
        )
        words += ["unit", "weight"]
    total = sum(layer.parameters for layer in layers)
    lines = [["layer", "what it does", "output", "parameters"]]
    for layer in layers:
        count = f"{layer.parameters:,}" if layer.parameters else ""
        lines.append([layer.name, layer.kind, format_shape(layer.shape), count])
    if isinstance(results.network, Temperature):
        temperature = find_temperature(results.network)
        lines.append(["temperature", f"scores divided by {temperature:.3g}", lines[-1][2], ""])
    lines.append(["together", "", "", f"{total:,}"])
    for module in results.network.modules():
        if isinstance(module, Forecast):
            caption += f" The answer is: {module.describe()}."
    caption += " The table has every layer; the sizes are those of one test row."
    return Section(
        "The network",
        caption,
        (make_picture(figure, "a drawing of the network's layers"),),
        lines,
        tuple(words),
    )


def _blank_axes(figure: Figure) -> Axes:
    """Axes as large as the figure."""
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return axes


# Units and connections


@dataclass(frozen=True)
class _Column:
    """Units side by side: `weights` (units, units before) lead to them."""

    size: int
    title: str
    weights: NDArray[Any] | None
    thresholds: NDArray[Any] | None = None


def _draw_units(results: RunResults) -> Figure:
    columns = _unit_columns(results)
    shown = [_shown_indices(column.size) for column in columns]
    lines = max(column.title.count("\n") + 1 for column in columns)
    height = max(1.4, 0.36 * max(map(len, shown)) + 0.3 + 0.2 * lines)
    figure = new_figure(min(_WIDTH, 2.4 * len(columns) + 1.6), height)
    axes = _blank_axes(figure)
    tallest = max(map(len, shown))
    places = [
        {
            unit: (2.6 * index, -(row - (len(units) - 1) / 2))
            for row, unit in enumerate(units)
            if unit is not None
        }
        for index, units in enumerate(shown)
    ]
    for index, (column, units, here) in enumerate(zip(columns, shown, places, strict=True)):
        x = 2.6 * index
        face = "white" if index else PALE
        if None in units:
            y = -(units.index(None) - (len(units) - 1) / 2)
            axes.text(x, y, "⋮", ha="center", va="center", fontsize=13, color=GREY)
        for unit, (_, y) in here.items():
            axes.add_patch(Circle((x, y), 0.3, facecolor=face, edgecolor=INK, zorder=3))
            if column.thresholds is not None:
                text = f"≥{column.thresholds[unit]:.3g}".replace("-", "\N{MINUS SIGN}")
                axes.text(x, y, text, ha="center", va="center", fontsize=6.5, zorder=4)
        axes.text(
            x, -tallest / 2 - 0.35, column.title, ha="center", va="top", fontsize=8.5, color=INK
        )
    _draw_connections(axes, columns, places)
    _name_units(axes, results, columns, places)
    axes.set_ylim(-tallest / 2 - 0.6 - 0.55 * lines, tallest / 2 + 0.2)
    axes.set_xlim(-2.4, 2.6 * (len(columns) - 1) + 2.4)
    axes.set_aspect("equal")
    return figure


def _unit_columns(results: RunResults) -> list[_Column]:
    columns: list[_Column] = []
    for layer in results.layers:
        module: Any = layer.module
        weights = getattr(module, "weight", None)
        if module is None and layer.name == "linear":
            weights = next(one for one in results.network.parameters() if one.ndim == 2)
        if not isinstance(weights, Tensor) or weights.ndim != 2:
            continue
        values = weights.detach().numpy()
        if not columns:
            columns.append(_Column(values.shape[1], f"{values.shape[1]:,} inputs", None))
        words = layer.kind.split(", ")
        units = f"{len(values):,} unit{'s' * (len(values) != 1)}"
        activation = ", ".join(one for one in words[2:] if one)
        if words[0] == "threshold":
            activation = "threshold"
        threshold = getattr(module, "threshold", None)
        columns.append(
            _Column(
                len(values),
                "\n".join([units, *activation.split(", ")]).strip(),
                values,
                None if threshold is None else threshold.detach().numpy(),
            )
        )
    return columns


def _shown_indices(size: int) -> list[int | None]:
    if size <= _MAX_CIRCLES:
        return list(range(size))
    half = _MAX_CIRCLES // 2
    return [*range(half), None, *range(size - half, size)]


def _draw_connections(
    axes: Axes, columns: list[_Column], places: list[dict[int, tuple[float, float]]]
) -> None:
    total = sum(len(before) * len(after) for before, after in pairwise(places))
    for index, column in enumerate(columns[1:], 1):
        weights = column.weights
        assert weights is not None  # noqa: S101 - only the first column has none
        largest = float(np.abs(weights).max()) or 1.0
        for before, start in places[index - 1].items():
            for after, end in places[index].items():
                weight = float(weights[after, before])
                colour = to_rgba(RED if weight > 0 else BLUE, 0.12 + 0.88 * abs(weight) / largest)
                axes.plot(*zip(start, end, strict=True), color=colour, linewidth=1.1, zorder=1)
                if total <= _MAX_NUMBERS:
                    x = start[0] + 0.36 * (end[0] - start[0])
                    y = start[1] + 0.36 * (end[1] - start[1])
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                    text = f"{weight:.3g}".replace("-", "\N{MINUS SIGN}")
                    axes.text(
                        *(x, y, text), ha="center", va="center", fontsize=7.5, bbox=box, zorder=2
                    )


def _name_units(
    axes: Axes,
    results: RunResults,
    columns: list[_Column],
    places: list[dict[int, tuple[float, float]]],
) -> None:
    """Names the inputs on the left and the outputs on the right."""
    data = results.data
    if data.kind == "images":
        thumbnail = axes.inset_axes((-2.2, -0.9, 1.8, 1.8), transform=axes.transData)
        draw_image(thumbnail, results.test_input(0), results.brightest)
    else:
        names = input_names(results, columns[0].size)
        for unit, (x, y) in places[0].items():
            text = escape_math(shorten(names[unit], 18))
            axes.text(x - 0.45, y, text, ha="right", va="center", fontsize=8, color=INK)
    outputs = data.labels if len(data.labels) == columns[-1].size else ()
    if not outputs and not data.is_classification:
        outputs = tuple(value.name for value in data.values)
    for unit, (x, y) in places[-1].items():
        if unit < len(outputs):
            text = escape_math(shorten(outputs[unit], 18))
            axes.text(x + 0.45, y, text, ha="left", va="center", fontsize=8, color=INK)


# Maps


@dataclass(frozen=True)
class _Stage:
    """Neighbouring layers with outputs of one size."""

    title: str
    shape: tuple[int, ...]
    trained: bool


def _stages(layers: tuple[Layer, ...]) -> list[_Stage]:
    stages: list[tuple[str, int, tuple[int, ...], bool]] = []
    for layer in layers:
        if not layer.shape or layer.kind.startswith(("scaling", "other", "in training")):
            continue
        title = layer.kind.split(":")[0].split(",")[0]
        trained = layer.parameters > 0
        if stages and stages[-1][0] == title and stages[-1][2] == layer.shape:
            stages[-1] = (title, stages[-1][1] + 1, layer.shape, trained)
        else:
            stages.append((title, 1, layer.shape, trained))
    return [
        _Stage(title if count == 1 else f"{count} x {title}", shape, trained)
        for title, count, shape, trained in stages
    ]


def _draw_maps(results: RunResults) -> Figure:
    stages = _stages(results.layers)
    height = 2.9
    figure = new_figure(_WIDTH, height)
    axes = _blank_axes(figure)
    columns = len(stages) + 1
    step = _WIDTH / columns
    tallest = max(stage.shape[1] for stage in stages if len(stage.shape) == 3)
    picture = results.test_input(0)
    tallest = max(tallest, *picture.shape[-2:])
    side = min(1.2, 0.86 * step)
    font_size = 8 if step > 0.8 else 7
    wrap = max(8, int(0.92 * step * 72 / font_size / 0.6))

    def label(x: float, title: str, size: str) -> None:
        title = "\n".join(textwrap.wrap(title, wrap, break_long_words=False))
        axes.text(x, 0.98, title, ha="center", va="bottom", fontsize=font_size, color=INK)
        axes.text(x, -0.98, size, ha="center", va="top", fontsize=font_size, color=GREY)

    thumbnail = axes.inset_axes(
        (step / 2 - side / 2, -side / 2, side, side), transform=axes.transData
    )
    draw_image(thumbnail, picture, results.brightest)
    label(step / 2, "picture", f"{picture.shape[-1]} x {picture.shape[-2]}\npixels")
    for index, stage in enumerate(stages, 1):
        x = step * (index + 0.5)
        if index:
            axes.annotate(
                "",
                (x - 0.42 * side - 0.02, 0),
                (x - step + 0.5 * side, 0),
                arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 0.9},
                zorder=0,
            )
        colour = BLUE if stage.trained else GREEN
        if len(stage.shape) == 3:
            maps, rows, across = stage.shape
            _draw_stack(axes, x, side * 0.8, (maps, rows, across), tallest, colour)
            label(x, stage.title, f"{maps:,} of\n{rows} x {across}")
        else:
            tall = 0.25 + 0.13 * np.log2(stage.shape[0] + 1)
            axes.add_patch(
                Rectangle((x - 0.05, -tall / 2), 0.1, tall, facecolor=colour, edgecolor=INK, lw=0.5)
            )
            label(x, stage.title, f"{stage.shape[0]:,}")
    axes.set_xlim(0, _WIDTH)  # inches, as the figure
    axes.set_ylim(-0.52 * height, 0.48 * height)
    return figure


def _draw_stack(
    axes: Axes, x: float, side: float, shape: tuple[int, int, int], tallest: int, colour: str
) -> None:
    """Sheets behind each other: more for more maps, larger for larger ones."""
    maps, height, width = shape
    sheets = max(1, round(np.log2(maps) + 1))
    high = side * max((height / tallest) ** 0.5, 0.16)
    wide = high * width / height
    depth = min(0.05, 0.45 * side / sheets)
    shift = depth * (sheets - 1) / 2
    for sheet in reversed(range(sheets)):
        left, bottom = x - wide / 2 - shift + sheet * depth, -high / 2 - shift + sheet * depth
        corners = [
            (left, bottom),
            (left + wide, bottom),
            (left + wide, bottom + high),
            (left, bottom + high),
        ]
        face = to_rgba(colour, 0.35)
        axes.add_patch(Polygon(corners, facecolor="white", edgecolor="none", zorder=2))
        axes.add_patch(Polygon(corners, facecolor=face, edgecolor=INK, linewidth=0.4, zorder=2))


# Steps of time


def _recurrent_layers(results: RunResults) -> list[Any]:
    return [one for one in results.network.modules() if isinstance(one, RNNBase)]


def _draw_steps(results: RunResults) -> Figure:
    recurrent = _recurrent_layers(results)
    rows = [(one, level) for one in recurrent for level in range(one.num_layers)]
    encoders = [
        layer.kind.split(":")[0].split(",")[0]
        for layer in results.layers
        if layer.shape
        and len(layer.shape) == 2
        and not layer.kind.startswith("scaling")
        and not any(isinstance(one, RNNBase) for one in (layer.module or nn.Identity()).modules())
    ]
    mode = recurrent[0].mode.removesuffix("_TANH").removesuffix("_RELU")
    equations = _CELL_EQUATIONS[mode]
    levels = ["input", *encoders, *(f"{mode}, {one.hidden_size} units" for one, _ in rows)]
    height = max(0.55 * (len(levels) + 2) + 0.4, 0.24 * len(equations) + 0.5, 2.2)
    figure = new_figure(_WIDTH, height)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for axes in (left, right):
        axes.set_axis_off()
    steps = ("1", "2", "3", "…", "T")
    for column, step in enumerate(steps):
        x = 1.5 * column
        if step == "…":
            for level in range(len(levels)):
                left.text(x, level, "…", ha="center", va="center", fontsize=12, color=GREY)
            continue
        left.text(x, -0.55, f"step {step}", ha="center", va="top", fontsize=8.5, color=GREY)
        for level, title in enumerate(levels):
            is_cell = level > len(encoders)
            text = rf"$x_{{{step}}}$" if not level else mode if is_cell else "encoded"
            face = to_rgba(BLUE if is_cell else ORANGE if level else GREY, 0.25)
            _draw_box(left, x, level, text, face)
            if level:
                _draw_arrow(left, (x, level - 0.73), (x, level - 0.27))
            if not column:
                left.text(
                    *(x - 0.7, level, "\n".join(textwrap.wrap(title, 16))),
                    ha="right", va="center", fontsize=8, color=INK,
                )  # fmt: skip
    first_cell = 1 + len(encoders)
    for level, (one, _) in enumerate(rows, first_cell):
        for column in range(len(steps) - 1):
            height = float(level)
            start, end = (1.5 * column + 0.47, height), (1.5 * column + 1.03, height)
            if one.bidirectional:
                start, end = (start[0], level + 0.1), (end[0], level + 0.1)
                _draw_arrow(left, (end[0], level - 0.1), (start[0], level - 0.1))
            _draw_arrow(left, start, end)
    x, top = 1.5 * (len(steps) - 1), len(levels)
    _draw_arrow(left, (x, top - 0.73), (x, top - 0.27))
    outputs = len(results.data.labels) or len(results.data.values)
    noun = "class" if results.data.is_classification else "value"
    plural = noun if outputs == 1 else "classes" if noun == "class" else "values"
    _draw_box(left, x, top, "answer", to_rgba(GREEN, 0.25))
    left.text(x - 0.6, top, f"{outputs} {plural}", ha="right", va="center", fontsize=8, color=INK)
    left.set_xlim(-2.6, x + 0.7)
    left.set_ylim(-1.0, top + 0.5)
    right.set_ylim(max(len(equations), 7), -1)
    right.text(0, -0.6, "In a cell at step t:", fontsize=9, color=INK, va="center")
    for line, text in enumerate(equations):
        is_formula = text.startswith("$")
        right.text(
            *(0.02 if is_formula else 0.08, line + (0.35 if is_formula else 0.2), text),
            fontsize=9.5 if is_formula else 8,
            color=INK if is_formula else GREY,
            va="center",
        )
    return figure


def _draw_box(axes: Axes, x: float, y: float, text: str, face: Any) -> None:
    box = FancyBboxPatch(
        (x - 0.42, y - 0.22),
        *(0.84, 0.44),
        boxstyle="round,pad=0.03,rounding_size=0.08",
        facecolor=face,
        edgecolor=INK,
        linewidth=0.7,
    )
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=INK)


def _draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=8,
            color=GREY,
            linewidth=1.0,
            shrinkA=0,
            shrinkB=0,
        )
    )
