"""The weights of the first layer: its kernels, or its weights on each pixel or column."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from neurona_training.architectures.input_layers import without_wrappers
from neurona_training.report.drawing import (
    BLUE,
    INK,
    RED,
    SIGNED,
    escape_math,
    new_figure,
    shorten,
    style_image,
    style_plot,
)
from neurona_training.report.results import RunResults

_MAX_KERNELS = 64
_MAX_BARS = 40  # columns
_MAX_BAR_UNITS = 4  # whose weights are bars; more units are a colour map


def draw_weights(results: RunResults) -> tuple[Figure, str] | None:
    """The chart and its caption; None for a network without such a layer."""
    layer_weights = first_layer(without_wrappers(results.network))
    if layer_weights is None:
        return None
    name, values = layer_weights
    layer = name.rpartition(".")[0] or name
    inputs = results.data.train.inputs
    if values.ndim == 4:
        is_rgb = values.shape[1] == 3
        caption = f"The {len(values)} kernels of the first layer, {layer!r}"
        caption += ": colour by colour" if is_rgb else ": blue below zero, red above"
        return _draw_kernels(values if is_rgb else values.mean(axis=1)), caption
    if results.data.kind == "images" and values.shape[1] == np.prod(inputs.shape[1:]):
        shape = inputs.shape[-2:]
        planes = values.reshape(len(values), -1, *shape).mean(axis=1)
        caption = (
            f"The weights of the first layer, {layer!r}, on each pixel: blue below zero, red above"
        )
        return _draw_kernels(planes), caption
    caption = f"The weights of the first layer, {layer!r}, on the inputs"
    return _draw_columns(results, values), caption


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


def _draw_kernels(kernels: NDArray[Any]) -> Figure:
    """Draws (units, height, width), or (units, 3, height, width) in colour, each scaled alone."""
    kernels = kernels[:_MAX_KERNELS]
    across = min(8 if len(kernels) <= 32 else 12, len(kernels))
    down = -(-len(kernels) // across)
    side = min(1.15, 9.5 / across)
    figure = new_figure(across * side + 0.1, down * side + 0.1)
    for axes in (grid := figure.subplots(down, across, squeeze=False)).flat:
        axes.set_axis_off()
    for kernel, axes in zip(kernels, grid.flat, strict=False):
        axes.set_axis_on()
        style_image(axes)
        largest = float(np.abs(kernel).max()) or 1.0
        if kernel.ndim == 3:
            axes.imshow(kernel.transpose(1, 2, 0) / (2 * largest) + 0.5)
        else:
            axes.imshow(kernel, cmap=SIGNED, vmin=-largest, vmax=largest)
    return figure


def _draw_columns(results: RunResults, values: NDArray[Any]) -> Figure:
    names = [escape_math(shorten(name, 26)) for name in _input_names(results, values.shape[1])]
    if len(values) <= _MAX_BAR_UNITS and len(names) <= _MAX_BARS:
        return _draw_bars(results, values, names)
    figure = new_figure(9.5, min(9.0, 0.26 * len(names) + 1.3))
    axes = figure.subplots()
    largest = float(np.abs(values).max()) or 1.0
    image = axes.imshow(
        values.T, cmap=SIGNED, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest"
    )
    axes.set_xlabel("unit", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    if len(names) <= _MAX_BARS:
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
    else:
        axes.set_ylabel("input", fontsize=9)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01).outline.set_visible(False)
    return figure


def _draw_bars(results: RunResults, values: NDArray[Any], names: list[str]) -> Figure:
    figure = new_figure(min(9.5, 3.0 + 2.6 * len(values)), 0.27 * len(names) + 1.0)
    labels = results.data.labels if len(results.data.labels) == len(values) else ()
    for unit, axes in enumerate(figure.subplots(1, len(values), sharey=True, squeeze=False).flat):
        style_plot(axes)
        axes.grid(visible=False, axis="y")
        row = values[unit]
        axes.barh(range(len(row)), row, color=[RED if one > 0 else BLUE for one in row])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(row)), names)
        axes.set_ylim(len(row) - 0.4, -0.6)
        if len(values) > 1:
            title = labels[unit] if labels else f"unit {unit + 1}"
            axes.set_title(escape_math(shorten(title)), fontsize=9.5, color=INK)
    return figure


def _input_names(results: RunResults, count: int) -> list[str]:
    """Names of the inputs; one-hot encoding has made a column of each category."""
    data = results.data
    one_hot: list[str] = []
    for described in data.inputs:
        if described.axes == ("batch",):
            one_hot += [f"{described.name} is {category}" for category in described.categories]
    numeric = count - len(one_hot)
    expected = data.test.inputs.shape[-1] if not data.input.categories else 0
    if one_hot and numeric == expected:
        return [*(results.column_names(numeric) if numeric else []), *one_hot]
    return results.column_names(count)
