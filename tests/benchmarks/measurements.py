"""Rounds of measurements of servers, and their medians and ratios within each round."""

import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import grpc
import h2load
import onnxruntime
from models import Model
from processes import INFER, PREDICT, RunningServer, Server, request_bytes, start_server

METHOD_NAMES = {PREDICT: "Predict", INFER: "ModelInfer"}


@dataclass(frozen=True)
class Spread:
    """The median over the rounds, with the lowest and the highest value."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass
class ModelMeasurements:
    """The measurements of one model, each list with one element per round.

    Attributes:
        model: The model.
        samples: Samples by row of the table and requests in flight.
        starts: Seconds to the first response and bytes of memory then, by server.
        onnx_runtime_rates: Rows per second of ONNX Runtime alone, by rows in a batch.
    """

    model: Model
    samples: dict[tuple[str, int], list[h2load.Sample]] = field(
        default_factory=lambda: defaultdict(list)
    )
    starts: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    onnx_runtime_rates: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.samples))

    @property
    def loads(self) -> list[int]:
        return sorted({load for _, load in self.samples})

    def spread(self, row: str, load: int, field_name: str) -> Spread:
        """Returns the spread of a field of h2load.Sample."""
        return Spread.of([getattr(sample, field_name) for sample in self.samples[row, load]])

    def ratios(self, row: str, load: int, to: str) -> Spread | None:
        """Returns ratios of rates within each round; None if `to` was not measured."""
        pairs = zip(self.samples[row, load], self.samples.get((to, load), ()), strict=False)
        ratios = [sample.rate / other.rate for sample, other in pairs]
        return Spread.of(ratios) if ratios else None


def measure(
    models: Iterable[Model],
    servers: Sequence[Server],
    rounds: int,
    seconds: float,
    loads: Sequence[int] = (),
) -> list[ModelMeasurements]:
    """Measures all servers with each model, in rounds.

    All servers of a model run at the same time, idle while another is measured. So measurements
    that are compared are only seconds apart, which matters if other programs use the machine.
    """
    measurements = [ModelMeasurements(model) for model in models]
    for number in range(rounds):
        for one in measurements:
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                for rows in one.model.batches:
                    rate = onnx_runtime_rate(one.model, rows, seconds / 2)
                    one.onnx_runtime_rates[rows].append(rate)
                _measure_round(one, servers, number, seconds, loads, Path(folder), stack)
    return measurements


def onnx_runtime_rate(model: Model, rows: int, seconds: float) -> float:
    """Returns rows per second of ONNX Runtime alone, in this process, with prepared batches.

    It runs with ONNX Runtime's defaults for at least `seconds` and two runs after a warm-up.
    """
    session = onnxruntime.InferenceSession(model.file, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: model.batch(rows)}
    session.run(None, feeds)
    runs, start = 0, time.perf_counter()
    while runs < 2 or time.perf_counter() - start < seconds:
        session.run(None, feeds)
        runs += 1
    return runs * rows / (time.perf_counter() - start)


def _measure_round(
    measurements: ModelMeasurements,
    servers: Sequence[Server],
    number: int,
    seconds: float,
    loads: Sequence[int],
    folder: Path,
    stack: ExitStack,
) -> None:
    model = measurements.model
    targets: list[tuple[str, RunningServer, str]] = []
    for index, server in enumerate(servers):
        running = stack.enter_context(start_server(server, model, folder / str(index)))
        start = (running.startup_seconds, running.memory_bytes())
        measurements.starts[server.name].append(start)
        for method in server.methods:
            row = server.name
            if len(server.methods) > 1:
                row = f"{server.name}, {METHOD_NAMES[method]}"
            targets.append((row, running, method))
    bodies = {method: request_bytes(model, method) for method in METHOD_NAMES}
    # Each round begins with another target, so that none is always measured first or last.
    offset = number % len(targets)
    for load in loads or model.loads:
        samples = {}
        for row, running, method in targets[offset:] + targets[:offset]:
            samples[row] = h2load.measure(running, method, bodies[method], load, seconds)
            print(
                f"round {number + 1}: {model.name}, {load} in flight, {row}: "
                f"{samples[row].rate:.0f} per second",
                file=sys.stderr,
            )
        for row, _, _ in targets:
            measurements.samples[row, load].append(samples[row])


def environment_line() -> str:
    """Returns the machine and the versions in one line."""
    cpus = len(os.sched_getaffinity(0))
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    versions = (
        f"Python {platform.python_version()}, grpcio {grpc.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}"
    )
    load_average = os.getloadavg()[1]
    day = datetime.now(UTC).strftime("%d %B %Y")
    return (
        f"{name}, {cpus} CPUs shared by servers and load; {versions}; {day}; "
        f"load average of the last five minutes {load_average:.1f}"
    )
