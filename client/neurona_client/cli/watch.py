"""neurona watch: a live table of each model's load, from the metrics of the server."""

import argparse
import math
import os
import shutil
import sys
import time
from dataclasses import asdict

from neurona_client.cli.arguments import CommandError, positive_seconds
from neurona_client.cli.json_output import print_json
from neurona_client.cli.metrics_page import (
    MetricsPage,
    ModelRates,
    compute_rates,
    read_metrics_page,
)
from neurona_client.cli.terminal import (
    DIM,
    RED,
    KeyReader,
    coloured,
    is_interactive,
    table,
    terminal_width,
    truncate,
)

NAME = "watch"
SUMMARY = "show requests, batches, queues and latencies in a live table"
DESCRIPTION = """\
Polls the metrics of the server and shows for each model: requests and errors per second, mean rows
of a batch, rows in the queue, and the median and 99th percentile of the server's time for a
request. q or Ctrl-C quits. If the server restarts, the table continues."""
EXAMPLES = """\
examples:
  neurona watch
  neurona watch --metrics-address 10.0.0.7:8002 --every 5
  neurona watch --once                figures of one second, as plain text
  neurona watch --once --json
"""

HEADER = ("MODEL", "VERSION", "REQ/S", "ERR/S", "BATCH", "QUEUE", "P50 ms", "P99 ms", "STATE")
RIGHT_ALIGNED = range(1, 8)
NARROW_COLUMNS = (0, 2, 3, 7)
"""Columns that a terminal too narrow for all of them shows."""
DEFAULT_ADDRESS = "127.0.0.1:8002"
_HOME, _CLEAR_LINE, _CLEAR_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_ENTER_SCREEN, _LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "--metrics-address",
        metavar="HOST:PORT",
        help=f"metrics of the server; or NEURONA_METRICS_ADDRESS (default: {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--every",
        type=positive_seconds,
        default=1.0,
        metavar="S",
        help="seconds between two polls (default: 1)",
    )
    parser.add_argument("--once", action="store_true", help="poll twice, print once and exit")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each poll")


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    variable = os.environ.get("NEURONA_METRICS_ADDRESS")
    address = options.metrics_address or variable or DEFAULT_ADDRESS
    if options.once:
        before = read_metrics_page(address, timeout=5)
        time.sleep(options.every)
        now = read_metrics_page(address, timeout=5)
        _print_rates(compute_rates(before, now), options.json)
        return 0
    if options.json or not is_interactive(sys.stdout):
        return _run_plain(address, options)
    return _run_live(address, options.every)


def _run_plain(address: str, options: argparse.Namespace) -> int:
    """Print one table, or line of JSON, after the other. The first poll must succeed."""
    before = read_metrics_page(address, timeout=5)
    while True:
        time.sleep(options.every)
        try:
            now = read_metrics_page(address, timeout=5)
        except CommandError as error:
            print(f"neurona: {error}", file=sys.stderr)
            continue
        _print_rates(compute_rates(before, now), options.json)
        before = now


def _run_live(address: str, every: float) -> int:
    before: MetricsPage | None = None
    now: MetricsPage | None = None
    problem = ""
    sys.stdout.write(_ENTER_SCREEN)
    try:
        with KeyReader() as keys:
            while True:
                try:
                    page = read_metrics_page(address, timeout=max(1.0, every))
                    before, now, problem = now, page, ""
                except CommandError as error:
                    problem = str(error)
                end = time.monotonic() + every
                while (remaining := end - time.monotonic()) > 0:
                    _draw(address, before, now, problem)
                    # Also returns when the window is resized, and the table is drawn again.
                    if keys.read_key(remaining) in ("q", "Q", "\x1b"):
                        return 0
    finally:
        sys.stdout.write(_LEAVE_SCREEN)
        sys.stdout.flush()


def _draw(address: str, before: MetricsPage | None, now: MetricsPage | None, problem: str) -> None:
    columns, lines = shutil.get_terminal_size()
    clock = time.strftime("%H:%M:%S")
    shown = [coloured(truncate(f"neurona watch  {address}  {clock}", columns), DIM), ""]
    if problem:
        shown.append(coloured(truncate(f"{problem}; retrying", columns), RED))
    if now is not None and not problem:
        shown += _table_lines(compute_rates(before, now), columns)
    if len(shown) > lines - 1:
        hidden = len(shown) - (lines - 2)
        shown = [*shown[: lines - 2], truncate(f"… {hidden} more", columns)]
    shown.append(coloured(truncate("q quits", columns), DIM))
    screen = (_CLEAR_LINE + "\n").join(shown)
    sys.stdout.write(_HOME + screen + _CLEAR_LINE + _CLEAR_SCREEN)
    sys.stdout.flush()


def _table_lines(rates: list[ModelRates], columns: int | None) -> list[str]:
    if not rates:
        return ["no models"]
    rows = [_cells(one) for one in rates]
    lines = table(HEADER, rows, right_aligned=RIGHT_ALIGNED)
    if columns is not None and max(len(_without_styles(line)) for line in lines) > columns:
        header = [HEADER[column] for column in NARROW_COLUMNS]
        narrow_rows = [[row[column] for column in NARROW_COLUMNS] for row in rows]
        right_aligned = range(1, len(NARROW_COLUMNS))
        lines = table(header, narrow_rows, right_aligned=right_aligned, width=columns)
    pairs = zip(lines[1:], rates, strict=True)
    return [lines[0], *(coloured(line, RED) if _is_bad(one) else line for line, one in pairs)]


def _without_styles(line: str) -> str:
    return line.replace("\x1b[1m", "").replace("\x1b[0m", "")


def _is_bad(rates: ModelRates) -> bool:
    return rates.errors > 0 or rates.state == "failed"


def _cells(rates: ModelRates) -> tuple[str, ...]:
    return (
        rates.model,
        rates.version,
        _format_number(rates.requests),
        _format_number(rates.errors),
        _format_number(rates.batch),
        _format_number(rates.queue),
        _format_number(rates.p50 * 1e3),
        _format_number(rates.p99 * 1e3),
        rates.state,
    )


def _format_number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _nan_to_none(value: float | str) -> float | str | None:
    """Replace NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _print_rates(rates: list[ModelRates], as_json: bool) -> None:
    if as_json:
        rows = [{key: _nan_to_none(value) for key, value in asdict(one).items()} for one in rates]
        print_json(rows)
    else:
        print("\n".join(_table_lines(rates, terminal_width())), flush=True)
