"""The measurements as Markdown."""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from growth import Growth
from measurements import ModelMeasurements, Spread
from servers import BASELINE
from streaming import StreamingRates

MIB = 1 << 20
_COST_LOAD = 64  # requests in flight of the costs, if measured


def document(
    environment: str,
    measurements: Sequence[ModelMeasurements],
    growths: Sequence[Growth],
    streaming: StreamingRates | None,
) -> str:
    parts = [f"# Measurements\n\n{environment}."]
    if measurements:
        parts.append(
            f"Responses per second, median of the rounds; in brackets the ratio to {BASELINE} in "
            f"the same round: median, lowest to highest."
        )
    for one in measurements:
        parts += [_rates(one), _onnx_runtime(one), _costs(one)]
    parts += [_growth(growth) for growth in growths]
    if streaming is not None:
        parts.append(_streaming_table(streaming))
    return "\n\n".join(parts) + "\n"


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] + ["---:"] * (len(lines[0]) - 1), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Formats with three digits or all integer digits; NaN means that calls failed."""
    if math.isnan(value):
        return "calls failed"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f" ({spread.median:.2f}, {spread.lowest:.2f} to {spread.highest:.2f})"


def _rates(one: ModelMeasurements) -> str:
    rows = "one row" if one.model.rows == 1 else f"{one.model.rows} rows"
    lines = []
    for row in one.rows:
        cells = [row]
        for load in one.loads:
            ratio = None if row == BASELINE else one.ratios(row, load, BASELINE)
            cells.append(number(one.spread(row, load, "rate").median) + _ratio(ratio))
        lines.append(cells)
    head = [f"requests of {rows}", *(f"{load} in flight" for load in one.loads)]
    return f"## {one.model.name}\n\n" + grid(head, lines)


def _onnx_runtime(one: ModelMeasurements) -> str:
    """Returns the rates of ONNX Runtime alone, and the shares of the best that servers reach."""
    load = one.loads[-1]
    alone = ", ".join(
        f"{number(median(rates))} rows per second in batches of {rows}"
        for rows, rates in one.onnx_runtime_rates.items()
    )
    best = [max(rates) for rates in zip(*one.onnx_runtime_rates.values(), strict=True)]
    shares = []
    for row in one.rows:
        samples = zip(one.samples[row, load], best, strict=True)
        spread = Spread.of([sample.rate * one.model.rows / rate for sample, rate in samples])
        low, high = number(spread.lowest), number(spread.highest)
        shares.append(f"{row} {number(spread.median)} ({low} to {high})")
    return (
        f"ONNX Runtime alone: {alone}. Share of its best rate with {load} requests in flight: "
        f"{'; '.join(shares)}."
    )


def _costs(one: ModelMeasurements) -> str:
    load = _COST_LOAD if _COST_LOAD in one.loads else one.loads[-1]
    lowest_load = one.loads[0]
    lines = []
    for row in one.rows:
        server = row.partition(", Predict")[0].partition(", ModelInfer")[0]
        seconds, memory = zip(*one.starts[server], strict=True)
        lines.append(
            [
                row,
                number(1000 * one.spread(row, lowest_load, "latency").median),
                number(1000 * one.spread(row, load, "latency").median),
                number(one.spread(row, load, "cpu").median),
                number(median(memory) / MIB),
                number(one.spread(row, load, "memory").median / MIB),
                number(median(seconds)),
            ]
        )
    head = [
        "",
        f"mean latency, {lowest_load} in flight, ms",
        f"{load} in flight, ms",
        f"CPU s for 1,000 requests, {load} in flight",
        "MiB after the first response",
        f"MiB after {load} in flight",
        "s from start to the first response",
    ]
    return grid(head, lines)


def _growth(growth: Growth) -> str:
    lines = [
        [f"{point.size:,}", point.server, *(number(value) for value in point.values)]
        for point in growth.points
    ]
    return f"## {growth.title}\n\n" + grid([growth.quantity, "", *growth.columns], lines)


def _streaming_table(streaming: StreamingRates) -> str:
    lines = []
    for name, rates in streaming.rates.items():
        spread = Spread.of(
            [rate / other for rate, other in zip(rates, streaming.base, strict=True)]
        )
        lines.append([name, number(median(rates)), _ratio(spread).strip(" ()")])
    head = [
        f"{streaming.callers} callers, {streaming.model}",
        "responses per second",
        "ratio, with spread",
    ]
    return "## One Python client\n\n" + grid(head, lines)
