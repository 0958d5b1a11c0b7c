"""Compares policies for sequences of different lengths, all in one run; prints Markdown.

    python tests/benchmarks/sequences.py [--quick] [--folder bench] [--data NEURONA_DATA]

An LSTM is served by one server for each policy; only the policy differs:

    neurona   as the server chooses by itself
    padded    (a) what arrived first shares a run, padded to the longest of it
    closed    (b) a batch ends where the next request has another length, as Triton's does
    equal     (c) sequences of equal length share a run, whenever they arrived
    single    (d) no batches

Requests come at random times, at shares of the highest rate that each server sustains, and their
times count from when they should have been sent. It is one file since every figure is of the same
servers and requests.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import grpc
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from models import FACTORIES, Model, create_model
from open_loop import Arrivals, Load, poisson_load, send_load
from prometheus_client.parser import text_string_to_metric_families
from sequence_lengths import MIXES, Lengths, class_bounds, draw_lengths, length_class
from table import grid

from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse
from neurona_protos.tensors import to_tensor

ROOT = Path(__file__).parents[2]
SHARES = (0.25, 0.5, 0.65, 0.8, 0.9, 0.95)
"""Of a server's capacity, at which requests come."""
COMPARED_SHARES = (0.5, 0.8, 0.95)
NETWORKS = ("lstm", "lstm512")
"""With 128 and 512 units; what the lengths of other data do is measured with the first one."""
LOG_NORMAL = "log-normal"
IN_FLIGHT = 256
"""With so many requests always in flight a server runs full batches."""
FEWER_IN_FLIGHT = (8, 32)
"""A policy that pads is faster with few requests in flight than with many."""
BISECTIONS = 6
MAX_GROWTH = 0.03
"""Part of the requests that may wait more at the end than at the start of a sustained rate."""
SEQUENCES = 1000
"""That are drawn from."""
CLASSES = ("shortest quarter", "second quarter", "third quarter", "longest quarter")
TOLERANCE = 1e-5
STEPS, PADDING_STEPS = "neurona_sequence_steps_total", "neurona_sequence_padding_steps_total"


@dataclass(frozen=True)
class Arm:
    """A policy: the name of a server, how its process is started, and what it is in words."""

    name: str
    policy: str
    options: tuple[str, ...]
    title: str


OURS = "neurona"
ARMS = (
    Arm(OURS, "server", (), "neurona"),
    Arm("padded", "padded", ("--sequence-batching", "ragged"), "(a) padded to the longest"),
    Arm("closed", "closed", ("--sequence-batching", "ragged"), "(b) closed at a new length"),
    Arm("equal", "server", ("--sequence-batching", "equal-lengths"), "(c) equal lengths"),
    Arm("single", "server", ("--max-batch-rows", "1"), "(d) no batches"),
)
FORCED = (
    Arm("ragged", "server", ("--sequence-batching", "ragged"), "neurona, ragged"),
    Arm("cellular", "server", ("--sequence-batching", "cellular"), "neurona, cellular"),
)


@dataclass
class Point:
    """What requests at one rate got from a server, one number for each round.

    Attributes:
        share: Of the server's capacity.
        rates: Responses per second.
        p50, p99: Seconds.
        class_p50, class_p99: The same by quarter of lengths; a row for each round.
        failed: Requests without a response, in all rounds.
        padded_shares: Steps of padding among all that the server ran.
        lateness: The 99th percentile of the seconds that the load itself was late.
    """

    share: float
    offered: float
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    class_p50: list[list[float]] = field(default_factory=list)
    class_p99: list[list[float]] = field(default_factory=list)
    failed: int = 0
    padded_shares: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)


