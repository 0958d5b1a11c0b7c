"""The gates of a recurrent network over time, by name, and its answer after each step.

S. Hochreiter and J. Schmidhuber, Long Short-Term Memory (1997); K. Cho and others (2014).
The equations are torch's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from neurona_training.learning.evaluation import softmax
from neurona_training.report.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    RED,
    SIGNED,
    Section,
    escape_math,
    make_picture,
    new_figure,
    shorten,
    style_plot,
)
from neurona_training.report.results import RunResults

_MAX_UNITS = 24  # of a layer: those that change most over time
_MAX_STEPS = 80  # of which the figure has a column each
_MAX_CLASSES = 4  # whose probabilities are drawn over time
_MAX_CHANNELS = 3  # of the input as lines; more of them are a colour map
_COLOURS = (BLUE, ORANGE, GREEN, RED)

# By kind of layer, in torch's order of weights: name, what it does.
_GATE_NAMES = {
    "LSTM": (
        ("input gate", "1 lets the new in"),
        ("forget gate", "1 keeps the memory, 0 erases it"),
        ("candidate", "what could be remembered"),
        ("output gate", "1 shows the memory"),
    ),
    "GRU": (
        ("reset gate", "0 reads the input alone"),
        ("update gate", "1 keeps the state"),
        ("candidate", "what could replace it"),
    ),
    "RNN_TANH": (),
    "RNN_RELU": (),
}


def gates_section(results: RunResults) -> Section | None:
    """Gates and state of one test row; None for a network without recurrent layers."""
    layers = [one for one in results.network.modules() if isinstance(one, RNNBase)]
    if not layers or layers[0].mode not in _GATE_NAMES:
        return None
    row = _shown_row(results)
    activity = gate_activity(results.network, layers[0], results.row_arrays([row]))
    figure = _draw(results, row, activity)
    first = "the first recurrent layer" if len(layers) > 1 or layers[0].num_layers > 1 else "it"
    caption = (
        f"One test row, step by step: the input, what {first} does with it, and the answer if "
        "the sequence ended there. Each line of a colour map is one unit, each column a step; "
        f"of {layers[0].hidden_size} units those that change most are shown."
    )
    title = "The gates over time" if len(activity) > 1 else "The state over time"
    words = ("gate", "state", "memory cell") if layers[0].mode == "LSTM" else ("gate", "state")
    picture = make_picture(figure, "input, gates, state and answer over time")
    return Section(title, caption, (picture,), words=words if len(activity) > 1 else ("state",))


@torch.inference_mode()
def gate_activity(
    network: nn.Module, layer: RNNBase, arrays: tuple[NDArray[Any], ...]
) -> dict[str, NDArray[Any]]:
    """The gates, candidate, memory and state of a layer at each step, each (steps, units).

    Of stacked layers and of two directions the first is computed, forwards in time.

    Args:
        network: that has the layer.
        layer: a plain recurrent layer, LSTM or GRU.
        arrays: the network's inputs for one row.
    """
    captures: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: captures.append(inputs[0]))
    try:
        network.eval()
        network(*(torch.from_numpy(array) for array in arrays))
    finally:
        hook.remove()
    steps = captures[0]
    if isinstance(steps, PackedSequence):
        steps = pad_packed_sequence(steps, batch_first=True)[0]
        steps = steps[0]
    else:
        steps = steps[0] if layer.batch_first else steps[:, 0]
    names = [name for name, _ in _GATE_NAMES[layer.mode]]
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    state, memory = torch.zeros(layer.hidden_size), torch.zeros(layer.hidden_size)
    w, u = layer.get_parameter("weight_ih_l0"), layer.get_parameter("weight_hh_l0")
    zero = torch.zeros(len(w))
    b_input, b_state = (
        layer.get_parameter(name) if layer.bias else zero for name in ("bias_ih_l0", "bias_hh_l0")
    )
    gates: tuple[Tensor, ...]
    for step in steps:
        from_input, from_state = w @ step + b_input, u @ state + b_state
        if layer.mode == "LSTM":
            i, f, g, o = (from_input + from_state).chunk(4)
            gates = (i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())
            memory = gates[1] * memory + gates[0] * gates[2]
            state = gates[3] * memory.tanh()
        elif layer.mode == "GRU":
            (ri, zi, ni), (rs, zs, ns) = from_input.chunk(3), from_state.chunk(3)
            reset, update = (ri + rs).sigmoid(), (zi + zs).sigmoid()
            candidate = (ni + reset * ns).tanh()
            state = update * state + (1 - update) * candidate
            gates = (reset, update, candidate)
        else:
            total = from_input + from_state
            state = total.tanh() if layer.mode == "RNN_TANH" else total.relu()
            gates = ()
        for name, gate in zip(names, gates, strict=True):
            values[name].append(gate)
        if layer.mode == "LSTM":
            values.setdefault("memory cell", []).append(memory)
        values.setdefault("state", []).append(state)
    return {name: torch.stack(tensors).numpy() for name, tensors in values.items()}


def _shown_row(results: RunResults) -> int:
    """A row that is right, and of middle length: of few steps there would be little to see."""
    if not results.data.is_classification:
        return 0
    rows = results.right_rows or [0]
    lengths = results.data.test.lengths
    if lengths is None:
        return rows[0]
    middle = float(np.quantile(lengths, 0.75))
    return min(rows, key=lambda row: abs(float(lengths[row]) - middle))


def _draw(results: RunResults, row: int, activity: dict[str, NDArray[Any]]) -> Figure:
    answers = _answers_over_time(results, row)
    panels = len(activity) + 1 + (answers is not None)
    figure = new_figure(9.5, 1.1 * panels + 0.3)
    grid = list(figure.subplots(panels, 1, squeeze=False).flat)
    steps = len(next(iter(activity.values())))
    _draw_input(grid[0], results, row, steps)
    gates = dict(_GATE_NAMES[_mode(results)])
    state = activity["state"]
    units = np.sort(np.argsort(-state.std(axis=0), kind="stable")[:_MAX_UNITS])
    for axes, (name, values) in zip(grid[1:], activity.items(), strict=False):
        is_gate = name.endswith("gate")
        limit = max(1.0, float(np.abs(values).max()))
        image = axes.imshow(
            values[:, units].T,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis" if is_gate else SIGNED,
            vmin=0 if is_gate else -limit,
            vmax=1 if is_gate else limit,
        )
        text = f"{name}: {gates[name]}" if name in gates else name
        axes.set_title(text, fontsize=9, color=INK, loc="left")
        axes.set_yticks([])
        axes.set_ylabel("unit", fontsize=8)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=8)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7)
        bar.locator = MaxNLocator(3)
        bar.update_ticks()
    if answers is not None:
        _draw_answers(grid[-1], results, answers)
    for axes in grid:
        axes.set_xlim(-0.5, steps - 0.5)
        axes.tick_params(labelsize=8)
        if axes is not grid[-1]:
            axes.set_xticks([])
    letters = _letters(results, row)
    if letters and len(letters) == steps:
        grid[-1].set_xticks(range(steps), [escape_math(one) for one in letters], fontsize=9)
    else:
        grid[-1].xaxis.set_major_locator(MaxNLocator(12, integer=True))
        grid[-1].set_xlabel("step", fontsize=9)
    return figure


def _mode(results: RunResults) -> str:
    return next(one.mode for one in results.network.modules() if isinstance(one, RNNBase))


def _letters(results: RunResults, row: int) -> list[str]:
    categories = results.data.input.categories
    if not categories:
        return []
    codes = results.test_input(row)
    return [categories[code] if code < len(categories) else "?" for code in codes.tolist()]


def _draw_input(axes: Axes, results: RunResults, row: int, steps: int) -> None:
    values = results.test_input(row)
    title = f"input: {results.data.input.name}"
    if results.data.is_classification:
        title += f" of class {shorten(results.data.labels[results.data.test.targets[row]], 30)}"
    axes.set_title(escape_math(title), fontsize=9, color=INK, loc="left")
    letters = _letters(results, row)
    if letters:
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        for step, letter in enumerate(letters):
            axes.text(step, 0.5, escape_math(letter), ha="center", va="center", fontsize=11)
        return
    plane = values.reshape(len(values), -1)
    if plane.shape[1] > _MAX_CHANNELS:
        axes.imshow(plane.T, aspect="auto", interpolation="nearest", cmap="cividis")
        axes.set_yticks([])
        axes.set_ylabel("channel", fontsize=8)
        axes.spines[:].set_visible(False)
        return
    style_plot(axes)
    # Sound has many samples a step; the axis counts steps.
    x = (np.arange(len(plane)) + 0.5) * steps / len(plane) - 0.5
    for channel, colour in zip(plane.T, _COLOURS, strict=False):
        axes.plot(x, channel, color=colour, linewidth=0.9)


@torch.inference_mode()
def _answers_over_time(results: RunResults, row: int) -> NDArray[Any] | None:
    """What the network would answer if the sequence ended after each step; None for sound."""
    inputs = results.row_arrays([row])
    values = results.test_input(row)
    if values.ndim == 1 and not results.data.input.categories:
        return None  # samples, of which many are a step
    if len(inputs) > 1 + (results.data.test.lengths is not None) or len(values) > 4 * _MAX_STEPS:
        return None
    outputs = []
    for length in range(1, len(values) + 1):
        part = [torch.from_numpy(inputs[0][:, :length])]
        if results.data.test.lengths is not None:
            part.append(torch.tensor([length], dtype=torch.int32))
        outputs.append(results.network(*part)[0].numpy())
    answers: NDArray[Any] = np.stack(outputs)
    if results.data.is_classification:
        return softmax(answers)
    return answers[:, : len(results.data.values)]  # without the bounds of intervals


def _draw_answers(axes: Axes, results: RunResults, answers: NDArray[Any]) -> None:
    style_plot(axes)
    x = np.arange(len(answers))
    if results.data.is_classification:
        shown_labels = np.sort(np.argsort(-answers.max(axis=0), kind="stable")[:_MAX_CLASSES])
        for label, colour in zip(shown_labels, _COLOURS, strict=False):
            name = escape_math(shorten(results.data.labels[label], 14))
            axes.plot(x, answers[:, label], "o-", color=colour, markersize=3, label=name)
        axes.set_ylim(-0.03, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        for value, colour in zip(answers.T, _COLOURS, strict=False):
            axes.plot(x, value, "o-", color=colour, markersize=3)
    axes.set_title("answer after each step", fontsize=9, color=INK, loc="left")
    if results.data.is_classification:
        place: dict[str, Any] = {
            "loc": "lower right",
            "bbox_to_anchor": (1.0, 0.96),
            "ncols": _MAX_CLASSES,
        }
        axes.legend(fontsize=7.5, frameon=False, borderpad=0, **place)
