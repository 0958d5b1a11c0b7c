"""Latencies as percentiles, as a histogram of text, and as a plot."""

import math
from collections.abc import Sequence
from pathlib import Path

from neurona_client.cli.terminal import encodable

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
BUCKET_COUNT = 14
BAR_WIDTH = 40
EIGHTH_BLOCKS = " ▏▎▍▌▋▊▉█"


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """Compute percentiles, maximum and mean.

    Args:
        latencies: seconds.

    Returns:
        Seconds by name; percentiles by nearest rank, so that each is one of the latencies. Empty
        without latencies.
    """
    ranked = sorted(latencies)
    if not ranked:
        return {}
    by_name = {
        name: ranked[max(0, math.ceil(share * len(ranked)) - 1)]
        for name, share in PERCENTILES.items()
    }
    return by_name | {"max": ranked[-1], "mean": sum(ranked) / len(ranked)}


def format_duration(seconds: float) -> str:
    """Format with three digits and a suitable unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds * 1e6:.3g} {encodable('µs', 'us')}"


def histogram(latencies: Sequence[float], width: int | None) -> list[str]:
    """Format a histogram with buckets on a logarithmic scale.

    Args:
        latencies: seconds.
        width: columns of the terminal; None: any.

    Returns:
        A line for each bucket: its lower bound, a bar, its count.
    """
    if not latencies:
        return []
    low, high = min(latencies), max(latencies)
    factor = max((high / low) ** (1 / BUCKET_COUNT), 1.01) if low > 0 else 1.01
    counts = [0] * BUCKET_COUNT
    for latency in latencies:
        bucket = int(math.log(latency / low, factor)) if low > 0 else 0
        counts[min(BUCKET_COUNT - 1, bucket)] += 1
    while counts and not counts[-1]:
        counts.pop()
    bar_width = BAR_WIDTH if width is None else max(5, min(BAR_WIDTH, width - 30))
    highest = max(counts)
    lines = []
    for bucket, count in enumerate(counts):
        eighths = round(count / highest * bar_width * 8)
        if encodable(EIGHTH_BLOCKS, ""):
            bar = "█" * (eighths // 8) + EIGHTH_BLOCKS[eighths % 8].strip()
            bar = bar or ("▏" if count else "")
        else:
            bar = "#" * (math.ceil(eighths / 8))
        bound = format_duration(low * factor**bucket)
        lines.append(f"{bound:>9} {bar:<{bar_width}} {count:>8,}")
    return lines


def plot(path: Path, title: str, starts: Sequence[float], latencies: Sequence[float]) -> None:
    """Write a PNG with a histogram and the latencies over time. Needs matplotlib.

    Args:
        path: of the PNG.
        title: above both plots.
        starts: when each call was due, in seconds.
        latencies: of the same calls, in seconds.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    milliseconds = np.asarray(latencies) * 1e3
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    low, high = milliseconds.min(), milliseconds.max()
    bins = np.geomspace(max(low, 1e-3), max(high, low * 1.1, 2e-3), 60)
    left.hist(milliseconds, bins=bins, color="#4c78a8")
    left.set(xscale="log", xlabel="latency (ms)", ylabel="responses")
    colours = ("#2ca02c", "#e0a800", "#e8710a", "#c0392b")
    for (name, seconds), colour in zip(percentiles(latencies).items(), colours, strict=False):
        label = f"{name} {format_duration(seconds)}"
        left.axvline(seconds * 1e3, color=colour, linewidth=1.5, label=label)
    left.legend()
    right.plot(starts, milliseconds, ".", markersize=2, color="#4c78a8", alpha=0.4)
    right.set(yscale="log", xlabel="scheduled start of the call (s)", ylabel="latency (ms)")
    for axis in (left.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter(NullFormatter())
    left.yaxis.set_major_formatter("{x:,g}")
    for axes in (left, right):
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
