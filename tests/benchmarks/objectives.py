"""Measures how a server keeps its latency objective, at and beyond its capacity; prints Markdown.

    python tests/benchmarks/objectives.py                # an hour and a half
    python tests/benchmarks/objectives.py --quick        # three minutes
    python tests/benchmarks/objectives.py --models lenet5 --objectives 50 --loads 1.5 \
        --arrivals poisson --rounds 1                    # a quarter of a minute

Requests come from one process over eight connections, at random times (a Poisson process, or one
with bursts of three times its mean rate), independently of the responses. Rates are shares of the
capacity: what the same server answers without an objective to the same process in a closed loop,
measured anew in each round. Deadlines are measured too: of each request, to a server without an
objective. A probe at real-time priority records the machine's own stalls. What was found is written
after each measurement.
"""

import argparse
import json
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from google.protobuf.json_format import MessageToDict
from measurements import environment_line
from objective_outcomes import Outcome, judge, share_at_least
from objective_server import (
    WARM_UP_SECONDS,
    WORKLOADS,
    ObjectiveServer,
    Workload,
    create_workload,
    cycle_seconds,
    measure_capacity,
    objective_server,
)
from open_loop import Array, Bursts, Load, poisson_times, send_load
from stalls import MachineTime, Stalls, stall_probe
from table import grid

from neurona_protos.prediction_pb2 import DescribeModelResponse

ROOT = Path(__file__).parents[2]
OBJECTIVES = (20, 50, 100)
LONGER_OBJECTIVES = (200, 500, 1000, 2000, 5000)
"""Milliseconds, of which the first one counts that a model can meet, if it meets none of ours."""
RUNS_IN_OBJECTIVE = 3
"""A model can meet an objective in which it runs a row so often: a request arrives during one run,
and its own may be of several rows."""
LOADS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
MINIMUM_REQUESTS = 300
"""For which a measurement takes up to three times as long."""
OBJECTIVE, DEADLINE = "objective", "deadline"
DEADLINE_ARRIVALS = "poisson"  # with which deadlines are measured, the middle one of the objectives

ARRIVALS: dict[str, Callable[[float, float, int], Array]] = {
    "poisson": poisson_times,
    "bursts": Bursts().times,
}


@dataclass(frozen=True)
class Measurement:
    """One round of a point: what became of the requests, and what it cost.

    Attributes:
        capacity: Requests per second, measured in the same round.
        rate: Requests per second that came.
        seconds: For which they were counted, after the warm-up.
        seed: Of their times.
        outcome: What became of the requests.
        counted: What the server says of its objective, by result; empty if it does not count.
        server_cpu: CPU seconds of the server for each second, start and end of the load included.
        load_cpu: Of the process that made the load.
        load_microseconds: Of the same, for each request.
        other_cpu: Of all other processes of the machine.
        stolen: CPU seconds for each second that the host gave to others.
    """

    capacity: float
    rate: float
    seconds: float
    seed: int
    outcome: Outcome
    counted: dict[str, float]
    server_cpu: float
    load_cpu: float
    load_microseconds: float
    other_cpu: float
    stolen: float


@dataclass(frozen=True)
class Promise:
    """By when an answer is promised: the server's latency objective or each request's deadline."""

    kind: str
    milliseconds: float

    def __str__(self) -> str:
        return f"{self.kind} {self.milliseconds:g} ms"


@dataclass
class Point:
    """A model under a promise and a load, with a measurement for each round."""

    workload: str
    promise: Promise
    arrivals: str
    load: float
    rounds: list[Measurement] = field(default_factory=list)
    description: dict[str, Any] = field(default_factory=dict)
    """What Models.Describe says of the first model after the last round."""

    def total(self, name: str) -> int:
        """Returns the sum of a field of all outcomes."""
        return sum(getattr(one.outcome, name) for one in self.rounds)


@dataclass
class Results:
    """Everything that was measured.

    Attributes:
        environment: The machine and the versions.
        points: In the order of their measurement.
        capacities: Requests per second by workload, one for each round.
        is_real_time: Whether the probes of stalls ran before all ordinary processes.
    """

    environment: str
    points: list[Point] = field(default_factory=list)
    capacities: dict[str, list[float]] = field(default_factory=dict)
    is_real_time: bool = True

    def point(self, workload: str, promise: Promise, arrivals: str, load: float) -> Point:
        """Returns a point, a new one if there is none."""
        key = (workload, promise, arrivals, load)
        for one in self.points:
            if (one.workload, one.promise, one.arrivals, one.load) == key:
                return one
        self.points.append(Point(*key))
        return self.points[-1]


def arrival_times(arrivals: str, rate: float, seconds: float, seed: int) -> Array:
    """Returns when requests come, from the start of the warm-up."""
    return ARRIVALS[arrivals](rate, WARM_UP_SECONDS + seconds, seed)


