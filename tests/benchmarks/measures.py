"""Rounds of measurements, and what they come to: medians, and ratios inside each round."""

import os
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import floor
import grpc
import h2load
import onnxruntime
from models import Model
from processes import INFER, PREDICT, Server, request_bytes, started

METHOD_NAMES = {PREDICT: "Predict", INFER: "ModelInfer"}


@dataclass(frozen=True)
class Spread:
    """A median over the rounds, with the lowest and the highest."""

    middle: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass
class Measured:
    """Of one model.  samples: by row of the table and requests in flight, one a round.

    starts: seconds to the first answer and bytes of memory then, by server.
    floor: rows a second of ONNX Runtime alone, by rows in a batch.
    """

    model: Model
    samples: dict[tuple[str, int], list[h2load.Sample]] = field(
        default_factory=lambda: defaultdict(list)
    )
    starts: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    floor: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.samples))

    @property
    def loads(self) -> list[int]:
        return sorted({load for _, load in self.samples})

    def figures(self, row: str, load: int, figure: str) -> Spread:
        """figure: the name of a field of h2load.Sample."""
        return Spread.of([getattr(sample, figure) for sample in self.samples[row, load]])

    def ratios(self, row: str, load: int, to: str) -> Spread | None:
        """Of rates, each to that of the same round; None where `to` was not measured."""
        pairs = zip(self.samples[row, load], self.samples.get((to, load), ()), strict=False)
        ratios = [sample.rate / other.rate for sample, other in pairs]
        return Spread.of(ratios) if ratios else None


def measure(
    models: Iterable[Model],
    servers: Sequence[Server],
    rounds: int,
    seconds: float,
    loads: Sequence[int] = (),
) -> list[Measured]:
    """All servers of a model are up at the same time, and idle while another is asked: so the
    measurements that are compared lie seconds apart, on a machine that others use too."""
    measured = [Measured(model) for model in models]
    for number in range(rounds):
        for one in measured:
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                for rows in one.model.batches:
                    one.floor[rows].append(floor.rows_a_second(one.model, rows, seconds / 2))
                _round(one, servers, number, seconds, loads, Path(folder), stack)
    return measured


def _round(
    one: Measured,
    servers: Sequence[Server],
    number: int,
    seconds: float,
    loads: Sequence[int],
    folder: Path,
    stack: ExitStack,
) -> None:
    asked = []
    for index, server in enumerate(servers):
        running = stack.enter_context(started(server, one.model, folder / str(index)))
        one.starts[server.name].append((running.seconds_to_answer, running.memory_bytes()))
        for method in server.methods:
            row = server.name
            if len(server.methods) > 1:
                row = f"{server.name}, {METHOD_NAMES[method]}"
            asked.append((row, running, method))
    bodies = {method: request_bytes(one.model, method) for method in METHOD_NAMES}
    # Every round begins with another one, so that none is always measured first or last.
    turn = number % len(asked)
    for load in loads or one.model.loads:
        found = {}
        for row, running, method in asked[turn:] + asked[:turn]:
            found[row] = h2load.measure(running, method, bodies[method], load, seconds)
            print(
                f"round {number + 1}: {one.model.name}, {load} in flight, {row}: "
                f"{found[row].rate:.0f} a second",
                file=sys.stderr,
            )
        for row, _, _ in asked:
            one.samples[row, load].append(found[row])


def surroundings() -> str:
    """The machine and the versions, in a line."""
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
    busy = os.getloadavg()[1]
    day = datetime.now(UTC).strftime("%d %B %Y")
    return (
        f"{name}, {cpus} CPUs that servers and load share; {versions}; {day}; "
        f"load average of the last five minutes {busy:.1f}"
    )
