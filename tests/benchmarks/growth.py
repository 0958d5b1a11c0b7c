"""How costs grow: with what is in flight, with the models that are loaded, with a request."""

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import h2load
from models import Model, save_identity
from processes import PREDICT, Command, Server, alone, request_bytes
from servers import AIO, neurona_command, put

IN_FLIGHT = (1, 8, 64, 256, 1000, 10_000)
MODELS = (1, 10, 100, 500)
BYTES = (64, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
MIB = 1 << 20
LOST = (math.nan,) * 3
"""In the place of figures where calls were lost: a rate of errors is none."""


@dataclass(frozen=True)
class Point:
    """values: in the order of Growth.columns."""

    size: int
    server: str
    values: tuple[float, ...]


@dataclass
class Growth:
    """of: what grows, from point to point."""

    title: str
    of: str
    columns: tuple[str, ...]
    points: list[Point] = field(default_factory=list)

    def add(self, size: int, server: str, *values: float) -> None:
        print(f"{self.title}: {size}, {server}: {values}", file=sys.stderr)
        self.points.append(Point(size, server, values))


def with_load(model: Model, seconds: float, loads: Sequence[int] = IN_FLIGHT) -> Growth:
    """A new server for each load, or the memory of one would be counted to the next."""
    columns = ("requests a second", "mean latency, ms", "MiB more than before")
    growth = Growth(f"Requests in flight ({model.name})", "in flight", columns)
    # By default 4096 may wait and the rest is refused; here all 10,000 shall be answered.
    roomy = neurona_with("--max-queue-rows", str(2 * max(loads)))
    for load in loads:
        for server in (roomy, AIO):
            with alone(server, model) as running:
                body = request_bytes(model, PREDICT)
                before = running.memory_bytes()
                try:
                    sample = h2load.measure(running, PREDICT, body, load, seconds)
                except h2load.LostError as error:
                    print(f"{server.name}: {error}", file=sys.stderr)
                    growth.add(load, server.name, *LOST)
                    continue
                more = (sample.memory - before) / MIB
                growth.add(load, server.name, sample.rate, 1000 * sample.latency, more)
    return growth


def with_models(model: Model, numbers: Sequence[int] = MODELS) -> Growth:
    """Copies of one small model under so many names."""
    growth = Growth(
        f"Models loaded (copies of {model.name})",
        "models",
        ("s from start to the first answer", "MiB"),
    )
    for number in numbers:
        server = replace(neurona_with(), command=partial(_many, number))
        with alone(server, model, patience=600) as running:
            growth.add(number, server.name, running.seconds_to_answer, running.memory_bytes() / MIB)
    return growth


def with_bytes(in_flight: int, seconds: float, sizes: Sequence[int] = BYTES) -> Growth:
    """A model that gives back what it gets."""
    columns = ("requests a second", "MiB a second, each way", "mean latency, ms", "MiB")
    growth = Growth(f"Size of a request ({in_flight} in flight)", "bytes", columns)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "identity.onnx"
        save_identity(file)
        for size in sizes:
            model = Model("identity", file, (size // 4,))
            for server in (neurona_with(), AIO):
                with alone(server, model) as running:
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
    """As NEURONA, with more options on its command line."""

    def command(model: Model, folder: Path, address: str) -> Command:
        put(model, folder / "models")
        return neurona_command(folder / "models", address, *flags)

    return Server("neurona", (PREDICT,), command)


def _many(number: int, model: Model, folder: Path, address: str) -> Command:
    put(model, folder / "models")
    for copy in range(1, number):
        put(model, folder / "models", f"{model.name}{copy}")
    return neurona_command(folder / "models", address)
