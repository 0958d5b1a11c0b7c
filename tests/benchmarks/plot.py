"""The measurements as one plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from growth import Growth
from measurements import ModelMeasurements

mpl.use("Agg")  # no window
from matplotlib import pyplot as plt

_COLUMNS = 3
_COLOURS = plt.get_cmap("tab10").colors


def draw(measurements: Sequence[ModelMeasurements], growths: Sequence[Growth], path: Path) -> None:
    """Draws a panel for each model and each growth; a server has the same colour in all panels."""
    panels = len(measurements) + len(growths)
    if not panels:
        return
    lines_of_panels = -(-panels // _COLUMNS)
    figure, axes = plt.subplots(
        lines_of_panels,
        _COLUMNS,
        figsize=(5 * _COLUMNS, 3.8 * lines_of_panels),
        squeeze=False,
        layout="constrained",
    )
    free_axes = list(axes.flat)
    names = dict.fromkeys(row for one in measurements for row in one.rows)
    names |= dict.fromkeys(point.server for growth in growths for point in growth.points)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    for one in measurements:
        _plot_rates(free_axes.pop(0), one, colours)
    for growth in growths:
        _plot_growth(free_axes.pop(0), growth, colours)
    for axis in free_axes:
        axis.set_axis_off()
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_rates(axis: Any, one: ModelMeasurements, colours: dict[str, Any]) -> None:
    for row in one.rows:
        spreads = [one.spread(row, load, "rate") for load in one.loads]
        colour = colours[row]
        medians = [spread.median for spread in spreads]
        axis.plot(one.loads, medians, marker="o", markersize=4, color=colour, label=row)
        lowest, highest = [s.lowest for s in spreads], [s.highest for s in spreads]
        axis.fill_between(one.loads, lowest, highest, color=colour, alpha=0.15, linewidth=0)
    axis.set_title(one.model.name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(one.loads, [f"{load:,}" for load in one.loads])
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.set_xlabel("requests in flight")
    axis.set_ylabel("requests per second")
    axis.grid(alpha=0.3)


def _plot_growth(axis: Any, growth: Growth, colours: dict[str, Any]) -> None:
    """Plots the first column."""
    for name in dict.fromkeys(point.server for point in growth.points):
        points = [point for point in growth.points if point.server == name]
        axis.plot(
            [point.size for point in points],
            [point.values[0] for point in points],
            marker="o",
            markersize=4,
            color=colours[name],
            label=name,
        )
    axis.set_title(growth.title)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter("{x:,g}")
    for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        set_formatter("{x:,g}")
    axis.set_xlabel(growth.quantity)
    axis.set_ylabel(growth.columns[0])
    axis.grid(alpha=0.3)
