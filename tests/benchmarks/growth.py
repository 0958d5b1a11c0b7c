"""Costs by requests in flight, by loaded models, and by request size."""

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import h2load
from models import Model, save_identity
from processes import PREDICT, Command, Server, request_bytes, running_server
from servers import AIO, copy_model, neurona_command

IN_FLIGHT = (1, 8, 64, 256, 1000, 10_000)
MODELS = (1, 10, 100, 500)
BYTES = (64, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
MIB = 1 << 20
FAILED = (math.nan,) * 3
"""Replaces the values of a measurement in which calls failed."""


@dataclass(frozen=True)
class Point:
    """A measurement.

    Attributes:
        size: The number of requests, models or bytes.
        server: The name of the server.
        values: In the order of Growth.columns; NaN where calls failed.
    """

    size: int
    server: str
    values: tuple[float, ...]


@dataclass
class Growth:
    """Measurements of a growing quantity; `quantity` is its unit."""

    title: str
    quantity: str
    columns: tuple[str, ...]
    points: list[Point] = field(default_factory=list)

    def add(self, size: int, server: str, *values: float) -> None:
        print(f"{self.title}: {size}, {server}: {values}", file=sys.stderr)
        self.points.append(Point(size, server, values))


def with_load(model: Model, seconds: float, loads: Sequence[int] = IN_FLIGHT) -> Growth:
    """Starts a server for each load, so that memory is not counted twice."""
    columns = ("requests per second", "mean latency, ms", "additional MiB")
    growth = Growth(f"Requests in flight ({model.name})", "in flight", columns)
    # By default at most 4,096 rows are queued; here none of the 10,000 must be rejected.
    neurona = neurona_with("--max-queue-rows", str(2 * max(loads)))
    for load in loads:
        for server in (neurona, AIO):
            with running_server(server, model) as running:
                body = request_bytes(model, PREDICT)
                before = running.memory_bytes()
                try:
                    sample = h2load.measure(running, PREDICT, body, load, seconds)
                except h2load.FailedCallsError as error:
                    print(f"{server.name}: {error}", file=sys.stderr)
                    growth.add(load, server.name, *FAILED)
                    continue
                more = (sample.memory - before) / MIB
                growth.add(load, server.name, sample.rate, 1000 * sample.latency, more)
    return growth


def with_models(model: Model, numbers: Sequence[int] = MODELS) -> Growth:
    """Loads copies of a small model under different names."""
    growth = Growth(
        f"Models loaded (copies of {model.name})",
        "models",
        ("s from start to the first response", "MiB"),
    )
    for number in numbers:
        server = replace(neurona_with(), command=partial(_copies_command, number))
        with running_server(server, model, timeout=600) as running:
            growth.add(number, server.name, running.startup_seconds, running.memory_bytes() / MIB)
    return growth


def with_bytes(in_flight: int, seconds: float, sizes: Sequence[int] = BYTES) -> Growth:
    """Sends requests of different sizes to a model that returns its input."""
    columns = ("requests per second", "MiB per second, each way", "mean latency, ms", "MiB")
    growth = Growth(f"Size of a request ({in_flight} in flight)", "bytes", columns)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "identity.onnx"
        save_identity(file)
        for size in sizes:
            model = Model("identity", file, (size // 4,))
            for server in (neurona_with(), AIO):
                with running_server(server, model) as running:
                    body = request_bytes(model, PREDICT)
                    sample = h2load.measure(running, PREDICT, body, in_flight, seconds)
                    growth.add(
                        size,
                        server.name,
                        sample.rate,
                        sample.rate * size / MIB,
                        1000 * sample.latency,
                        sample.memory / MIB,
                    )
    return growth


def neurona_with(*flags: str) -> Server:
    """Returns a server like NEURONA with additional flags."""

    def command(model: Model, folder: Path, address: str) -> Command:
        copy_model(model, folder / "models")
        return neurona_command(folder / "models", address, *flags)

    return Server("neurona", (PREDICT,), command)


def _copies_command(number: int, model: Model, folder: Path, address: str) -> Command:
    copy_model(model, folder / "models")
    for copy in range(1, number):
        copy_model(model, folder / "models", f"{model.name}{copy}")
    return neurona_command(folder / "models", address)
