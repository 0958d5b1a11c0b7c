"""Compares generated stubs and neurona_client with 64 callers in one Python process.

    python tests/benchmarks/client.py                 # three rounds, two minutes
    python tests/benchmarks/client.py --rounds 1 --seconds 0.3

Each caller sends one row of the MLP, reads the label of the response, and sends the next. Every
measurement runs in its own process; each round begins with another client. Prints Markdown.

    python client.py CLIENT ADDRESS REQUEST_FILE CALLERS SECONDS

runs the callers in this process; it prints responses per second and its CPU seconds for each.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import grpc
import grpc.aio
import numpy as np
from measurements import environment_line
from models import create_model
from processes import running_server
from servers import NEURONA
from table import grid, number

from neurona_client import AsyncClient, Client, PredictionStub, PredictRequest

CLIENTS = {
    "threads": {
        "stub of grpc": "unary",
        "Client(coalesce=False)": "unary",
        "Client": "coalesced",
    },
    "coroutines": {
        "stub of grpc.aio": "unary",
        "AsyncClient(coalesce=False)": "unary",
        "AsyncClient": "coalesced",
    },
}


def measure(name: str, address: str, request: PredictRequest, callers: int, seconds: float) -> None:
    row = np.frombuffer(request.inputs[0].data, np.float32)
    model, coalesce = request.model, "coalesce=False" not in name
    if name == "stub of grpc":
        with grpc.insecure_channel(address) as channel:
            predict = PredictionStub(channel).Predict
            _threads(lambda: predict(request).classification.rows[0].labels[0], callers, seconds)
    elif name.startswith("Client"):
        with Client(address, coalesce=coalesce) as client:
            _threads(lambda: client.predict(model, row).label, callers, seconds)
    elif name == "stub of grpc.aio":
        asyncio.run(_stub(address, request, callers, seconds))
    else:
        asyncio.run(_client(address, model, row, coalesce, callers, seconds))


async def _stub(address: str, request: PredictRequest, callers: int, seconds: float) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        predict = PredictionStub(channel).Predict

        async def predict_label() -> str:
            return (await predict(request)).classification.rows[0].labels[0]

        await _coroutines(predict_label, callers, seconds)


async def _client(
    address: str, model: str, row: np.ndarray, coalesce: bool, callers: int, seconds: float
) -> None:
    async with AsyncClient(address, coalesce=coalesce) as client:

        async def predict_label() -> str:
            return (await client.predict(model, row)).label

        await _coroutines(predict_label, callers, seconds)


def _threads(predict_label: Callable[[], str], callers: int, seconds: float) -> None:
    responses = [0] * callers  # each thread counts its own
    end = threading.Event()

    def run(caller: int) -> None:
        while not end.is_set():
            predict_label()
            responses[caller] += 1

    threads = [threading.Thread(target=run, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 10)
    measurement = _Measurement(sum(responses))
    time.sleep(seconds)
    measurement.print_result(sum(responses))
    end.set()
    for thread in threads:
        thread.join()


async def _coroutines(
    predict_label: Callable[[], Awaitable[str]], callers: int, seconds: float
) -> None:
    responses = 0
    stopping = False

    async def run() -> None:
        nonlocal responses
        while not stopping:
            await predict_label()
            responses += 1

    tasks = [asyncio.create_task(run()) for _ in range(callers)]
    await asyncio.sleep(seconds / 10)
    measurement = _Measurement(responses)
    await asyncio.sleep(seconds)
    measurement.print_result(responses)
    stopping = True
    await asyncio.gather(*tasks)


class _Measurement:
    """Responses and CPU time since its creation."""

    def __init__(self, responses: int) -> None:
        self._responses = responses
        self._start = time.perf_counter()
        self._cpu = time.process_time()

    def print_result(self, responses: int) -> None:
        responses -= self._responses
        rate = responses / (time.perf_counter() - self._start)
        print(rate, (time.process_time() - self._cpu) / max(1, responses))


Sample = tuple[float, float, float]
"""Responses per second; CPU seconds of the client process and of the server for each."""


def compare(callers: int, seconds: float, rounds: int, folder: Path) -> dict[str, list[Sample]]:
    model = create_model("mlp", folder)
    names = [name for kind in CLIENTS.values() for name in kind]
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with running_server(NEURONA, model) as running, tempfile.NamedTemporaryFile() as file:
        file.write(model.predict_request().SerializeToString())
        file.flush()
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                words = [sys.executable, __file__, name, running.address, file.name]
                before = running.cpu_seconds()
                result = subprocess.run(
                    [*words, str(callers), str(seconds)],
                    check=False,
                    capture_output=True,
                    text=True,
                )
                if result.returncode:
                    raise RuntimeError(f"{name} failed: {result.stderr}")
                rate, client_cpu = map(float, result.stdout.split())
                # Includes the warm-up and the end, a little more than a tenth.
                server_cpu = (running.cpu_seconds() - before) / (rate * seconds * 1.1)
                samples[name].append((rate, client_cpu, server_cpu))
                print(f"{name}: {rate:.0f} per second", file=sys.stderr)
    return samples


def document(samples: dict[str, list[Sample]], callers: int) -> str:
    parts = [f"# {callers} callers of one Python process\n\n{environment_line()}."]
    for kind, clients in CLIENTS.items():
        base = [rate for rate, *_ in samples[next(iter(clients))]]
        rows = []
        for name, sending in clients.items():
            rates = [rate for rate, *_ in samples[name]]
            ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
            spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            costs = (median(costs) * 1e6 for costs in list(zip(*samples[name], strict=True))[1:])
            rows.append(
                [name, sending, number(median(rates)), spread, *(f"{one:.0f}" for one in costs)]
            )
        head = [
            kind,
            "requests",
            "responses per second",
            "ratio",
            "CPU us of the client",
            "CPU us of the server",
        ]
        parts.append(grid(head, rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = compare(
            arguments.callers, arguments.seconds, arguments.rounds, Path(folder) / "models"
        )
    print(document(samples, arguments.callers))


if __name__ == "__main__":
    if len(sys.argv) == 6 and not sys.argv[1].startswith("-"):
        name, address, file, callers, seconds = sys.argv[1:]
        request = PredictRequest.FromString(Path(file).read_bytes())
        measure(name, address, request, int(callers), float(seconds))
    else:
        main()