def measure_point(
    server: ObjectiveServer, point: Point, capacity: float, seconds: float, seed: int
) -> tuple[Measurement, Stalls]:
    """Sends requests at a share of the capacity, and returns what became of them."""
    promise, rate = point.promise, point.load * capacity
    load = Load(
        server.address,
        server.workload.bodies,
        arrival_times(point.arrivals, rate, seconds, seed),
        seconds=seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        seed=seed,
        timeout=promise.milliseconds / 1000 if promise.kind == DEADLINE else 0.0,
    )
    if not server.settle():
        _say("the server is still busy with the load before: what follows is not of one load")
    before, counted = _Costs.now(server), server.counted()
    with stall_probe() as stalls:
        arrivals = send_load(load)
    after, counted_after = _Costs.now(server), server.counted()
    wall = after.clock - before.clock
    used = after.busy - before.busy - (after.server - before.server) - (after.own - before.own)
    measurement = Measurement(
        capacity=capacity,
        rate=rate,
        seconds=seconds,
        seed=seed,
        outcome=judge(
            arrivals, promise.milliseconds / 1000, stalls, cycle_seconds(server.describe())
        ),
        counted={key: value - counted.get(key, 0.0) for key, value in counted_after.items()},
        server_cpu=(after.server - before.server) / wall,
        load_cpu=arrivals.cpu_seconds / arrivals.wall_seconds,
        load_microseconds=1e6 * arrivals.cpu_seconds / max(1, arrivals.all_sent),
        other_cpu=max(0.0, used) / wall,
        stolen=(after.stolen - before.stolen) / wall,
    )
    return measurement, stalls


@dataclass(frozen=True)
class _Costs:
    """CPU seconds so far: of the machine, the server, and this process with its ended children."""

    clock: float
    busy: float
    stolen: float
    server: float
    own: float

    @classmethod
    def now(cls, server: ObjectiveServer) -> "_Costs":
        machine = MachineTime.now()
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        clock = time.perf_counter()
        return cls(clock, machine.busy, machine.stolen, server.running.cpu_seconds(), own)


def choose_objectives(asked: Sequence[float], description: DescribeModelResponse) -> list[float]:
    """Returns those of the objectives, in milliseconds, that a model can meet, or a longer one."""
    run_ms = 1000 * min((cost.seconds for cost in description.batching.costs), default=0.0)
    met = [one for one in asked if one >= RUNS_IN_OBJECTIVE * run_ms]
    longer = [one for one in LONGER_OBJECTIVES if one >= RUNS_IN_OBJECTIVE * run_ms]
    return met or longer[:1] or [LONGER_OBJECTIVES[-1]]


