"""What the first layer looks for: its kernels, or its weights on each pixel or column."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from neurona_training.report.drawing import (
    BLUE,
    INK,
    RED,
    SIGNED,
    bare,
    figure,
    literal,
    plain,
    short,
)
from neurona_training.report.story import Story

_MOST_KERNELS = 64
_MOST_BARS = 40  # columns
_MOST_UNITS = 4  # whose weights are bars; more of them as a map of colours


def weights(story: Story) -> tuple[Figure, str] | None:
    """The picture and what it shows; None for a network without such a layer."""
    found = first_layer(story.network)
    if found is None:
        return None
    name, values = found
    layer = name.rpartition(".")[0].removeprefix("network.") or name
    inputs = story.data.train.inputs
    if values.ndim == 4:
        says = f"The {len(values)} kernels of the first layer, {layer!r}"
        coloured = values.shape[1] == 3
        says += ": colour by colour" if coloured else ": blue below zero, red above"
        return _tiles(values if coloured else values.mean(axis=1)), says
    if story.data.kind == "images" and values.shape[1] == np.prod(inputs.shape[1:]):
        shape = inputs.shape[-2:]
        planes = values.reshape(len(values), -1, *shape).mean(axis=1)
        says = (
            f"The weights of the first layer, {layer!r}, on each pixel: blue below zero, red above"
        )
        return _tiles(planes), says
    says = f"The weights of the first layer, {layer!r}, on what comes in"
    return _columns(story, values), says


def first_layer(network: nn.Module) -> tuple[str, NDArray[Any]] | None:
    """The first parameter that joins inputs to units: (units, inputs) or 4 axes of kernels."""
    tables = {id(one.weight) for one in network.modules() if isinstance(one, nn.Embedding)}
    for name, values in network.named_parameters():
        if id(values) not in tables and values.ndim in (2, 4):
            return name, values.detach().numpy()
    for name, kernels in network.named_buffers():  # learned without gradients
        if kernels.ndim == 4 and kernels.is_floating_point() and kernels.shape[-1] > 1:
            return name, kernels.numpy()
    return None


def _tiles(kernels: NDArray[Any]) -> Figure:
    """(units, height, width), or (units, 3, height, width) in colour; each scaled by itself."""
    kernels = kernels[:_MOST_KERNELS]
    across = min(8 if len(kernels) <= 32 else 12, len(kernels))
    down = -(-len(kernels) // across)
    side = min(1.15, 9.5 / across)
    drawn = figure(across * side + 0.1, down * side + 0.1)
    for axes in (grid := drawn.subplots(down, across, squeeze=False)).flat:
        axes.set_axis_off()
    for kernel, axes in zip(kernels, grid.flat, strict=False):
        axes.set_axis_on()
        bare(axes)
        most = float(np.abs(kernel).max()) or 1.0
        if kernel.ndim == 3:
            axes.imshow(kernel.transpose(1, 2, 0) / (2 * most) + 0.5)
        else:
            axes.imshow(kernel, cmap=SIGNED, vmin=-most, vmax=most)
    return drawn


def _columns(story: Story, values: NDArray[Any]) -> Figure:
    names = [literal(short(name, 26)) for name in _names(story, values.shape[1])]
    if len(values) <= _MOST_UNITS and len(names) <= _MOST_BARS:
        return _bars(story, values, names)
    drawn = figure(9.5, min(9.0, 0.26 * len(names) + 1.3))
    axes = drawn.subplots()
    most = float(np.abs(values).max()) or 1.0
    shown = axes.imshow(
        values.T, cmap=SIGNED, vmin=-most, vmax=most, aspect="auto", interpolation="nearest"
    )
    axes.set_xlabel("unit", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    if len(names) <= _MOST_BARS:
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
    else:
        axes.set_ylabel("input", fontsize=9)
    axes.spines[:].set_visible(False)
    drawn.colorbar(shown, ax=axes, shrink=0.8, pad=0.01).outline.set_visible(False)
    return drawn


def _bars(story: Story, values: NDArray[Any], names: list[str]) -> Figure:
    drawn = figure(min(9.5, 3.0 + 2.6 * len(values)), 0.27 * len(names) + 1.0)
    labels = story.data.labels if len(story.data.labels) == len(values) else ()
    for unit, axes in enumerate(drawn.subplots(1, len(values), sharey=True, squeeze=False).flat):
        plain(axes)
        axes.grid(visible=False, axis="y")
        row = values[unit]
        axes.barh(range(len(row)), row, color=[RED if one > 0 else BLUE for one in row])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(row)), names)
        axes.set_ylim(len(row) - 0.4, -0.6)
        if len(values) > 1:
            title = labels[unit] if labels else f"unit {unit + 1}"
            axes.set_title(literal(short(title)), fontsize=9.5, color=INK)
    return drawn


def _names(story: Story, count: int) -> list[str]:
    """Of the inputs; behind one-hot steps there are more of them than the caller's columns."""
    data = story.data
    hot: list[str] = []
    for given in data.inputs:
        if given.axes == ("batch",):
            hot += [f"{given.name} is {category}" for category in given.categories]
    numbers = count - len(hot)
    whole = data.test.inputs.shape[-1] if not data.input.categories else 0
    if hot and numbers == whole:
        return [*(story.columns(numbers) if numbers else []), *hot]
    return story.columns(count)
