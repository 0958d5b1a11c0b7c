"""Latencies as figures and as a histogram of text."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurona_client.cli.load_generator import Measured


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


SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
LINES = 14
BAR = 40
EIGHTHS = " ▏▎▍▌▋▊▉"


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """Seconds: by nearest rank, so that each is a latency that was there; and the largest."""
    ranked = sorted(latencies)
    if not ranked:
        return {}
    found = {
        name: ranked[max(0, math.ceil(share * len(ranked)) - 1)] for name, share in SHARES.items()
    }
    return found | {"max": ranked[-1], "mean": sum(ranked) / len(ranked)}


def duration(seconds: float) -> str:
    """Three digits, with a unit that suits it."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds * 1e6:.3g} µs"


def histogram(latencies: Sequence[float], columns: int | None) -> list[str]:
    """Buckets on a logarithmic scale, whose sizes grow by one factor."""
    if not latencies:
        return []
    low, high = min(latencies), max(latencies)
    factor = max((high / low) ** (1 / LINES), 1.01) if low > 0 else 1.01
    counts = [0] * LINES
    for one in latencies:
        counts[min(LINES - 1, int(math.log(one / low, factor))) if low > 0 else 0] += 1
    while counts and not counts[-1]:
        counts.pop()
    size = BAR if columns is None else max(5, min(BAR, columns - 30))
    most = max(counts)
    lines = []
    for place, count in enumerate(counts):
        eighths = round(count / most * size * 8)
        bar = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
        bar = bar or ("▏" if count else "")
        lines.append(f"{duration(low * factor**place):>9} {bar:<{size}} {count:>8,}")
    return lines