def run_round(
    workload: Workload, arguments: argparse.Namespace, number: int, results: Results
) -> Iterator[None]:
    """Measures all points of a workload once; stops after each, so that it can be written."""
    with objective_server(workload) as server:
        capacity = measure_capacity(server, max(2.0, arguments.seconds / 4))
        objectives = choose_objectives(arguments.objectives, server.describe())
    results.capacities.setdefault(workload.name, []).append(capacity)
    _say(f"{workload.name}: capacity {capacity:.0f} per second")
    promises = [Promise(OBJECTIVE, one) for one in objectives]
    promises.append(Promise(DEADLINE, objectives[len(objectives) // 2]))
    for promise in promises:
        objective = promise.milliseconds if promise.kind == OBJECTIVE else 0.0
        with objective_server(workload, objective) as server:
            for load, arrivals in product(arguments.loads, arguments.arrivals):
                if promise.kind == DEADLINE and arrivals != DEADLINE_ARRIVALS:
                    continue
                seed = 1000 * number + round(10 * load)
                point = results.point(workload.name, promise, arrivals, load)
                seconds = max(arguments.seconds, MINIMUM_REQUESTS / (load * capacity))
                seconds = min(seconds, arguments.longest_seconds)
                measurement, stalls = measure_point(server, point, capacity, seconds, seed)
                point.rounds.append(measurement)
                results.is_real_time &= stalls.is_real_time
                point.description = _describe(server)
                _say(_line(point))
                yield


def _describe(server: ObjectiveServer) -> dict[str, Any]:
    """Returns what the server says of the batching of its first model, as JSON has it."""
    description: dict[str, Any] = MessageToDict(server.describe(), preserving_proto_field_name=True)
    return {key: description[key] for key in ("model", "batched", "batching") if key in description}


def _line(point: Point) -> str:
    last = point.rounds[-1]
    one = last.outcome
    return (
        f"{point.workload}, {point.promise}, {point.arrivals}, {point.load:g} of "
        f"capacity: {one.sent} sent, {one.in_time} in time, {one.late} late ({one.stalled} by "
        f"stalls), {one.dropped} dropped, {one.refused} refused, {one.failed} failed; goodput "
        f"{one.goodput / last.capacity:.2f}; p50 {_ms(one.p50)}, p99 {_ms(one.p99)}, p99.9 "
        f"{_ms(one.p999)} ms; refusals p99 {_ms(one.refusal_p99)} ms; hints p90 "
        f"{_percent(one.hint_p90, 0)} off; load late p99 {_ms(one.lateness_p99)}, gap p99 "
        f"{_ms(one.gap_p99)} ms, {last.load_microseconds:.0f} us a request; CPU: server "
        f"{last.server_cpu:.2f}, load {last.load_cpu:.2f}, others {last.other_cpu:.2f}; "
        f"stalls {one.stall_count}, longest {_ms(one.longest_stall)} ms"
    )


HEAD = (
    *("arrivals, load", "sent", "in time", "at least", "late", "by stalls", "dropped", "refused"),
    *("goodput", "p50", "p99", "p99.9", "refusal p99", "hint p90", "load late p99", "gap p99"),
    *("us a request", "other CPU", "longest stall"),
)

LEGEND = """\
- in time: of the admitted requests, those answered within the objective after they were sent; "at
  least": with 95 % confidence, if requests were independent (Wilson).
- by stalls: late requests that would have been in time without the stalls of the machine between
  their sending and their answer. "longest stall" is the longest one.
- goodput: answers in time per second, divided by the capacity: the median of the rounds, and
  their range.
- p50, p99, p99.9: milliseconds from sending to the answer, of the answered; the worst round.
- hint p90: the relative error that 90 % of the hints do not exceed, against what the admitted
  requests before and after met.
- load late p99, gap p99: milliseconds by which requests were sent, and answers read, too late.
- other CPU: of processes that do not belong to the benchmark, CPUs.
"""


def format_results(results: Results) -> str:
    """Returns everything as Markdown."""
    parts = ["# Latency objectives", results.environment]
    if not results.is_real_time:
        parts.append("The probes of stalls had no real-time priority: stalls may be ordinary load.")
    parts.append(LEGEND)
    sections: dict[tuple[str, Promise], list[Point]] = {}
    for one in results.points:
        sections.setdefault((one.workload, one.promise), []).append(one)
    for (workload, promise), points in sections.items():
        capacities = results.capacities[workload]
        parts.append(f"## {workload}, {promise}")
        parts.append(
            f"Capacity {median(capacities):,.0f} per second "
            f"({min(capacities):,.0f} to {max(capacities):,.0f})."
        )
        points.sort(key=lambda one: (one.arrivals != "poisson", one.load))
        parts.append(grid(HEAD, map(_cells, points)))
    return "\n\n".join(parts) + "\n"


def _cells(point: Point) -> list[str]:
    rounds = point.rounds
    in_time, late, dropped = (point.total(name) for name in ("in_time", "late", "dropped"))
    admitted = in_time + late + dropped + point.total("failed")
    shares = [one.outcome.goodput / one.capacity for one in rounds]
    goodput = f"{median(shares):.2f}"
    if len(shares) > 1:
        goodput += f" ({min(shares):.2f} to {max(shares):.2f})"

    def worst(name: str) -> float:
        return max(getattr(one.outcome, name) for one in rounds)

    return [
        f"{point.arrivals}, {point.load:g}",
        f"{point.total('sent'):,}",
        _percent(in_time / admitted if admitted else float("nan"), 3),
        _percent(share_at_least(in_time, admitted), 3),
        *(f"{count:,}" for count in (late, point.total("stalled"), dropped)),
        f"{point.total('refused'):,}",
        goodput,
        *(_ms(worst(name)) for name in ("p50", "p99", "p999", "refusal_p99")),
        _percent(worst("hint_p90"), 0),
        *(_ms(worst(name)) for name in ("lateness_p99", "gap_p99")),
        f"{max(one.load_microseconds for one in rounds):.0f}",
        f"{max(one.other_cpu for one in rounds):.2f}",
        _ms(worst("longest_stall")),
    ]


def _ms(seconds: float) -> str:
    return "" if seconds != seconds else f"{1000 * seconds:.1f}"


def _percent(share: float, digits: int) -> str:
    return "" if share != share else f"{100 * share:.{digits}f} %"


def _write(results: Results, folder: Path) -> str:
    text = format_results(results)
    (folder / "objectives.md").write_text(text)
    (folder / "objectives.json").write_text(json.dumps(asdict(results), indent=1))
    return text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # stops the servers too
    arguments.folder.mkdir(parents=True, exist_ok=True)
    workloads = [create_workload(name, arguments.folder) for name in arguments.models]
    results = Results(environment_line())
    text = ""
    for number in range(arguments.rounds):
        for workload in workloads:
            for _ in run_round(workload, arguments, number, results):
                text = _write(results, arguments.folder)
    print(text)
    print(f"Written: {arguments.folder / 'objectives.md'}, {arguments.folder / 'objectives.json'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--objectives", nargs="+", type=float, metavar="MS")
    parser.add_argument("--loads", nargs="+", type=float, metavar="SHARE", help="of the capacity")
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=list(ARRIVALS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench")
    parser.add_argument("--quick", action="store_true", help="three loads, one objective and round")
    arguments = parser.parse_args()
    quick = arguments.quick
    arguments.objectives = arguments.objectives or ([50.0] if quick else list(OBJECTIVES))
    arguments.loads = arguments.loads or ([0.8, 1.5, 3.0] if quick else list(LOADS))
    arguments.rounds = arguments.rounds or (1 if quick else 3)
    arguments.seconds = arguments.seconds or (3.0 if quick else 8.0)
    arguments.longest_seconds = arguments.seconds if quick else 3 * arguments.seconds
    return arguments


if __name__ == "__main__":
    main()
