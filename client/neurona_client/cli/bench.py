"""neurona bench: throughput and latencies of a model under load."""

import argparse
import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurona_client.cli.arguments import (
    FAILED,
    WRONG_USAGE,
    CommandError,
    add_request_arguments,
    add_version_arguments,
    make_bench_client,
    positive_seconds,
)
from neurona_client.cli.json_output import print_json
from neurona_client.cli.latencies import format_duration, histogram, percentiles
from neurona_client.cli.terminal import RED, coloured, printable, progress_bar, terminal_width
from neurona_client.errors import InvalidInputError

if TYPE_CHECKING:
    from neurona_client.async_client import AsyncClient
    from neurona_client.cli.load_generator import LoadPlan, LoadResult
    from neurona_client.inputs import Inputs

NAME = "bench"
SUMMARY = "generate load on a model and measure latencies"
DESCRIPTION = """\
Closed loop (the default): --concurrency callers, each of whom sends its next request when it has
a response. Open loop: --rate requests per second, whatever the server does; a latency counts from
when the request was due, so that a stall shows in all requests that it delayed. Requests share a
stream, unless --unary makes each a call of its own. Nothing is retried. The exit status is 1 if
any request failed."""
EXAMPLES = """\
examples:
  neurona bench lenet5                              64 callers for 10 seconds
  neurona bench lenet5 --rate 2000 --duration 60 --plot lenet5.png
  neurona bench lenet5 --concurrency 1 --unary      latency of single calls
  neurona bench lenet5 digits.npy --json | jq .latency_seconds
"""

MAX_SAMPLES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="inputs, as for predict (default: synthetic inputs)",
    )
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency", type=_positive_count, default=64, metavar="N", help="callers (default: 64)"
    )
    loop.add_argument("--rate", type=_positive_rate, metavar="R", help="requests per second")
    parser.add_argument(
        "--duration",
        type=positive_seconds,
        default=10.0,
        metavar="S",
        help="seconds to measure (default: 10)",
    )
    parser.add_argument(
        "--warm-up",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="seconds before the measurement (default: 1)",
    )
    parser.add_argument(
        "--unary", action="store_true", help="send each request as a call of its own"
    )
    parser.add_argument(
        "--rows",
        type=_positive_count,
        default=1,
        metavar="N",
        help="rows of synthetic inputs (default: 1)",
    )
    parser.add_argument(
        "--steps",
        type=_positive_count,
        default=16,
        metavar="N",
        help="size of other free axes of synthetic inputs (default: 16)",
    )
    add_version_arguments(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="write a plot (PNG); needs matplotlib"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_request_arguments(parser, timeout=10.0)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and return the exit status."""
    if options.plot:
        _check_plot(options.plot)
    plan, result = asyncio.run(_measure(options))
    figures = _figures(plan, result, options.unary)
    if options.json:
        print_json(figures)
    else:
        _print_report(figures, result)
    if options.plot and result.latencies:
        from neurona_client.cli.latencies import plot

        plot(options.plot, _title(figures), result.starts, result.latencies)
        if not options.json:
            print(f"\nplot: {options.plot}")
    return FAILED if result.errors or not result.latencies else 0


async def _measure(options: argparse.Namespace) -> "tuple[LoadPlan, LoadResult]":
    from neurona_client.cli.load_generator import LoadPlan, generate_load

    async with make_bench_client(options, coalesce=not options.unary) as client:
        inputs = await _inputs(client, options)
        plan = LoadPlan(
            options.model,
            inputs,
            options.version,
            options.label,
            options.warm_up,
            options.duration,
            options.concurrency,
            options.rate,
        )
        # Invalid inputs are reported before there is load.
        await client.predict(plan.model, inputs[0], version=plan.version, label=plan.label)
        with progress_bar("bench", plan.warm_up + plan.duration) as bar:

            def show_progress(elapsed: float, responses: int) -> None:
                measured = elapsed - plan.warm_up
                bar.show(elapsed, f"{responses / measured:,.0f}/s" if measured > 0 else "warm-up")

            return plan, await generate_load(client, plan, show_progress)


async def _inputs(client: "AsyncClient", options: argparse.Namespace) -> "list[Inputs]":
    model = await client.describe(options.model, version=options.version, label=options.label)
    if not options.files:
        from neurona_client.cli.sample_files import synthetic_inputs

        return synthetic_inputs(model, options.rows, options.steps)
    from neurona_client.cli.sample_files import list_files, read_samples

    inputs: list[Inputs] = []
    for name in list_files(options.files):
        try:
            inputs += [sample.inputs for sample in read_samples(name, model)]
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror or error}") from error
        except InvalidInputError as error:
            raise CommandError(f"{name}: {error}") from error
        if len(inputs) >= MAX_SAMPLES:
            break
    if not inputs:
        raise CommandError(f"no samples in {', '.join(options.files)}")
    return inputs


def _figures(plan: "LoadPlan", result: "LoadResult", unary: bool) -> dict[str, Any]:
    return {
        "model": plan.model,
        "loop": "closed" if plan.rate is None else "open",
        "concurrency": plan.concurrency if plan.rate is None else None,
        "rate": plan.rate,
        "mode": "unary" if unary else "stream",
        "duration_seconds": plan.duration,
        "responses": len(result.latencies),
        "responses_per_second": result.responses_in_time / plan.duration,
        "latency_seconds": percentiles(result.latencies),
        "errors": dict(result.errors),
    }


def _title(figures: dict[str, Any]) -> str:
    rate, concurrency = figures["rate"], figures["concurrency"]
    load = f"{concurrency} callers" if rate is None else f"{rate:g} requests/s"
    mode = "unary calls" if figures["mode"] == "unary" else "one stream"
    return f"{figures['model']}: {figures['loop']} loop, {load}, {mode}"


def _print_report(figures: dict[str, Any], result: "LoadResult") -> None:
    print(_title(figures))
    rate = figures["responses_per_second"]
    print(f"  {figures['responses']:,} responses, {rate:,.0f} per second")
    if result.latencies:
        latencies = figures["latency_seconds"].items()
        print("  " + "   ".join(f"{name} {format_duration(value)}" for name, value in latencies))
        print()
        print("\n".join(histogram(result.latencies, terminal_width())))
    for error_class, count in result.errors.most_common():
        example = printable(result.examples[error_class])
        print(coloured(f"{count:,} failed: {error_class}, for example: {example}", RED))


def _check_plot(path: Path) -> None:
    """Find out before the measurement, not after it, that the plot cannot be written."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--plot needs matplotlib: pip install matplotlib", WRONG_USAGE)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise CommandError(
            f"cannot plot to {path} (expected a .png in an existing folder)", WRONG_USAGE
        )


def _positive_count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(
            f"invalid count {text!r} (expected an integer from 1 to 1,000,000)"
        )
    return int(text)


def _positive_rate(text: str) -> float:
    try:
        return positive_seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"invalid rate {text!r} (expected a number above 0)"
        ) from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"invalid duration {text!r} (expected 0 or more seconds)")
    return value
