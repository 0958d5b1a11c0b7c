"""What a network of one or two inputs answers everywhere: decision border, surface or curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from neurona_training.architectures.classic import Threshold
from neurona_training.architectures.input_layers import Features
from neurona_training.learning.evaluation import softmax
from neurona_training.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    Section,
    escape_math,
    make_picture,
    new_figure,
    shorten,
    spread_rows,
    style_plot,
)
from neurona_training.report.results import RunResults

_POINTS = 160  # along each axis of the plane
_MAX_ROWS = 800  # training rows that are drawn
_COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#8a5f00", GREY)
_MAX_LINES = 40  # units of the first layer whose lines are drawn


def decision_border_section(results: RunResults) -> Section | None:
    """The plane of two inputs, or the curve of one; None for other data."""
    data = results.data
    is_plain = data.kind == "rows" and len(data.inputs) == 1 and not data.input.categories
    width = data.test.inputs.shape[-1] if is_plain else 0
    if not results.fit_result.best_epoch:
        return None  # set by hand for 0 and 1: what lies between means nothing
    if width == 2 and (not data.is_classification or len(data.labels) <= len(_COLOURS)):
        figure = _draw_plane(results)
        if data.is_classification:
            title = "The decision border"
            caption = (
                "The answer for every pair of inputs: colour is the class, pale where it is not "
                "sure, and white is the border. Points are training rows, in the colour of their "
                "true class."
            )
            if _first_lines(results.network):
                caption += (
                    " Grey lines: where a unit of the first layer changes its sign. One line "
                    "cannot separate XOR, two can."
                )
            return _section(title, caption, figure, ("decision border",))
        caption = "The predicted value for every pair of inputs; points are training rows."
        return _section("The answer everywhere", caption, figure, ())
    if width == 1 and not data.is_classification:
        caption = (
            "The curve that the network has learned, and the training rows. It follows them where "
            "there are some, and says nothing reliable outside."
        )
        return _section("The function that it learned", caption, _draw_curve(results), ())
    return None


def _section(title: str, caption: str, figure: Figure, words: tuple[str, ...]) -> Section:
    return Section(title, caption, (make_picture(figure, title.lower()),), words=words)


def _answers(results: RunResults, rows: NDArray[Any]) -> NDArray[Any]:
    inputs = torch.from_numpy(rows.astype(results.data.test.inputs.dtype))
    with torch.inference_mode():
        outputs = results.network(inputs).numpy()
    return softmax(outputs) if results.data.is_classification else outputs


def _draw_plane(results: RunResults) -> Figure:
    data = results.data
    train = data.train.inputs
    low, high = np.nanmin(train, axis=0), np.nanmax(train, axis=0)  # values may be missing
    margin = 0.25 * np.maximum(high - low, 1e-6)
    low, high = low - margin, high + margin
    x, y = (np.linspace(low[axis], high[axis], _POINTS) for axis in (0, 1))
    plane = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    answers = _answers(results, plane)
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    figure = new_figure(5.6, 4.8)
    axes = figure.subplots()
    style_plot(axes)
    axes.grid(visible=False)
    if data.is_classification:
        colours = np.array([to_rgb(one) for one in _COLOURS[: len(data.labels)]])
        chance = 1 / len(data.labels)
        label = answers.argmax(axis=1)
        strength = (answers.max(axis=1) - chance) / (1 - chance)
        image = 1 - 0.55 * strength[:, None] * (1 - colours[label])
        axes.imshow(
            image.reshape(_POINTS, _POINTS, 3), extent=extent, origin="lower", aspect="auto"
        )
        _draw_lines(axes, results.network, extent)
    else:
        values = answers[:, 0].reshape(_POINTS, _POINTS)
        image = axes.contourf(x, y, values, levels=14, cmap="cividis")
        figure.colorbar(image, ax=axes, pad=0.02, label=escape_math(data.values[0].name))
    row_numbers = spread_rows(len(train), _MAX_ROWS)
    rows, targets = train[row_numbers], data.train.targets[row_numbers]
    for index, label in enumerate(data.labels or ("training rows",)):
        of_class = targets == index if data.is_classification else np.ones(len(rows), bool)
        axes.plot(
            *rows[of_class].T,
            "o",
            color=_COLOURS[index] if data.is_classification else "white",
            markersize=9 if len(rows) < 20 else 4,
            markeredgecolor=INK if len(rows) < 20 else "white",
            markeredgewidth=1.2 if len(rows) < 20 else 0.4,
            label=escape_math(shorten(label, 20)),
        )
    if data.is_classification:
        axes.legend(fontsize=8.5, loc="upper right", framealpha=0.9, edgecolor="none")
    names = results.column_names(2)
    axes.set_xlabel(escape_math(names[0]), fontsize=9)
    axes.set_ylabel(escape_math(names[1]), fontsize=9)
    axes.set_xlim(*extent[:2])
    axes.set_ylim(*extent[2:])
    return figure


def _first_lines(network: nn.Module) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Weights (units, 2) and constants (units,) of the first layer, in a caller's units.

    A unit changes its sign where weights @ x + constant is 0.
    """
    weights: Tensor
    for layer in network.modules():
        if isinstance(layer, Threshold):
            weights, constants = layer.weight, -layer.threshold
        elif isinstance(layer, nn.Linear) and layer.bias is not None:
            weights, constants = layer.weight, layer.bias
        else:
            continue
        if weights.shape[1] != 2 or len(weights) > _MAX_LINES:
            return None
        scales = [one for one in network.modules() if isinstance(one, Features)]
        with torch.inference_mode():
            zero, axes = torch.zeros(1, 2), torch.eye(2)
            offset = scales[0](zero)[0] if scales else zero[0]
            factor = (scales[0](axes) - offset).diagonal() if scales else torch.ones(2)
            return (weights * factor).numpy(), (weights @ offset + constants).numpy()
    return None


def _draw_lines(axes: Axes, network: nn.Module, extent: tuple[float, ...]) -> None:
    lines = _first_lines(network)
    if lines is None:
        return
    x = np.array(extent[:2])
    for weights, constant in zip(*lines, strict=True):
        if abs(weights[1]) > 1e-9:
            axes.plot(x, -(weights[0] * x + constant) / weights[1], color=GREY, linewidth=0.7)
        elif abs(weights[0]) > 1e-9:
            axes.axvline(-constant / weights[0], color=GREY, linewidth=0.7)


def _draw_curve(results: RunResults) -> Figure:
    data = results.data
    train = data.train.inputs[:, 0]
    low, high = float(np.nanmin(train)), float(np.nanmax(train))  # values may be missing
    margin = 0.15 * max(high - low, 1e-6)
    x = np.linspace(low - margin, high + margin, 400)
    figure = new_figure(7.0, 3.6)
    axes = figure.subplots()
    style_plot(axes)
    rows = spread_rows(len(train), _MAX_ROWS)
    axes.plot(
        train[rows],
        data.train.targets[rows, 0],
        "o",
        color=GREY,
        markersize=4,
        alpha=0.6,
        markeredgewidth=0,
        label="training rows",
    )
    answers = _answers(results, x[:, None])
    axes.plot(x, answers[:, 0], color=BLUE, linewidth=2, label="network")
    axes.set_xlabel(escape_math(results.column_names(1)[0]), fontsize=9)
    axes.set_ylabel(escape_math(data.values[0].name), fontsize=9)
    axes.legend(fontsize=9, framealpha=0.85, edgecolor="none")
    return figure
