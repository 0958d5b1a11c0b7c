"""What was measured, as Markdown."""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from growth import Growth
from measures import Measured, Spread
from servers import YARDSTICK
from streaming import Streamed

MIB = 1 << 20
_FIRST = 64  # the load that figures of cost are told of, where it was measured


def document(
    surroundings: str,
    measured: Sequence[Measured],
    growths: Sequence[Growth],
    streamed: Streamed | None,
) -> str:
    parts = [f"# Measured\n\n{surroundings}."]
    if measured:
        parts.append(
            f"Requests answered in a second, the median of the rounds; in brackets the ratio to "
            f"{YARDSTICK} in the same round: median, lowest to highest."
        )
    for one in measured:
        parts += [_rates(one), _floor(one), _costs(one)]
    parts += [_growth(growth) for growth in growths]
    if streamed is not None:
        parts.append(_streamed(streamed))
    return "\n\n".join(parts) + "\n"


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] + ["---:"] * (len(lines[0]) - 1), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three digits, or all of those before the point; NaN where calls were lost."""
    if math.isnan(value):
        return "calls lost"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f" ({spread.middle:.2f}, {spread.lowest:.2f} to {spread.highest:.2f})"


def _rates(one: Measured) -> str:
    rows = "a row" if one.model.rows == 1 else f"{one.model.rows} rows"
    lines = []
    for row in one.rows:
        cells = [row]
        for load in one.loads:
            ratio = None if row == YARDSTICK else one.ratios(row, load, YARDSTICK)
            cells.append(number(one.figures(row, load, "rate").middle) + _ratio(ratio))
        lines.append(cells)
    head = [f"requests of {rows}", *(f"{load} in flight" for load in one.loads)]
    return f"## {one.model.name}\n\n" + grid(head, lines)


def _floor(one: Measured) -> str:
    """With the part of it that is left where a server is asked, in rows a second."""
    load = one.loads[-1]
    said = ", ".join(
        f"{number(median(rates))} rows a second in batches of {rows}"
        for rows, rates in one.floor.items()
    )
    best = [max(rates) for rates in zip(*one.floor.values(), strict=True)]
    shares = []
    for row in one.rows:
        samples = zip(one.samples[row, load], best, strict=True)
        spread = Spread.of([sample.rate * one.model.rows / most for sample, most in samples])
        low, high = number(spread.lowest), number(spread.highest)
        shares.append(f"{row} {number(spread.middle)} ({low} to {high})")
    return (
        f"ONNX Runtime alone: {said}. The part of its best with {load} requests in flight: "
        f"{'; '.join(shares)}."
    )


def _costs(one: Measured) -> str:
    load = _FIRST if _FIRST in one.loads else one.loads[-1]
    least = one.loads[0]
    lines = []
    for row in one.rows:
        server = row.partition(", Predict")[0].partition(", ModelInfer")[0]
        seconds, memory = zip(*one.starts[server], strict=True)
        lines.append(
            [
                row,
                number(1000 * one.figures(row, least, "latency").middle),
                number(1000 * one.figures(row, load, "latency").middle),
                number(one.figures(row, load, "cpu").middle),
                number(median(memory) / MIB),
                number(one.figures(row, load, "memory").middle / MIB),
                number(median(seconds)),
            ]
        )
    head = [
        "",
        f"mean latency, {least} in flight, ms",
        f"{load} in flight, ms",
        f"CPU s for 1,000 requests, {load} in flight",
        "MiB after the first answer",
        f"MiB after {load} in flight",
        "s from start to the first answer",
    ]
    return grid(head, lines)


def _growth(growth: Growth) -> str:
    lines = [
        [f"{point.size:,}", point.server, *(number(value) for value in point.values)]
        for point in growth.points
    ]
    return f"## {growth.title}\n\n" + grid([growth.of, "", *growth.columns], lines)


def _streamed(streamed: Streamed) -> str:
    lines = []
    for name, rates in streamed.rates.items():
        spread = Spread.of([rate / other for rate, other in zip(rates, streamed.base, strict=True)])
        lines.append([name, number(median(rates)), _ratio(spread).strip(" ()")])
    head = [
        f"{streamed.callers} callers, {streamed.model}",
        "answers a second",
        "ratio, with spread",
    ]
    return "## One Python client\n\n" + grid(head, lines)
