"""neurona watch: a live table of what the server does, from its metrics."""

import argparse
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict

from neurona_client.cli.arguments import CommandError, seconds
from neurona_client.cli.metrics_page import Page, Rates, rates, scrape
from neurona_client.cli.terminal import DIM, RED, Keys, coloured, cut, is_live, table, width

NAME = "watch"
SUMMARY = "follow requests, batches, queues and latencies in a live table"
DESCRIPTION = """\
Reads the server's metrics again and again: requests and errors a second, rows in a batch, rows
that wait, and the median and 99th percentile of the server's time for a request, model by model.
q or Ctrl-C ends it. It goes on when the server is restarted."""
EXAMPLES = """\
examples:
  neurona watch
  neurona watch --metrics-address 10.0.0.7:8002 --every 5
  neurona watch --once                figures of one second, as plain text
  neurona watch --once --json
"""

HEADER = ("MODEL", "VERSION", "REQ/S", "ERR/S", "BATCH", "QUEUE", "P50 ms", "P99 ms", "STATE")
RIGHT = range(1, 8)
NARROW = (0, 2, 3, 7)
"""Columns that are left where there is no room for all."""
DEFAULT_ADDRESS = "127.0.0.1:8002"
_HOME, _TO_LINE_END, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metrics-address",
        metavar="HOST:PORT",
        help=f"of the metrics page; or NEURONA_METRICS_ADDRESS (default: {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--every", type=seconds, default=1.0, metavar="S", help="seconds between looks (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="look twice, print once, end")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each look")


def run(options: argparse.Namespace) -> int:
    named = options.metrics_address or os.environ.get("NEURONA_METRICS_ADDRESS")
    address = named or DEFAULT_ADDRESS
    if options.once:
        before = scrape(address, timeout=5)
        time.sleep(options.every)
        now = scrape(address, timeout=5)
        _print(rates(before, now), options.json)
        return 0
    if options.json or not is_live(sys.stdout):
        return _plain(address, options)
    return _live(address, options.every)


def _plain(address: str, options: argparse.Namespace) -> int:
    """One table, or line of JSON, after the other. The server must be there at the start."""
    before = scrape(address, timeout=5)
    while True:
        time.sleep(options.every)
        try:
            now = scrape(address, timeout=5)
        except CommandError as error:
            print(f"neurona: {error}", file=sys.stderr)
            continue
        _print(rates(before, now), options.json)
        before = now


def _live(address: str, every: float) -> int:
    before: Page | None = None
    now: Page | None = None
    problem = ""
    sys.stdout.write(_ENTER)
    try:
        with Keys() as keys:
            while True:
                try:
                    before, now, problem = now, scrape(address, timeout=max(1.0, every)), ""
                except CommandError as error:
                    problem = str(error)
                end = time.monotonic() + every
                while (left := end - time.monotonic()) > 0:
                    _draw(address, before, now, problem)
                    # Also ended by a change of the window's size, after which it is drawn anew.
                    if keys.pressed(left) in ("q", "Q", "\x1b"):
                        return 0
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _draw(address: str, before: Page | None, now: Page | None, problem: str) -> None:
    columns, lines = shutil.get_terminal_size()
    clock = time.strftime("%H:%M:%S")
    shown = [coloured(cut(f"neurona watch  {address}  {clock}", columns), DIM), ""]
    if problem:
        shown.append(coloured(cut(f"{problem}; trying again", columns), RED))
    if now is not None and not problem:
        shown += _table(rates(before, now), columns)
    if len(shown) > lines - 1:
        hidden = len(shown) - (lines - 2)
        shown = [*shown[: lines - 2], cut(f"… {hidden} more", columns)]
    shown.append(coloured(cut("q quits", columns), DIM))
    screen = (_TO_LINE_END + "\n").join(shown)
    sys.stdout.write(_HOME + screen + _TO_LINE_END + _TO_END)
    sys.stdout.flush()


def _table(found: list[Rates], columns: int | None) -> list[str]:
    if not found:
        return ["no model is served"]
    rows = [_cells(one) for one in found]
    wide = table(HEADER, rows, right=RIGHT)
    if columns is None or max(len(line) for line in map(_bare, wide)) <= columns:
        lines = wide
    else:
        header = [HEADER[place] for place in NARROW]
        kept = [[row[place] for place in NARROW] for row in rows]
        lines = table(header, kept, right=range(1, len(NARROW)), room=columns)
    pairs = zip(lines[1:], found, strict=True)
    bad = [coloured(line, RED) if _is_bad(one) else line for line, one in pairs]
    return [lines[0], *bad]


def _bare(line: str) -> str:
    return line.replace("\x1b[1m", "").replace("\x1b[0m", "")


def _is_bad(one: Rates) -> bool:
    return one.errors > 0 or one.state == "failed"


def _cells(one: Rates) -> tuple[str, ...]:
    return (
        one.model,
        one.version,
        _number(one.requests),
        _number(one.errors),
        _number(one.batch),
        _number(one.queue),
        _number(one.p50 * 1e3),
        _number(one.p99 * 1e3),
        one.state,
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _known(value: float | str) -> float | str | None:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _print(found: list[Rates], as_json: bool) -> None:
    if as_json:
        said = [{key: _known(value) for key, value in asdict(one).items()} for one in found]
        print(json.dumps(said), flush=True)
    else:
        print("\n".join(_table(found, width())), flush=True)
