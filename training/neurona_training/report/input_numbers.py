"""One test row as the network gets it: a picture as its matrix of numbers, a table row, letters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import nn

from neurona_training.architectures.audio import LogMel
from neurona_training.architectures.columns import EncodeColumns
from neurona_training.architectures.input_layers import Features, StandardiseColumns
from neurona_training.export.parity import caller_array
from neurona_training.report.drawing import (
    BLUE,
    INK,
    RED,
    Section,
    draw_image,
    escape_math,
    format_number,
    make_picture,
    new_figure,
    shorten,
    style_plot,
)
from neurona_training.report.results import RunResults

_MAX_SIDE = 28  # pixels whose numbers can be read in the width of the page
_MAX_NUMBERS = 60  # of a series
_CROP = 16  # of larger pictures
_MAX_COLUMNS = 12  # of a table row
_MAX_STEPS, _MAX_CHANNELS = 12, 8  # of a sequence whose numbers are written


def input_numbers_section(results: RunResults) -> Section | None:
    """A test row as numbers."""
    data = results.data
    row = (results.right_rows or [0])[0] if data.is_classification else 0
    if data.kind == "images":
        return _picture_section(results, row)
    if data.kind == "rows":
        return _row_section(results, row)
    if data.input.categories:
        return _text_section(results, row)
    values = results.test_input(row)
    if values.ndim == 1:
        return _sound_section(results, row)
    if values.shape[1] == 1:
        numbers = ", ".join(map(_format, values[:, 0].tolist()[:_MAX_NUMBERS]))
        more = ", …" if len(values) > _MAX_NUMBERS else ""
        caption = (
            f"A test row as the network reads it, {len(values)} steps in time: {numbers}{more}"
        )
        return Section("One example as numbers", caption, words=("sequence",))
    caption = (
        f"A test row as the network reads it: a line for each step of time, {len(values)} here, "
        f"and a column for each of {values.shape[1]} values of a step."
    )
    if len(values) > _MAX_STEPS or values.shape[1] > _MAX_CHANNELS:
        caption += " The first of them."
    part = values[:_MAX_STEPS, :_MAX_CHANNELS]
    lines = [["step", *results.column_names(values.shape[1])[:_MAX_CHANNELS]]]
    lines += [[str(step), *map(_format, line)] for step, line in enumerate(part.tolist(), 1)]
    return Section("One example as numbers", caption, table=lines, words=("sequence",))


def _format(value: float) -> str:
    return "missing" if math.isnan(value) else format_number(value)


def _picture_section(results: RunResults, row: int) -> Section:
    pixels = results.test_input(row)
    planes = pixels[None] if pixels.ndim == 2 else pixels
    height, width = planes.shape[-2:]
    figure = _draw_matrix(results, pixels, planes)
    colours = "three matrices, red, green and blue" if len(planes) == 3 else "a matrix"
    low, high = results.data.test.inputs.min(), results.data.test.inputs.max()
    caption = (
        f"To a computer a picture is {colours} of {height} x {width} numbers, here from "
        f"{low:.4g} (black) to {high:.4g}; the network sees nothing else."
    )
    if max(height, width) > _MAX_SIDE:
        caption += " On the right the numbers inside the red frame."
    picture = make_picture(figure, "a test picture and the matrix of its numbers")
    return Section("One picture as numbers", caption, (picture,), words=("pixel", "matrix"))


def _draw_matrix(results: RunResults, pixels: NDArray[Any], planes: NDArray[Any]) -> Figure:
    height, width = planes.shape[-2:]
    brightest = results.brightest
    rows, columns = min(height, _CROP), min(width, _CROP)
    if max(height, width) <= _MAX_SIDE and len(planes) != 3:
        rows, columns = height, width
    top, left = (height - rows) // 2, (width - columns) // 2
    parts = planes if len(planes) == 3 else planes[:1]
    inches = 6.6 if columns > 12 else 3.4
    down = inches * rows / columns
    figure = new_figure(2.8 + inches, min(7.5, max(2.4, down * (1 if len(parts) == 1 else 1.0))))
    picture, *matrices = figure.subplots(
        1, 1 + len(parts), width_ratios=[2.4, *[inches / len(parts)] * len(parts)]
    )
    draw_image(picture, pixels, brightest)
    picture.set_anchor("N")
    if (rows, columns) != (height, width):
        corner = (left - 0.5, top - 0.5)
        frame = Rectangle(corner, columns, rows, fill=False, edgecolor=RED, linewidth=1.5)
        picture.add_patch(frame)
    names = ("red", "green", "blue") if len(parts) == 3 else ("",)
    for axes, plane, name in zip(matrices, parts, names, strict=True):
        part = plane[top : top + rows, left : left + columns]
        _write_numbers(axes, part, brightest, inches / len(parts) / columns)
        if name:
            axes.set_title(name, fontsize=9, color=INK)
    return figure


def _write_numbers(axes: Axes, part: NDArray[Any], brightest: float, cell: float) -> None:
    """Writes each number on its grey; `cell`: inches across."""
    is_whole = bool((part == np.round(part)).all())
    texts = [
        [f"{value:.0f}" if is_whole else f"{value:.2g}" for value in line] for line in part.tolist()
    ]
    longest = max(len(text) for line in texts for text in line)
    size = min(9.0, cell * 72 / (0.62 * (longest + 0.6)))
    axes.imshow(part, cmap="gray", vmin=0, vmax=brightest)
    axes.set_anchor("N")
    axes.set_axis_off()
    for (row, column), value in np.ndenumerate(part):
        colour = "white" if value < 0.55 * brightest else "black"
        axes.text(
            column, row, texts[row][column],
            ha="center", va="center", fontsize=size, color=colour,
        )  # fmt: skip


def _row_section(results: RunResults, row: int) -> Section:
    data = results.data
    head = ["column", "value", "as the network sees it"]
    lines = [head]
    arrays = results.row_arrays([row])
    scaled = _scaled(results.network, arrays[0]) if not data.input.categories else None
    for described, array in zip(data.inputs, arrays, strict=True):
        cell = np.atleast_1d(caller_array(array, described)[0]).tolist()
        if described is data.input and array.ndim > 1:
            names = results.column_names(array.shape[-1])
            for index, (name, value) in enumerate(zip(names, cell, strict=True)):
                scaled_text = _format(float(scaled[0, index])) if scaled is not None else ""
                lines.append([name, results.format_cell(index, value), scaled_text])
        else:
            text = str(cell[0]) if isinstance(cell[0], str) else _format(cell[0])
            scaled_text = f"1 for {text!r}, 0 for the others" if described.categories else ""
            lines.append([described.name, text, scaled_text])
    if not any(line[2] for line in lines[1:]):
        lines = [line[:2] for line in lines]
    caption = "One test row"
    words: tuple[str, ...] = ("standard deviation",)
    if len(lines[0]) < 3 or scaled is None:
        words = ()
    else:
        caption += (
            ". Columns differ much in size, so each is scaled first: less its mean, divided by "
            "its standard deviation over the training rows. 0 is average, -1 and 1 are usual"
        )
    if len(lines) > _MAX_COLUMNS + 1:
        caption += f"; the first {_MAX_COLUMNS} of {len(lines) - 1} columns"
        lines = lines[: _MAX_COLUMNS + 1]
    return Section("One example as numbers", f"{caption}.", table=lines, words=words)


def _scaled(network: nn.Module, inputs: NDArray[Any]) -> NDArray[Any] | None:
    scales = [one for one in network.modules() if isinstance(one, Features)]
    scale = scales[0].scale if scales else None
    if not isinstance(scale, StandardiseColumns) or len(scale.mean) < inputs.shape[-1]:
        return None
    for module in network.modules():  # filled and encoded columns are others than a caller's
        if isinstance(module, EncodeColumns) and (module.encoding.medians or module.encoding.dates):
            return None
    with torch.inference_mode():
        padded = torch.zeros(1, len(scale.mean))
        padded[:, : inputs.shape[-1]] = torch.from_numpy(inputs)
        values: NDArray[Any] = scale(padded).numpy()
    return values


def _text_section(results: RunResults, row: int) -> Section:
    categories = results.data.input.categories
    codes = results.test_input(row).tolist()
    letters = [categories[code] if code < len(categories) else "unknown" for code in codes]
    tables = [one for one in results.network.modules() if isinstance(one, nn.Embedding)]
    lines = [["step", "text", "number", "as the network sees it"]]
    for step, (letter, code) in enumerate(zip(letters, codes, strict=True), 1):
        vector = ""
        if tables:
            numbers = tables[0].weight[code, :4].tolist()
            vector = f"({', '.join(_format(round(one, 2)) for one in numbers)}, …)"
        lines.append([str(step), letter, str(code), vector])
    size = tables[0].embedding_dim if tables else 0
    caption = (
        f"A test row as the network reads it. Each of {len(categories)} characters has a number, "
        f"and for it the network looks up {size} numbers that it has learned, an embedding."
    )
    return Section("One example as numbers", caption, table=lines, words=("embedding",))


def _sound_section(results: RunResults, row: int) -> Section:
    wave = results.test_input(row)
    log_mels = [one for one in results.network.modules() if isinstance(one, LogMel)]
    figure = new_figure(9.5, 3.6 if log_mels else 2.0)
    grid = figure.subplots(1 + bool(log_mels), 1, squeeze=False).flat
    top = grid[0]
    style_plot(top)
    top.plot(wave, color=BLUE, linewidth=0.6)
    top.set_xlim(0, len(wave))
    label = ""
    if results.data.is_classification:
        label = f", {shorten(results.data.labels[results.data.test.targets[row]], 20)}"
    title = f"{len(wave):,} samples{label}"
    top.set_title(escape_math(title), fontsize=10, color=INK, loc="left")
    first = ", ".join(_format(round(one, 3)) for one in wave[len(wave) // 2 :][:6].tolist())
    caption = (
        "Sound is a row of numbers, the pressure of the air at each moment; six of them from the "
        f"middle: {first}."
    )
    if log_mels:
        lengths = torch.tensor([len(wave)], dtype=torch.int32)
        with torch.inference_mode():
            frames = log_mels[0](torch.from_numpy(wave)[None], lengths)[0].numpy()
        grid[1].imshow(
            frames.T, aspect="auto", origin="lower", interpolation="nearest", cmap="magma"
        )
        grid[1].set_title(
            f"{len(frames)} frames of {frames.shape[1]} bands, low pitch at the bottom",
            fontsize=10, color=INK, loc="left",
        )  # fmt: skip
        grid[1].tick_params(labelsize=8)
        grid[1].spines[:].set_visible(False)
        caption += (
            " Below, as the network sees it: how loud each band of pitch is, every "
            f"{log_mels[0].hop} samples."
        )
    picture = make_picture(figure, "a waveform, and its bands of pitch over time")
    return Section("One example as numbers", caption, (picture,), words=("sample",))
