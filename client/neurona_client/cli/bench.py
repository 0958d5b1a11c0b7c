"""neurona bench: how many answers a second, and how long they take."""

import argparse
import asyncio
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurona_client.cli import arguments
from neurona_client.cli.arguments import FAILED, WRONG_USAGE, CommandError, seconds
from neurona_client.cli.latencies import duration, histogram, percentiles
from neurona_client.cli.terminal import RED, coloured, plain, progress, width

if TYPE_CHECKING:
    from neurona_client.async_client import AsyncClient
    from neurona_client.cli.load_generator import Measured, Plan
    from neurona_client.inputs import Inputs

NAME = "bench"
SUMMARY = "put load on a model and measure latencies"
DESCRIPTION = """\
Closed loop (the default): --concurrency callers, each of whom asks again as soon as it is
answered. Open loop: --rate calls a second, whatever the server does; a latency counts from when
the call was due, so that a stall is seen in all that it held up. Calls share a stream, unless
--unary gives each a call of its own. Nothing is tried twice. The exit status is 1 if any failed."""
EXAMPLES = """\
examples:
  neurona bench lenet5                              64 callers for 10 seconds
  neurona bench lenet5 --rate 2000 --duration 60 --plot lenet5.png
  neurona bench lenet5 --concurrency 1 --unary      the time of a lone call
  neurona bench lenet5 digits.npy --json | jq .latency_seconds
"""

MOST_FILES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="inputs as of predict; none: they are made up"
    )
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency", type=_whole, default=64, metavar="N", help="callers (default: 64)"
    )
    loop.add_argument("--rate", type=_rate, metavar="R", help="calls a second")
    parser.add_argument(
        "--duration", type=seconds, default=10.0, metavar="S", help="seconds (default: 10)"
    )
    parser.add_argument(
        "--warm-up",
        type=_not_negative,
        default=1.0,
        metavar="S",
        help="seconds before, which do not count (default: 1)",
    )
    parser.add_argument("--unary", action="store_true", help="each call alone, no shared stream")
    parser.add_argument("--rows", type=_whole, default=1, metavar="N", help="of what is made up")
    parser.add_argument(
        "--steps", type=_whole, default=16, metavar="N", help="of its other free axes (default: 16)"
    )
    arguments.add_which(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    arguments.add_request_arguments(parser, timeout=10.0)


def run(options: argparse.Namespace) -> int:
    if options.plot:
        _check_plot(options.plot)
    plan, measured = asyncio.run(_measured(options))
    found = _figures(plan, measured, options.unary)
    if options.json:
        print(json.dumps(found))
    else:
        _print(found, measured)
    if options.plot and measured.latencies:
        from neurona_client.cli.latencies import plot

        plot(options.plot, _title(plan, options.unary), measured)
        if not options.json:
            print(f"\nplot: {options.plot}")
    return FAILED if measured.errors or not measured.latencies else 0


async def _measured(options: argparse.Namespace) -> "tuple[Plan, Measured]":
    from neurona_client.cli.load_generator import Plan, load

    async with arguments.measuring_client(options, coalesce=not options.unary) as client:
        inputs = await _inputs(client, options)
        plan = Plan(
            options.model,
            inputs,
            options.version,
            options.label,
            options.warm_up,
            options.duration,
            options.concurrency,
            options.rate,
        )
        # What is wrong with the inputs is said before there is load.
        await client.predict(plan.model, inputs[0], version=plan.version, label=plan.label)
        with progress("bench", plan.warm_up + plan.duration) as bar:

            def show(passed: float, answers: int) -> None:
                measuring = passed - plan.warm_up
                note = f"{answers / measuring:,.0f}/s" if measuring > 0 else "warm-up"
                bar.show(passed, note)

            return plan, await load(client, plan, show)


async def _inputs(client: "AsyncClient", options: argparse.Namespace) -> "list[Inputs]":
    described = await client.describe(options.model, version=options.version, label=options.label)
    if not options.files:
        from neurona_client.cli.sample_files import invented

        return invented(described, options.rows, options.steps)
    from neurona_client.cli.sample_files import files, samples

    found: list[Inputs] = []
    for name in files(options.files):
        try:
            found += [sample.inputs for sample in samples(name, described)]
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror}") from error
        if len(found) >= MOST_FILES:
            break
    if not found:
        raise CommandError(f"there are no samples in {', '.join(options.files)}")
    return found


def _figures(plan: "Plan", measured: "Measured", unary: bool) -> dict[str, Any]:
    return {
        "model": plan.model,
        "loop": "closed" if plan.rate is None else "open",
        "concurrency": plan.concurrency if plan.rate is None else None,
        "rate": plan.rate,
        "mode": "unary" if unary else "stream",
        "duration_seconds": plan.duration,
        "answers": len(measured.latencies),
        "answers_per_second": measured.in_time / plan.duration,
        "latency_seconds": percentiles(measured.latencies),
        "errors": dict(measured.errors),
    }


def _title(plan: "Plan", unary: bool) -> str:
    callers = f"{plan.concurrency} callers" if plan.rate is None else f"{plan.rate:g} calls/s"
    loop = "closed" if plan.rate is None else "open"
    return f"{plan.model}: {loop} loop, {callers}, {'unary calls' if unary else 'one stream'}"


def _print(found: dict[str, Any], measured: "Measured") -> None:
    callers = f"{found['concurrency']} callers" if found["rate"] is None else f"{found['rate']:g}/s"
    mode = "unary calls" if found["mode"] == "unary" else "one stream"
    print(f"{found['model']}: {found['loop']} loop, {callers}, {mode}")
    rate = found["answers_per_second"]
    print(f"  {found['answers']:,} answers, {rate:,.0f} a second")
    if measured.latencies:
        shown = found["latency_seconds"].items()
        print("  " + "   ".join(f"{name} {duration(value)}" for name, value in shown))
        print()
        print("\n".join(histogram(measured.latencies, width())))
    for kind, count in measured.errors.most_common():
        text = f"{count:,} failed: {kind}, such as: {plain(measured.examples[kind])}"
        print(coloured(text, RED))


def _check_plot(path: Path) -> None:
    """Before the load, not after it."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--plot needs matplotlib: pip install matplotlib", WRONG_USAGE)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise CommandError(f"cannot plot to {path}: expected a .png in a folder that is there", 2)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1,000,000")
    return int(text)


def _rate(text: str) -> float:
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0") from None


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 up")
    return value