@dataclass
class Curve:
    """All points of one server with one mix of lengths.

    Attributes:
        capacity: The highest rate that it sustains, requests per second at random times.
        full_rates: Responses per second with many requests always in flight, by round.
    """

    capacity: float = 0.0
    full_rates: list[float] = field(default_factory=list)
    cpu_microseconds: list[float] = field(default_factory=list)
    """Of the server, for each of these responses: what else runs changes it little."""
    points: list[Point] = field(default_factory=list)

    def point(self, share: float) -> Point:
        """Returns the point at a share of the capacity."""
        return next(one for one in self.points if one.share == share)

    def point_from(self, rate: float) -> Point:
        """Returns the point of the lowest rate that is at least `rate`, or the last one."""
        points = sorted(self.points, key=lambda one: median(one.rates))
        return next((one for one in points if median(one.rates) >= rate), points[-1])

    def rate_at(self, p99: float, round_number: int | None = None) -> float:
        """Returns the highest rate at which 99 % of requests take at most `p99` seconds.

        It is interpolated between the points; beyond the last one it is the last one's rate, and
        below the first one 0.

        Args:
            p99: Seconds.
            round_number: Whose points count. None: the medians of all rounds.
        """
        points = sorted(
            (_of_round(one.rates, round_number), _of_round(one.p99, round_number))
            for one in self.points
        )
        within = [index for index, (_, seconds) in enumerate(points) if seconds <= p99]
        if not within:
            return 0.0
        if (last := within[-1]) + 1 == len(points):
            return points[last][0]
        (rate, seconds), (next_rate, next_seconds) = points[last : last + 2]
        part = math.log(p99 / seconds) / math.log(next_seconds / seconds)
        return rate + part * (next_rate - rate)


def _of_round(values: Sequence[float], round_number: int | None) -> float:
    return median(values) if round_number is None else values[round_number]


@dataclass
class MixResult:
    """Everything that was measured with one network and one mix of lengths."""

    mix: str
    network: str
    mean_steps: float
    bounds: list[int]
    curves: dict[str, Curve] = field(default_factory=dict)
    one_length_ratios: list[float] = field(default_factory=list)
    """By round: the rate with mixed lengths, divided by that with their mean alone."""


@dataclass(frozen=True)
class RunningArm:
    """A server that runs."""

    address: str
    metrics_url: str
    process: int

    def cpu_seconds(self) -> float:
        """Returns its user and system time so far."""
        text = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")

    def steps(self) -> tuple[float, float]:
        """Returns the steps of sequences that it has run, and those of padding."""
        with urllib.request.urlopen(self.metrics_url, timeout=20) as response:  # noqa: S310 http
            text = response.read().decode()
        counts = dict.fromkeys((STEPS, PADDING_STEPS), 0.0)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in counts:
                    counts[sample.name] += sample.value
        return counts[STEPS], counts[PADDING_STEPS]


@contextlib.contextmanager
def running_arm(arm: Arm, repository: Path) -> Iterator[RunningArm]:
    """Starts the server of an arm, and stops it."""
    address, metrics_address = _free_address(), _free_address()
    script = Path(__file__).with_name("sequence_server.py")
    command = [sys.executable, script, arm.policy, "--repository", repository]
    command += ["--address", address, "--metrics-address", metrics_address]
    command += ["--http-address", "off", "--log-level", "error", *arm.options]
    process = subprocess.Popen([str(word) for word in command])
    try:
        with grpc.insecure_channel(address) as channel:
            HealthStub(channel).Check(HealthCheckRequest(), timeout=60, wait_for_ready=True)
        yield RunningArm(address, f"http://{metrics_address}/metrics", process.pid)
    finally:
        process.terminate()
        process.wait()


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def make_requests(model: Model, lengths: Lengths) -> list[PredictRequest]:
    """Returns a request of one sequence for each length."""
    generator = np.random.default_rng(1)
    name, features = model.graph.input[0].name, model.row[-1]
    return [
        PredictRequest(
            model=model.name,
            inputs=[
                to_tensor(name, generator.normal(0, 1, (1, steps, features)).astype(np.float32))
            ],
        )
        for steps in lengths.tolist()
    ]


