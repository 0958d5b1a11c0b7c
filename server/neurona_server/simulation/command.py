"""The command neurona-simulate: what servers would do under a load."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from neurona_server.simulation.description import describe_models
from neurona_server.simulation.experiment import ModelReport, Report, simulate
from neurona_server.simulation.scenario import Scenario, described_model, read_scenario
from neurona_server.simulation.search import (
    Simulate,
    Target,
    compare_objectives,
    find_rate,
    find_replicas,
)

DESCRIPTION = """\
Simulates servers under a load: the queue, the admission and the batching of Neurona itself, on a
virtual clock. What a model's batches cost comes from a server that has measured it, or from a file.
"""

EXAMPLES = """\
examples:
  neurona-simulate --server localhost:50051 --model lenet5 --rate 3000
  neurona-simulate --server localhost:50051 --save lenet5.json
  neurona-simulate --costs lenet5.json --rate 3000 --find replicas --p99-ms 50
  neurona-simulate --costs lenet5.json --rate 3000 --find objective
"""

DEFAULT_REQUESTS = 30_000
"""Simulated unless the time is given: they show p99.9, in a few seconds."""

MIN_SECONDS, MAX_SECONDS = 0.5, 60.0
"""Of them, in virtual time."""

COLUMNS = (
    *("model", "rate/s", "goodput/s", "mean ms", "p50 ms", "p99 ms", "p99.9 ms"),
    *("refused", "dropped", "in time", "batch", "busy"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None: those of this process.

    Returns:
        Its exit status: 1 if what is searched for does not exist.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        scenario = _scenario(options)
        folder = Path(options.costs).parent if options.costs and not options.trace else Path()
        if options.save:
            content = msgspec.json.format(msgspec.json.encode(scenario), indent=2)
            Path(options.save).write_bytes(content + b"\n")
    except (OSError, ValueError) as error:
        _fail(parser, error)

    def run(scenario: Scenario) -> Report:
        seconds = options.seconds or min(
            MAX_SECONDS, max(MIN_SECONDS, DEFAULT_REQUESTS / scenario.rate)
        )
        return simulate(
            scenario, seconds, warm_up=options.warm_up, seed=options.seed, folder=folder
        )

    try:
        answer, lines = _answer(options, scenario, run)
    except OSError as error:  # a trace
        _fail(parser, error)
    except ValueError as error:
        print(f"neurona-simulate: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if options.json else "\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neurona-simulate",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--server", metavar="HOST:PORT", help="a server that is asked for its costs"
    )
    source.add_argument(
        "--costs",
        metavar="FILE",
        help="a scenario in JSON, or what `neurona describe MODEL --json` printed",
    )
    add("--model", action="append", default=[], metavar="NAME", help="only this model (repeatable)")
    add("--save", metavar="FILE", help="write the scenario, to simulate it without the server")
    add("--rate", type=_positive, help="requests a second of all models together")
    add("--arrivals", choices=("poisson", "bursts"), help="how requests come")
    add("--trace", metavar="FILE", help="requests come as recorded: a time in seconds a line")
    add("--objective-ms", type=_not_negative, help="latency objective of all models; 0: none")
    add("--deadline-ms", type=_not_negative, help="deadline of all requests; 0: none")
    add("--replicas", type=_count, help="servers")
    add("--balancer", choices=("round_robin", "least_outstanding"), help="which server gets what")
    add("--seconds", type=_positive, help="virtual time that is counted (that of 30000 requests)")
    add("--warm-up", type=_not_negative, default=1.0, help="seconds before that (1)")
    add("--seed", type=int, default=1, help="of chance: the same one gives the same report (1)")
    add("--find", choices=("replicas", "rate", "objective"), help="what to search for")
    add("--p99-ms", type=_positive, default=50.0, help="what --find is to keep (50)")
    add(
        "--unanswered",
        type=_not_negative,
        default=0.001,
        help="share of requests that may be refused or dropped (0.001)",
    )
    add(
        "--objectives-ms",
        type=_objectives,
        default=(10.0, 20.0, 50.0, 100.0, 200.0, 0.0),
        help="what --find objective compares; 0: none (10,20,50,100,200,0)",
    )
    add("--json", action="store_true", help="print JSON")
    return parser


def _scenario(options: argparse.Namespace) -> Scenario:
    """Return what the options say is simulated; raise OSError or ValueError if they are wrong."""
    if options.server:
        described = [described_model(one) for one in describe_models(options.server, options.model)]
        if not described:
            raise ValueError(f"{options.server}: serves no model (expected at least one)")
        scenario = Scenario(models=tuple(described))
    else:
        try:
            scenario = read_scenario(Path(options.costs))
        except ValueError as error:
            raise ValueError(f"{options.costs}: {error}") from None
        if options.model:
            names = [model.name for model in scenario.models]
            if unknown := sorted(set(options.model) - set(names)):
                raise ValueError(
                    f"{options.costs}: no model {unknown[0]!r} (expected one of {names})"
                )
            models = tuple([model for model in scenario.models if model.name in options.model])
            scenario = msgspec.structs.replace(scenario, models=models)
    changes: dict[str, Any] = {}
    if options.arrivals:
        changes["arrivals"] = options.arrivals
    if options.trace:
        changes |= {"arrivals": "trace", "trace": options.trace}
    if options.deadline_ms is not None:
        changes["deadline_ms"] = options.deadline_ms
    scenario = scenario.with_load(**changes)
    if options.objective_ms is not None:
        scenario = scenario.with_objective(options.objective_ms / 1000)
    if options.replicas:
        scenario = scenario.with_replicas(options.replicas)
    if options.balancer:
        scenario = msgspec.structs.replace(scenario, balancer=options.balancer)
    return scenario.with_rate(options.rate) if options.rate else scenario


def _answer(
    options: argparse.Namespace, scenario: Scenario, run: Simulate
) -> tuple[object, list[str]]:
    """Return the answer to the command's question, as JSON and as lines of text."""
    target = Target(options.p99_ms / 1000, options.unanswered)
    kept = f"p99 {options.p99_ms:g} ms with at most {options.unanswered:.2%} unanswered"
    if options.find == "replicas":
        enough, reports = find_replicas(scenario, target, run)
        lines = [f"{_servers(enough.replicas)} for {scenario.rate:g} requests a second: {kept}", ""]
        lines += _table(reports)
        return {"replicas": enough.replicas, "reports": _dictionaries(reports)}, lines
    if options.find == "rate":
        rate, reports = find_rate(scenario, target, run)
        lines = [f"{rate:.4g} requests a second with {_servers(scenario.replicas)}: {kept}", ""]
        lines += _table(reports)
        return {"rate": rate, "reports": _dictionaries(reports)}, lines
    if options.find == "objective":
        objectives = [value / 1000 if value else None for value in options.objectives_ms]
        costs = compare_objectives(scenario, objectives, run)
        rows = [
            (
                "none" if cost.objective is None else f"{1000 * cost.objective:g} ms",
                f"{cost.capacity:.0f}",
                *_cells(model),
            )
            for cost in costs
            for model in cost.report.models
        ]
        answer = [
            {
                "objective_ms": cost.objective and 1000 * cost.objective,
                "capacity": cost.capacity,
                "report": cost.report.to_json(),
            }
            for cost in costs
        ]
        return answer, _aligned([("objective", "capacity/s", *COLUMNS), *rows])
    report = run(scenario)
    return report.to_json(), _table([report])


