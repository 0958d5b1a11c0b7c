"""Latencies as a picture, where matplotlib is installed."""

from pathlib import Path
from typing import TYPE_CHECKING

from neurona_client.commands.latencies import duration, percentiles

if TYPE_CHECKING:
    from neurona_client.commands.load import Measured


def plot(path: Path, title: str, measured: "Measured") -> None:
    """A PNG: how many latencies of each size, and how they went over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    milliseconds = np.asarray(measured.latencies) * 1e3
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    low, high = milliseconds.min(), milliseconds.max()
    bins = np.geomspace(max(low, 1e-3), max(high, low * 1.1, 2e-3), 60)
    left.hist(milliseconds, bins=bins, color="#4c78a8")
    left.set(xscale="log", xlabel="latency (ms)", ylabel="answers")
    colours = ("#2ca02c", "#e0a800", "#e8710a", "#c0392b")
    for (name, seconds), colour in zip(
        percentiles(measured.latencies).items(), colours, strict=False
    ):
        left.axvline(
            seconds * 1e3, color=colour, linewidth=1.5, label=f"{name} {duration(seconds)}"
        )
    left.legend()
    right.plot(measured.starts, milliseconds, ".", markersize=2, color="#4c78a8", alpha=0.4)
    right.set(yscale="log", xlabel="when the call was due (s)", ylabel="latency (ms)")
    for logarithmic in (left.xaxis, right.yaxis):
        logarithmic.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        logarithmic.set_major_formatter("{x:,g}")
        logarithmic.set_minor_formatter(NullFormatter())
    left.yaxis.set_major_formatter("{x:,g}")
    for axes in (left, right):
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