def check_answers(model: Model, requests: Sequence[PredictRequest], arrivals: Arrivals) -> float:
    """Compares responses with ONNX Runtime's own, one sequence at a time.

    Returns:
        The largest difference.

    Raises:
        RuntimeError: It is above TOLERANCE.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model.file)
    largest = 0.0
    for item, response in arrivals.responses.items():
        tensor = requests[item].inputs[0]
        values = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
        (expected,) = session.run(None, {tensor.name: values})
        row = PredictResponse.FromString(response).classification.rows[0]
        difference = np.array(row.probabilities) - expected[0, list(row.indices)]
        largest = max(largest, float(np.abs(difference).max()))
    if largest > TOLERANCE:
        raise RuntimeError(f"a response differs by {largest:.2g} (expected {TOLERANCE:.0e})")
    return largest


def measure_mix(
    mix: str,
    model: Model,
    arms: dict[str, RunningArm],
    lengths: Lengths,
    *,
    shares: Sequence[float],
    rounds: int,
    seconds: float,
) -> MixResult:
    """Measures all servers with one mix of lengths, in rounds."""
    mean = round(float(lengths.mean()))
    result = MixResult(mix, model.name, float(lengths.mean()), class_bounds(lengths))
    requests = make_requests(model, lengths)
    bodies = [request.SerializeToString() for request in requests]
    same = make_requests(model, np.full(len(lengths), mean))
    same_bodies = [request.SerializeToString() for request in same]
    for name, arm in arms.items():
        in_flight = Load(arm.address, bodies, in_flight=IN_FLIGHT, seconds=seconds)
        check_answers(model, requests, send_load(in_flight))
        result.curves[name] = Curve(find_capacity(arm, bodies, seconds))
    for round_number in range(rounds):
        for name, arm in _rotate(arms, round_number):
            load = Load(
                arm.address, bodies, in_flight=IN_FLIGHT, seconds=seconds, seed=round_number
            )
            before = arm.cpu_seconds()
            arrivals = send_load(load)
            cpu = arm.cpu_seconds() - before
            result.curves[name].full_rates.append(arrivals.rate)
            result.curves[name].cpu_microseconds.append(1e6 * cpu / arrivals.total)
            if name == OURS:
                equal = send_load(Load(**{**vars(load), "bodies": same_bodies})).rate
                result.one_length_ratios.append(result.curves[name].full_rates[-1] / equal)
    for name, curve in result.curves.items():
        _say(f"{model.name}, {mix}, {name}: {curve.capacity:.0f} per second")
        curve.points = [Point(share, share * curve.capacity) for share in shares]
    for round_number in range(rounds):
        for index, share in enumerate(shares):
            for name, arm in _rotate(arms, round_number):
                point = result.curves[name].points[index]
                _measure_point(arm, bodies, lengths, result.bounds, point, seconds, round_number)
                _say(f"{model.name}, {mix}, {name}, {share:.0%}: p99 {1000 * point.p99[-1]:.1f} ms")
    return result


def find_capacity(arm: RunningArm, bodies: Sequence[bytes], seconds: float) -> float:
    """Returns the highest rate of requests at random times that a server sustains."""
    full = Load(arm.address, bodies, in_flight=IN_FLIGHT, seconds=seconds)
    fewer = [Load(**{**vars(full), "in_flight": number}) for number in FEWER_IN_FLIGHT]
    low, high = 0.0, 1.1 * max(send_load(one).rate for one in (full, *fewer))
    for step in range(BISECTIONS):
        rate = (low + high) / 2
        load = poisson_load(arm.address, bodies, rate, 1.5 * seconds, 200 + step)
        if is_sustained(send_load(load)):
            low = rate
        else:
            high = rate
    return low or high


def is_sustained(arrivals: Arrivals) -> bool:
    """Returns whether all requests had responses, and hardly more waited at the end."""
    number = len(arrivals.latencies)
    return not arrivals.failed and number - arrivals.responded <= MAX_GROWTH * number


def _measure_point(
    arm: RunningArm,
    bodies: Sequence[bytes],
    lengths: Lengths,
    bounds: list[int],
    point: Point,
    seconds: float,
    seed: int,
) -> None:
    steps, padding = arm.steps()
    load = poisson_load(arm.address, bodies, point.offered, seconds, 100 + seed)
    arrivals = send_load(load)
    more_steps, more_padding = arm.steps()
    more_steps, more_padding = more_steps - steps, more_padding - padding
    latencies = arrivals.latencies
    classes = np.array([length_class(int(lengths[item]), bounds) for item in arrivals.items])
    by_class = [latencies[classes == index] for index in range(len(CLASSES))]
    point.rates.append(len(latencies) / seconds)
    point.p50.append(_quantile(latencies, 0.5))
    point.p99.append(_quantile(latencies, 0.99))
    point.class_p50.append([_quantile(one, 0.5) for one in by_class])
    point.class_p99.append([_quantile(one, 0.99) for one in by_class])
    point.failed += arrivals.failed
    point.padded_shares.append(more_padding / max(1.0, more_steps + more_padding))
    point.lateness.append(_quantile(arrivals.lateness, 0.99))


def _quantile(values: np.ndarray, part: float) -> float:
    return float(np.quantile(values, part, method="higher")) if len(values) else math.nan


def _rotate(arms: dict[str, RunningArm], by: int) -> list[tuple[str, RunningArm]]:
    """Returns the arms, beginning with another one in each round."""
    items = list(arms.items())
    return items[by % len(items) :] + items[: by % len(items)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ratios_at_equal_p99(
    result: MixResult, name: str, round_number: int | None = None
) -> dict[float, float]:
    """Returns, by share of another server's capacity, our rate at its p99, divided by its rate.

    Args:
        result: Of a network and a mix of lengths.
        name: Of the other server.
        round_number: What is compared. None: the medians of all rounds.
    """
    ours, other = result.curves[OURS], result.curves[name]
    return {
        one.share: ours.rate_at(_of_round(one.p99, round_number), round_number)
        / _of_round(one.rates, round_number)
        for one in other.points
        if one.share in COMPARED_SHARES
    }


def _ratio_texts(result: MixResult, name: str) -> list[str]:
    """Returns the ratios at the p99 of another server, each with its range over the rounds."""
    rounds = [
        ratios_at_equal_p99(result, name, index)
        for index in range(len(result.curves[name].full_rates))
    ]
    texts = []
    for share, ratio in ratios_at_equal_p99(result, name).items():
        values = [one[share] for one in rounds]
        texts.append(f"{ratio:.2f} ({min(values):.2f}-{max(values):.2f})")
    return texts


def write_results(results: Sequence[MixResult], titles: dict[str, str], folder: Path) -> str:
    """Writes sequences.md, .json and .png into a folder, and returns the text."""
    from sequence_plot import draw_curves  # imports matplotlib, which takes a second

    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([_environment(), *(_mix_text(one, titles) for one in results)]) + "\n"
    (folder / "sequences.md").write_text(text)
    (folder / "sequences.json").write_text(
        json.dumps([asdict(one) for one in results], indent=1, default=float) + "\n"
    )
    draw_curves(results, titles, folder / "sequences.png")
    return text


def _environment() -> str:
    import onnxruntime

    return (
        f"# Sequences of different lengths\n\n{os.cpu_count()} CPUs, load average "
        f"{os.getloadavg()[0]:.1f} at the end, ONNX Runtime {onnxruntime.__version__}, "
        f"{time.strftime('%d %B %Y')}."
    )


def _mix_text(result: MixResult, titles: dict[str, str]) -> str:
    head = [
        "",
        "capacity",
        "256 in flight",
        "CPU µs",
        *(f"p99 at {share:.0%}" for share in COMPARED_SHARES),
    ]
    head += ["padded", "failed", *(f"{share:.0%}: ours at its p99" for share in COMPARED_SHARES)]
    rows, class_rows = [], []
    for name, curve in result.curves.items():
        points = [curve.point(share) for share in COMPARED_SHARES]
        rows.append(
            [
                titles[name],
                f"{curve.capacity:,.0f}",
                f"{median(curve.full_rates):,.0f}",
                f"{median(curve.cpu_microseconds):.0f}",
                *(_milliseconds(one.p99) for one in points),
                f"{median(points[1].padded_shares):.0%}",
                str(sum(one.failed for one in points)),
                *([""] * len(points) if name == OURS else _ratio_texts(result, name)),
            ]
        )
        p50s, p99s = np.median(points[1].class_p50, axis=0), np.median(points[1].class_p99, axis=0)
        cells = [f"{1e3 * p50:.1f} / {1e3 * p99:.1f}" for p50, p99 in zip(p50s, p99s, strict=True)]
        class_rows.append([titles[name], *cells])
    ratios = result.one_length_ratios
    one_length = (
        f"The rate with mixed lengths, divided by that of sequences of {result.mean_steps:.0f} "
        f"steps: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})."
    )
    bounds = ", ".join(map(str, result.bounds))
    return (
        f"## {result.network}, {result.mix}: {result.mean_steps:.1f} steps on average, "
        f"quarters end at {bounds}\n\n"
        f"Requests per second: the highest rate of random arrivals that is sustained, and with "
        f"{IN_FLIGHT} always in flight, with the CPU time of the server for each; milliseconds at "
        f"shares of the capacity; medians of the rounds, ratios with their range over the "
        f"rounds.\n\n{grid(head, rows)}\n\n"
        f"p50 / p99 in milliseconds at 80 % of the capacity, by length:\n\n"
        f"{grid(['', *CLASSES], class_rows)}\n\n{one_length}"
    )


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * median(seconds):.1f}"


def must_show(result: MixResult) -> list[tuple[str, float, float]]:
    """Returns what is to be shown of a mix, each with its value and the least that it should be."""
    found = []
    for name, least in (("padded", 2.0), ("closed", 3.0)):
        if name in result.curves:
            for share, ratio in ratios_at_equal_p99(result, name).items():
                found.append((f"rate at the p99 of {name} at {share:.0%}", ratio, least))
    if "padded" in result.curves:
        shortest = [
            float(np.median(result.curves[name].point(0.8).class_p99, axis=0)[0])
            for name in ("padded", OURS)
        ]
        title = "p99 of the shortest quarter, padded by ours, each at 80 % of its capacity"
        found.append((title, shortest[0] / shortest[1], 3.0))
        rate = median(result.curves["padded"].point(0.8).rates)
        faster = result.curves[OURS].point_from(rate)
        same_rate = float(np.median(faster.class_p99, axis=0)[0])
        title = "p99 of the shortest quarter, padded by ours, both at the rate of padded at 80 %"
        found.append((title, shortest[0] / same_rate, 3.0))
    found.append(("mixed lengths by one length", median(result.one_length_ratios), 0.9))
    return found


def main() -> None:
    arguments = _arguments()
    shares = COMPARED_SHARES if arguments.quick else SHARES
    chosen = [one for one in (*ARMS, *FORCED) if one.name in arguments.arms]
    results: list[MixResult] = []
    for index, network in enumerate(arguments.networks):
        model = create_model(network, arguments.folder / "models")
        with serving(model, chosen) as arms:
            for mix in arguments.mixes if index == 0 else {LOG_NORMAL} & {*arguments.mixes}:
                lengths = draw_lengths(mix, SEQUENCES, arguments.data)
                results.append(
                    measure_mix(
                        mix,
                        model,
                        arms,
                        lengths,
                        shares=shares,
                        rounds=arguments.rounds,
                        seconds=arguments.seconds,
                    )
                )
                titles = {one.name: one.title for one in chosen}
                text = write_results(results, titles, arguments.folder)
    print(text)
    for result in results:
        for title, value, least in must_show(result):
            verdict = "holds" if value >= least else "falls short"
            print(
                f"{result.network}, {result.mix}: {title}: {value:.2f} "
                f"(expected at least {least:g}): {verdict}"
            )


@contextlib.contextmanager
def serving(model: Model, chosen: Sequence[Arm]) -> Iterator[dict[str, RunningArm]]:
    """Starts a server of a model for each arm, and stops them."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        repository = Path(temporary)
        (repository / model.name / "1").mkdir(parents=True)
        shutil.copy(model.file, repository / model.name / "1" / "model.onnx")
        yield {one.name: stack.enter_context(running_arm(one, repository)) for one in chosen}


def _arguments() -> argparse.Namespace:
    names = [one.name for one in (*ARMS, *FORCED)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--arms", nargs="+", choices=names, default=[one.name for one in ARMS])
    parser.add_argument("--networks", nargs="+", choices=FACTORIES, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench", help="for results")
    data = os.environ.get("NEURONA_DATA")
    parser.add_argument(
        "--data", type=Path, default=Path(data) if data else None, help="published data sets"
    )
    parser.add_argument("--quick", action="store_true", help="the log-normal mix, one short round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.mixes, arguments.networks = [LOG_NORMAL], arguments.networks[:1]
        arguments.rounds, arguments.seconds = 1, 0.2
    return arguments


if __name__ == "__main__":
    main()
