"""The measurements of sequences.py as one plot. It is alone since it imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # no window
from matplotlib import pyplot as plt

_COLOURS = plt.get_cmap("tab10").colors
_QUARTERS = ("shortest", "second", "third", "longest")


def draw_curves(results: Sequence[Any], titles: dict[str, str], path: Path) -> None:
    """Draws for each mix of lengths p99 by rate, and p99 by length at 80 % of the capacity."""
    figure, axes = plt.subplots(
        len(results), 2, figsize=(11, 3.6 * len(results)), squeeze=False, layout="constrained"
    )
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(titles)}
    for (left, right), result in zip(axes, results, strict=True):
        for index, (name, curve) in enumerate(result.curves.items()):
            points = sorted((median(one.rates), 1e3 * median(one.p99)) for one in curve.points)
            style = {"color": colours[name], "label": titles[name]}
            left.plot(*zip(*points, strict=True), marker="o", markersize=4, **style)
            seconds = np.median(curve.point(0.8).class_p99, axis=0)
            width = 0.8 / len(result.curves)
            places = np.arange(len(seconds)) - 0.4 + (index + 0.5) * width
            right.bar(places, 1e3 * seconds, width, **style)
        left.set_title(
            f"{result.network}, {result.mix}: {result.mean_steps:.0f} steps on average", fontsize=10
        )
        left.set_xlabel("requests per second")
        left.set_xlim(left=0)
        left.xaxis.set_major_formatter("{x:,g}")
        right.set_title("at 80 % of each capacity, by quarter of lengths", fontsize=10)
        right.set_xticks(range(len(_QUARTERS)), _QUARTERS)
        for axis in (left, right):
            axis.set_yscale("log")
            axis.set_ylabel("p99, ms")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.grid(axis="y", alpha=0.3)
    handles = {line.get_label(): line for line in axes[0][0].lines}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    plt.close(figure)
