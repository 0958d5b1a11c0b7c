"""What deeper layers of an image network see: their maps, their fields, the pictures they like."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn

from neurona_training.report.drawing import (
    GREY,
    INK,
    RED,
    Section,
    draw_image,
    draw_tiles,
    image_tile,
    make_picture,
    new_figure,
    signed_tile,
    spread_rows,
)
from neurona_training.report.network_layers import Layer
from neurona_training.report.results import RunResults

_MAX_STAGES = 5
_MAX_NAME = 14  # characters of a layer's name
_MAX_MAPS = 8  # of each stage
_PATCH_ROWS, _PATCHES = 6, 8  # maps, and the patches of each
_LINE_ASPECT = 30  # of a line of patches, width by height at most
_SEARCHED_ROWS = 500  # test rows in which the patches are searched
_ROWS_AT_ONCE = 64
_PROBES = 16  # pictures with which a field is measured
_PROBE_PIXELS = 60_000  # of all of them together: fewer large ones


def feature_maps_section(results: RunResults) -> Section | None:
    """Maps, fields and favourite patches; None for a network without maps."""
    stages = map_stages(results.layers)
    if not stages or results.data.kind != "images":
        return None
    fields = [receptive_field(results, layer) for layer in stages]
    pictures = [make_picture(_draw_maps(results, stages, fields), "feature maps of one picture")]
    caption = (
        "One test picture on its way through the network. Left in each line: the picture, and in "
        "red the receptive field of one number in the middle of a map, the pixels that can change "
        "it; it grows from layer to layer. Right: the maps that react most. White is zero where "
        "there is red and blue; else bright is strong."
    )
    deep = _deep_stages(stages, fields)
    if deep:
        figure = _draw_patches(
            results, [stages[one] for one in deep], [fields[one] for one in deep]
        )
        pictures.append(make_picture(figure, "patches of test pictures that excite a map most"))
        caption += (
            " Below: for maps of deeper layers the patches of the test pictures to which they "
            "react most, each as large as the receptive field. Read a line from left to right: "
            "what do its patches have in common?"
        )
    return Section(
        "What deeper layers see", caption, tuple(pictures), words=("feature map", "receptive field")
    )


def map_stages(layers: tuple[Layer, ...]) -> list[Layer]:
    """The last trained layer of each size of maps, at most five; scaling is left out."""
    stages: dict[tuple[int, ...], Layer] = {}
    for layer in layers:
        is_preparation = layer.kind.startswith(("scaling", "resized"))
        if layer.is_map and not is_preparation and min(layer.shape[1:]) > 1:
            stages[layer.shape[1:]] = layer
    picked_stages = list(stages.values())
    if len(picked_stages) > _MAX_STAGES:
        picked_stages = [
            picked_stages[index]
            for index in np.linspace(0, len(picked_stages) - 1, _MAX_STAGES).round().astype(int)
        ]
    return picked_stages


def layer_outputs(
    network: nn.Module, layer: Layer, images: Tensor, *, with_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Runs the network; returns its outputs and the outputs of one layer, rows first."""
    assert layer.module is not None  # noqa: S101 - maps come from modules
    captures: list[Tensor] = []
    hook = layer.module.register_forward_hook(lambda *call: captures.append(cast(Tensor, call[2])))
    try:
        network.eval()
        with torch.set_grad_enabled(with_gradient):
            outputs = network(images)
    finally:
        hook.remove()
    return outputs, captures[-1]


