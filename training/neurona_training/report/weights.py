"""The weights before and after training: of the first layer in pictures, of all in histograms."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.rnn import RNNBase

from neurona_training.architectures.columns import EncodeColumns
from neurona_training.architectures.input_layers import without_wrappers
from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    RED,
    SIGNED,
    Section,
    draw_tiles,
    escape_math,
    make_picture,
    new_figure,
    shorten,
    signed_tile,
    style_plot,
)
from neurona_training.report.results import RunResults

_MAX_KERNELS = 64
_MAX_BARS = 40  # columns
_MAX_HISTOGRAMS = 8  # layers
_MAX_BAR_UNITS = 4  # whose weights are bars; more units are a colour map


def weights_section(results: RunResults) -> Section | None:
    """First layer and all weights, before and after training; None without such a layer."""
    layer_weights = first_layer(without_wrappers(results.network))
    if layer_weights is None:
        return None
    name, values = layer_weights
    before = starting_values(results, name)
    started_empty = before is not None and not np.any(before)
    if before is not None and (np.array_equal(before, values) or started_empty):
        before = None  # set by hand, or frozen; or nothing to see
    layer = name.rpartition(".")[0].rpartition("network.")[2] or name
    inputs = results.data.train.inputs
    if values.ndim == 4:
        is_rgb = values.shape[1] == 3
        caption = f"The {len(values)} kernels of the first layer, {layer!r}"
        caption += ": colour by colour" if is_rgb else ": blue below zero, red above"
        kernels = [one if is_rgb else one.mean(axis=1) for one in _both(before, values)]
        learned = np.abs(values).reshape(len(values), -1).any(axis=1)
        if not learned.all():  # planes of a neocognitron that no pattern was left for
            caption += f"; {int(learned.sum())} have learned something"
        figure = _draw_kernels([one[learned] if learned.any() else one for one in kernels])
    elif results.data.kind == "images" and values.shape[1] == np.prod(inputs.shape[1:]):
        shape = inputs.shape[-2:]
        planes = [one.reshape(len(one), -1, *shape).mean(axis=1) for one in _both(before, values)]
        caption = (
            f"The weights of the first layer, {layer!r}, on each pixel: blue below zero, red above"
        )
        figure = _draw_kernels(planes)
    else:
        caption = f"The weights of the first layer, {layer!r}, on the inputs"
        figure = _draw_columns(results, before, values)
    pictures = [make_picture(figure, caption)]
    if before is not None:
        caption += ", before and after training: order comes out of random numbers"
        histograms = _draw_histograms(results)
        if histograms is not None:
            description = "histograms of the weights of each layer before and after training"
            pictures.append(make_picture(histograms, description))
            caption += (
                ". Below: how often each weight occurs in a layer; grey before training, blue "
                "after. Wide and flat means that strong connections have grown"
            )
    if started_empty:
        caption += "; at first all were zero"
    words = ("kernel", "weight") if values.ndim == 4 else ("weight",)
    return Section("What the first layer looks for", f"{caption}.", tuple(pictures), words=words)


def _both(before: NDArray[Any] | None, after: NDArray[Any]) -> list[NDArray[Any]]:
    return [after] if before is None else [before, after]


def starting_values(results: RunResults, name: str) -> NDArray[Any] | None:
    """A parameter before training, under its name without later wrappers; None if unknown."""
    initial = results.fit_result.starting_weights
    while name not in initial:
        _, separator, name = name.partition(".")
        if not separator:
            return None
    values: NDArray[Any] = initial[name].numpy()
    return values


def first_layer(network: nn.Module) -> tuple[str, NDArray[Any]] | None:
    """Name and weights of the first layer, (units, inputs) or kernels of 4 axes; None without.

    Embeddings are no such layer: their rows belong to categories.
    """
    tables = {id(one.weight) for one in network.modules() if isinstance(one, nn.Embedding)}
    for name, values in network.named_parameters():
        if id(values) not in tables and values.ndim in (2, 4):
            return name, values.detach().numpy()
    for name, kernels in network.named_buffers():  # learned without gradients
        if kernels.ndim == 4 and kernels.is_floating_point() and kernels.shape[-1] > 1:
            return name, kernels.numpy()
    return None


def _draw_kernels(states: list[NDArray[Any]]) -> Figure:
    """Draws kernels before and after training beside each other, or after alone.

    Each is (units, height, width), or (units, 3, height, width) in colour, and scaled alone.
    """
    count = min(len(states[0]), _MAX_KERNELS)
    width = 9.5 / len(states)
    across = min(8 if count <= 32 or len(states) > 1 else 12, count)
    down = -(-count // across)
    side = min(1.15, width / across)
    title_height = 0.3 if len(states) > 1 else 0.0
    figure = new_figure(len(states) * across * side + 0.1, down * side + 0.1 + title_height)
    grid = figure.subplots(1, len(states), squeeze=False)
    for kernels, axes, title in zip(states, grid.flat, ("before", "after"), strict=False):
        if len(states) > 1:
            axes.set_title(f"{title} training", fontsize=9.5, color=INK)
        tiles = []
        for kernel in kernels[:count]:
            largest = float(np.abs(kernel).max()) or 1.0
            if kernel.ndim == 3:
                tiles.append(kernel.transpose(1, 2, 0) / (2 * largest) + 0.5)
            else:
                tiles.append(signed_tile(kernel, largest))
        tiles += [np.ones_like(tiles[0])] * (across * down - count)
        rows = [tiles[first : first + across] for first in range(0, across * down, across)]
        draw_tiles(axes, rows)
    return figure


def _draw_columns(results: RunResults, before: NDArray[Any] | None, values: NDArray[Any]) -> Figure:
    names = [escape_math(shorten(name, 26)) for name in input_names(results, values.shape[1])]
    if len(values) <= _MAX_BAR_UNITS and len(names) <= _MAX_BARS:
        return _draw_bars(results, before, values, names)
    states = _both(before, values)
    figure = new_figure(9.5, min(9.0, max(1.8, 0.26 * len(names) + 1.3)))
    grid = list(figure.subplots(1, len(states), sharey=True, squeeze=False).flat)
    largest = max(float(np.abs(one).max()) for one in states) or 1.0
    for index, (state, axes) in enumerate(zip(states, grid, strict=True)):
        image = axes.imshow(
            state.T,
            cmap=SIGNED,
            vmin=-largest,
            vmax=largest,
            aspect="auto",
            interpolation="nearest",
        )
        gates = _gate_count(results, len(state))
        label = f"unit, of {gates} parts in turn" if gates > 1 else "unit"
        axes.set_xlabel(label, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.tick_params(labelsize=8, length=0)
        if len(states) > 1:
            title = ("before training", "after training")[index]
            axes.set_title(title, fontsize=9.5, color=INK)
        if not index:
            if len(names) <= _MAX_BARS:
                axes.set_yticks(range(len(names)), names, fontsize=8.5)
            else:
                axes.set_ylabel("input", fontsize=9)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=grid, shrink=0.8, pad=0.01).outline.set_visible(False)
    return figure


def _gate_count(results: RunResults, rows: int) -> int:
    """How many numbers each unit of a recurrent first layer has; 1 for another layer."""
    layers = [one for one in results.network.modules() if isinstance(one, RNNBase)]
    return rows // layers[0].hidden_size if layers else 1


def _draw_bars(
    results: RunResults, before: NDArray[Any] | None, values: NDArray[Any], names: list[str]
) -> Figure:
    figure = new_figure(min(9.5, 3.0 + 2.6 * len(values)), 0.27 * len(names) + 1.0)
    is_output = sum(one.ndim > 1 for one in results.network.parameters()) == 1
    labels = results.data.labels if is_output and len(results.data.labels) == len(values) else ()
    for unit, axes in enumerate(figure.subplots(1, len(values), sharey=True, squeeze=False).flat):
        style_plot(axes)
        axes.grid(visible=False, axis="y")
        row = values[unit]
        axes.barh(range(len(row)), row, color=[RED if one > 0 else BLUE for one in row])
        if before is not None:
            places = range(len(row))
            axes.plot(before[unit], places, "|", color=INK, markersize=9, markeredgewidth=1.4)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(row)), names)
        axes.set_ylim(len(row) - 0.4, -0.6)
        axes.set_xlabel("weight; black line: before training" if before is not None else "weight")
        if len(values) > 1:
            title = labels[unit] if labels else f"unit {unit + 1}"
            axes.set_title(escape_math(shorten(title)), fontsize=9.5, color=INK)
    return figure


def _draw_histograms(results: RunResults) -> Figure | None:
    """Weights of each layer before and after training; of many layers some, first to last."""
    layers = []
    for name, values in results.network.named_parameters():
        before = starting_values(results, name) if values.ndim > 1 else None
        if before is not None and before.shape == tuple(values.shape) and before.std() > 0:
            layers.append((name, before.ravel(), values.detach().numpy().ravel()))
    if not layers:
        return None
    count = min(_MAX_HISTOGRAMS, len(layers))
    shown_layers = [
        layers[index] for index in np.linspace(0, len(layers) - 1, count).round().astype(int)
    ]
    across = min(4, count)
    down = -(-count // across)
    figure = new_figure(9.5 * max(across, 2) / 4, 1.75 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for (name, before, after), axes in zip(shown_layers, grid.flat, strict=False):
        both = np.concatenate([before, after])
        # Not from the least to the largest: a few strong weights would leave no shape.
        edges = np.linspace(np.quantile(both, 0.002), np.quantile(both, 0.998), 41)
        style_plot(axes)
        axes.hist(before, bins=edges, color=GREY, alpha=0.45)
        axes.hist(after, bins=edges, color=BLUE, histtype="step", linewidth=1.4)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=7.5)
        title = name.removesuffix(".weight").rpartition("network.")[2]
        if match := re.search(r"weight_([ih])h_l(\d+)(_reverse)?$", title):
            source = "input" if match[1] == "i" else "state"
            backwards = " back" if match[3] else ""
            title = f"layer {int(match[2]) + 1}{backwards}, of the {source}"
        axes.set_title(title if len(title) <= 28 else f"…{title[-27:]}", fontsize=8.5, color=INK)
    return figure


def input_names(results: RunResults, count: int) -> list[str]:
    """Names of the inputs; of a table those of the columns that its own have become."""
    for module in results.network.modules():
        if isinstance(module, EncodeColumns) and len(module.encoding.names) == count:
            return list(module.encoding.names)
    return results.column_names(count)
