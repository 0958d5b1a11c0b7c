"""Where an image network looks: Grad-CAM on right and wrong pictures.

R. Selvaraju and others, Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, ICCV (2017).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional

from neurona_training.report.drawing import (
    INK,
    Section,
    draw_image,
    escape_math,
    make_picture,
    new_figure,
    shorten,
    style_image,
)
from neurona_training.report.feature_maps import layer_outputs, map_stages
from neurona_training.report.network_layers import Layer
from neurona_training.report.results import RunResults

_EXAMPLES = 6
_MIN_CELLS = 4  # across the maps: fewer would tell no place in the picture


def grad_cam_section(results: RunResults) -> Section | None:
    """Heat over right and wrong pictures; None for a network without maps."""
    data = results.data
    stages = map_stages(results.layers)
    if not stages or data.kind != "images" or not data.is_classification:
        return None
    large = [layer for layer in stages if min(layer.shape[1:]) >= _MIN_CELLS]
    layer = large[-1] if large else stages[-1]
    wrong = [
        row
        for row in results.worst_rows.tolist()
        if results.predictions[row].argmax() != data.test.targets[row]
    ][:_EXAMPLES]
    right = results.right_rows[:_EXAMPLES]
    pictures = []
    if right:
        figure = _draw_rows(results, layer, right, is_right=True)
        pictures.append(make_picture(figure, "where it looks in pictures that it got right"))
    if wrong:
        figure = _draw_rows(results, layer, wrong, is_right=False)
        pictures.append(make_picture(figure, "where it looks in pictures that it got wrong"))
    caption = (
        "Grad-CAM: yellow is where the picture speaks for a class, by the maps of layer "
        f"{layer.name!r} and their influence on its score. "
    )
    if right:
        caption += "First pictures that it got right. "
    if wrong:
        caption += (
            "Then wrong ones: below each the evidence for the class that it chose, and at the "
            "bottom for the true one. "
        )
    caption += (
        "A network may be right for a wrong reason, such as a mark at the border of X-rays "
        "from one hospital: here it would show."
    )
    return Section("Where it looks", caption, tuple(pictures), words=("Grad-CAM", "score"))


def evidence(results: RunResults, layer: Layer, row: int, label: int) -> NDArray[np.float32]:
    """How strongly each pixel's surroundings speak for a class: (height, width), 0 or more.

    Each map is weighted by the gradient of the class's logit against those of the other
    classes; what speaks against the class is left out. The gradient is the mean over a map, as
    in the paper, where the network averages its maps in the end. Where a fully connected layer
    reads them, each place has a gradient of its own (R. Draelos and L. Carin, Use HiResCAM
    instead of Grad-CAM, 2020), and maps that are negative too count from those of a blank
    picture.
    """
    images = torch.from_numpy(results.row_arrays([row])[0]).requires_grad_()
    logits, maps = layer_outputs(results.network, layer, images, with_gradient=True)
    others = torch.arange(logits.shape[1]) != label
    (gradient,) = torch.autograd.grad(logits[0, label] - logits[0, others].logsumexp(0), maps)
    strength = maps.detach()
    if any(one.kind == "mean of each map" for one in results.layers):
        gradient = gradient.mean(dim=(2, 3), keepdim=True)
    elif bool((strength < 0).any()):
        blank = torch.full_like(images, float(results.data.test.inputs.min()))
        strength = strength - layer_outputs(results.network, layer, blank)[1].detach()
    heat = functional.relu((gradient * strength).sum(dim=1, keepdim=True))
    size = images.shape[-2:]
    enlarged = functional.interpolate(heat, tuple(size), mode="bilinear", align_corners=False)
    values: NDArray[np.float32] = enlarged[0, 0].numpy()
    return values


def _draw_rows(results: RunResults, layer: Layer, rows: list[int], *, is_right: bool) -> Figure:
    data = results.data
    down = 2 if is_right else 3
    height = 1.62 * data.test.inputs.shape[-2] / data.test.inputs.shape[-1]
    figure = new_figure(9.5, min(2.4, max(0.7, height)) * down + 0.35)  # of wide pictures too
    grid = figure.subplots(down, _EXAMPLES, squeeze=False)
    brightest = results.brightest
    for axes in grid.flat:
        axes.set_axis_off()
    for row, column in zip(rows, grid.T, strict=False):
        true, predicted = int(data.test.targets[row]), int(results.predictions[row].argmax())
        column[0].set_axis_on()
        draw_image(column[0], results.test_input(row), brightest)
        title = f"true: {shorten(data.labels[true], 14)}"
        column[0].set_title(escape_math(title), fontsize=8, color=INK)
        for axes, label in zip(column[1:], (predicted, true), strict=False):
            axes.set_axis_on()
            _draw_heat(axes, results, evidence(results, layer, row, label), row)
            certainty = results.predictions[row, label]
            text = f"{shorten(data.labels[label], 12)}: {certainty:.0%}"
            axes.set_title(escape_math(text), fontsize=8, color=INK)
    return figure


def _draw_heat(axes: Axes, results: RunResults, heat: NDArray[Any], row: int) -> None:
    """The picture in grey, and over it the heat, whose largest value is yellow."""
    style_image(axes)
    pixels = results.test_input(row)
    plane = pixels if pixels.ndim == 2 else pixels.mean(axis=0)
    axes.imshow(plane, cmap="gray", vmin=0, vmax=results.brightest)
    largest = float(heat.max())
    if largest > 0:
        axes.imshow(heat / largest, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