def receptive_field(results: RunResults, layer: Layer) -> NDArray[Any]:
    """How strongly each pixel changes the number in the middle of the layer's maps, (h, w).

    Measured by gradients, over test pictures and noise: a largest value depends on one pixel
    of its window at a time. W. Luo and others, Understanding the Effective Receptive Field in
    Deep Convolutional Neural Networks, NeurIPS (2016).
    """
    inputs = results.data.test.inputs
    count = int(np.clip(_PROBE_PIXELS // np.prod(inputs.shape[-2:]), 2, _PROBES))
    random = np.random.default_rng(0)
    low, high = float(inputs.min()), float(inputs.max())
    noise = random.uniform(low, high, (count, *inputs.shape[1:])).astype(np.float32)
    probes = torch.from_numpy(np.concatenate([inputs[:count].astype(np.float32), noise]))
    probes.requires_grad_()
    _, maps = layer_outputs(results.network, layer, probes, with_gradient=True)
    middle = maps[..., maps.shape[-2] // 2, maps.shape[-1] // 2]
    signs = torch.from_numpy(random.choice([-1.0, 1.0], maps.shape[1]).astype(np.float32))
    (gradient,) = torch.autograd.grad((middle * signs).sum(), probes)
    strength = torch.nan_to_num(gradient.abs(), posinf=0.0)
    return strength.reshape(len(probes), -1, *inputs.shape[-2:]).mean(dim=(0, 1)).numpy()


def field_box(field: NDArray[Any]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the pixels that matter."""
    is_inside = field > 1e-6 * max(float(field.max()), 1e-30)
    rows, columns = np.flatnonzero(is_inside.any(axis=1)), np.flatnonzero(is_inside.any(axis=0))
    if not len(rows):
        return (0, 0, *field.shape)
    return (
        int(rows[0]),
        int(columns[0]),
        int(rows[-1] - rows[0] + 1),
        int(columns[-1] - columns[0] + 1),
    )


def _draw_maps(results: RunResults, stages: list[Layer], fields: list[NDArray[Any]]) -> Figure:
    row = (results.right_rows or [0])[0]
    image = torch.from_numpy(results.row_arrays([row])[0])
    brightest = results.brightest
    figure = new_figure(9.5, 1.28 * len(stages))
    grid = figure.subplots(len(stages), 2, squeeze=False, width_ratios=[1, _MAX_MAPS + 0.6])
    for layer, field, (left_axes, right_axes) in zip(stages, fields, grid, strict=True):
        _, outputs = layer_outputs(results.network, layer, image)
        maps = outputs[0].numpy()
        draw_image(left_axes, results.test_input(row), brightest)
        top, left, height, width = field_box(field)
        box = (left - 0.5, top - 0.5)
        left_axes.add_patch(Rectangle(box, width, height, fill=False, edgecolor=RED, linewidth=1.6))
        left_axes.set_title(
            f"{_short_name(layer)}: {height} x {width}", fontsize=7.5, loc="left", color=INK
        )
        largest = np.abs(maps).max(axis=(1, 2))
        order = np.sort(np.argsort(-largest, kind="stable")[:_MAX_MAPS])
        is_signed = bool((maps < 0).any())
        limit = float(largest.max()) or 1.0
        tiles = [
            signed_tile(maps[index], limit) if is_signed else image_tile(maps[index], limit)
            for index in order
        ]
        draw_tiles(right_axes, [tiles + [np.ones_like(tiles[0])] * (_MAX_MAPS - len(tiles))])
        names = [f"map {index + 1}" for index in order]
        right_axes.set_xticklabels(
            names + [""] * (_MAX_MAPS - len(names)), fontsize=7.5, color=GREY
        )
        right_axes.set_anchor("NW")
        left_axes.set_anchor("N")
    return figure


def _deep_stages(stages: list[Layer], fields: list[NDArray[Any]]) -> list[int]:
    """Up to two stages whose fields are more than a few pixels, and less than all if possible."""
    boxes = [field_box(field) for field in fields]
    areas = [
        height * width / field.size
        for (*_, height, width), field in zip(boxes, fields, strict=True)
    ]
    partial = [index for index, area in enumerate(areas) if index and area < 1]
    return partial[-2:] or [index for index in range(len(stages)) if index][-1:]


def _short_name(layer: Layer) -> str:
    """The end of a layer's path, by which it is found in the table of layers."""
    name = layer.name
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


def _draw_patches(results: RunResults, stages: list[Layer], fields: list[NDArray[Any]]) -> Figure:
    inputs = results.data.test.inputs
    inputs = inputs[spread_rows(len(inputs), _SEARCHED_ROWS)]
    brightest = float(inputs.max())
    figure = new_figure(4.75 * len(stages), 3.4)
    grid = figure.subplots(1, len(stages), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for layer, field, axes in zip(stages, fields, grid.flat, strict=False):
        axes.set_axis_on()
        maps = torch.cat(
            [
                layer_outputs(results.network, layer, images)[1]
                for images in torch.split(torch.from_numpy(inputs), _ROWS_AT_ONCE)
            ]
        )
        rows, _, height, width = maps.shape
        largest = maps.flatten(2).max(dim=2)
        spread = largest.values.std(dim=0)
        order = torch.argsort(spread, descending=True, stable=True)[:_PATCH_ROWS].sort().values
        # Of wide patches fewer, or the lines would be lower than their names.
        *_, high, wide = field_box(field)
        across = max(1, min(_PATCHES, rows, _LINE_ASPECT * high // wide))
        tiles, names = [], []
        for index in order.tolist():
            best = torch.argsort(largest.values[:, index], descending=True, stable=True)[:across]
            places = [divmod(int(largest.indices[row, index]), width) for row in best.tolist()]
            tiles.append(
                [
                    image_tile(_patch(inputs[row], field, place, (height, width)), brightest)
                    for row, place in zip(best.tolist(), places, strict=True)
                ]
            )
            names.append(f"map {index + 1}")
        draw_tiles(axes, tiles)
        axes.set_yticklabels(names, fontsize=7.5, color=INK)
        title = f"{_short_name(layer)}: patches that excite a map most"
        axes.set_title(title, fontsize=9, loc="left", color=INK)
    return figure


def _patch(
    image: NDArray[Any], field: NDArray[Any], place: tuple[int, int], grid: tuple[int, int]
) -> NDArray[Any]:
    """The part of a picture that the number at `place` in a map sees, moved inside the picture."""
    top, left, height, width = field_box(field)
    size = image.shape[-2:]
    starts = []
    for position, cells, first, length, pixels in zip(
        place, grid, (top, left), (height, width), size, strict=True
    ):
        shift = round((position - cells // 2) * pixels / cells)
        starts.append(int(np.clip(first + shift, 0, pixels - length)))
    patch: NDArray[Any] = image[..., starts[0] : starts[0] + height, starts[1] : starts[1] + width]
    return patch