def _table(reports: Sequence[Report]) -> list[str]:
    rows = [(str(report.replicas), *_cells(model)) for report in reports for model in report.models]
    return _aligned([("servers", *COLUMNS), *rows])


def _cells(model: ModelReport) -> tuple[str, ...]:
    times = (model.mean_ms, model.p50_ms, model.p99_ms, model.p999_ms)
    shares = (model.refused, model.dropped, model.in_time)
    return (
        *(model.model, f"{model.rate:.0f}", f"{model.goodput:.0f}"),
        *["-" if math.isnan(value) else f"{value:.2f}" for value in times],
        *["-" if math.isnan(share) else f"{share:.2%}" for share in shares],
        "-" if math.isnan(model.mean_batch_rows) else f"{model.mean_batch_rows:.1f}",
        f"{model.utilisation:.0%}",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([cell.rjust(width) for cell, width in zip(row, widths, strict=True)])
        for row in rows
    ]


def _servers(number: int) -> str:
    return "1 server" if number == 1 else f"{number} servers"


def _dictionaries(reports: Sequence[Report]) -> list[dict[str, Any]]:
    return [report.to_json() for report in reports]


def _fail(parser: argparse.ArgumentParser, error: Exception) -> NoReturn:
    parser.exit(2, f"neurona-simulate: {error}\n")


def _positive(text: str) -> float:
    return _number(text, above=0.0)


def _not_negative(text: str) -> float:
    return _number(text, above=-1e-12)


def _number(text: str, above: float) -> float:
    value = float(text)
    if not above < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} (expected a number above {max(above, 0):g})")
    return value


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} (expected at least 1)")
    return int(text)


def _objectives(text: str) -> tuple[float, ...]:
    return tuple([_not_negative(part) for part in text.split(",")])
