"""64 callers in one Python process, by generated stubs and by neurona_client, side by side.

    python tests/benchmarks/client.py                 # three rounds, two minutes
    python tests/benchmarks/client.py --rounds 1 --seconds 0.3

Each caller sends one row of the MLP, reads the label of the answer, and sends the next. Every
measurement is a process of its own; in each round another way begins. Prints Markdown.

    python client.py WAY ADDRESS REQUEST_FILE CALLERS SECONDS

is that process; it prints answers a second, and its own CPU seconds for each.
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
from measures import surroundings
from models import make
from processes import alone
from servers import NEURONA
from table import grid, number

from neurona_client import AsyncClient, Client, PredictionStub, PredictRequest

WAYS = {
    "threads": {
        "stub of grpc": "a call each",
        "Client(coalesce=False)": "a call each",
        "Client": "together",
    },
    "coroutines": {
        "stub of grpc.aio": "a call each",
        "AsyncClient(coalesce=False)": "a call each",
        "AsyncClient": "together",
    },
}


def count(way: str, address: str, request: PredictRequest, callers: int, seconds: float) -> None:
    row = np.frombuffer(request.inputs[0].data, np.float32)
    model, together = request.model, "coalesce=False" not in way
    if way == "stub of grpc":
        with grpc.insecure_channel(address) as channel:
            predict = PredictionStub(channel).Predict
            _threads(lambda: predict(request).classification.rows[0].labels[0], callers, seconds)
    elif way.startswith("Client"):
        with Client(address, coalesce=together) as client:
            _threads(lambda: client.predict(model, row).label, callers, seconds)
    elif way == "stub of grpc.aio":
        asyncio.run(_stub(address, request, callers, seconds))
    else:
        asyncio.run(_client(address, model, row, together, callers, seconds))


async def _stub(address: str, request: PredictRequest, callers: int, seconds: float) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        predict = PredictionStub(channel).Predict

        async def ask() -> str:
            return (await predict(request)).classification.rows[0].labels[0]

        await _coroutines(ask, callers, seconds)


async def _client(
    address: str, model: str, row: np.ndarray, together: bool, callers: int, seconds: float
) -> None:
    async with AsyncClient(address, coalesce=together) as client:

        async def ask() -> str:
            return (await client.predict(model, row)).label

        await _coroutines(ask, callers, seconds)


def _threads(ask: Callable[[], str], callers: int, seconds: float) -> None:
    answers = [0] * callers  # each thread counts its own
    over = threading.Event()

    def run(caller: int) -> None:
        while not over.is_set():
            ask()
            answers[caller] += 1

    threads = [threading.Thread(target=run, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 10)
    measured = _Measured(sum(answers))
    time.sleep(seconds)
    measured.tell(sum(answers))
    over.set()
    for thread in threads:
        thread.join()


async def _coroutines(ask: Callable[[], Awaitable[str]], callers: int, seconds: float) -> None:
    answers = 0
    over = False

    async def run() -> None:
        nonlocal answers
        while not over:
            await ask()
            answers += 1

    tasks = [asyncio.create_task(run()) for _ in range(callers)]
    await asyncio.sleep(seconds / 10)
    measured = _Measured(answers)
    await asyncio.sleep(seconds)
    measured.tell(answers)
    over = True
    await asyncio.gather(*tasks)


class _Measured:
    """From now on."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._begun = time.perf_counter()
        self._cpu = time.process_time()

    def tell(self, answers: int) -> None:
        answers -= self._answers
        rate = answers / (time.perf_counter() - self._begun)
        print(rate, (time.process_time() - self._cpu) / max(1, answers))


Sample = tuple[float, float, float]
"""Answers a second; CPU seconds of the caller's process and of the server's for each."""


def compare(callers: int, seconds: float, rounds: int, folder: Path) -> dict[str, list[Sample]]:
    model = make("mlp", folder)
    ways = [way for kind in WAYS.values() for way in kind]
    samples: dict[str, list[Sample]] = {way: [] for way in ways}
    with alone(NEURONA, model) as running, tempfile.NamedTemporaryFile() as file:
        file.write(model.predict_request().SerializeToString())
        file.flush()
        for turn in range(rounds):
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                words = [sys.executable, __file__, way, running.address, file.name]
                before = running.cpu_seconds()
                done = subprocess.run(
                    [*words, str(callers), str(seconds)],
                    check=False,
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise RuntimeError(f"{way} failed: {done.stderr}")
                rate, own = map(float, done.stdout.split())
                # Also of the warm-up and the end, which are a little more than a tenth.
                theirs = (running.cpu_seconds() - before) / (rate * seconds * 1.1)
                samples[way].append((rate, own, theirs))
                print(f"{way}: {rate:.0f} a second", file=sys.stderr)
    return samples


def document(samples: dict[str, list[Sample]], callers: int) -> str:
    parts = [f"# {callers} callers of one Python process\n\n{surroundings()}."]
    for kind, ways in WAYS.items():
        base = [rate for rate, *_ in samples[next(iter(ways))]]
        rows = []
        for way, how in ways.items():
            rates = [rate for rate, *_ in samples[way]]
            ratios = [rate / least for rate, least in zip(rates, base, strict=True)]
            spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            costs = (median(costs) * 1e6 for costs in list(zip(*samples[way], strict=True))[1:])
            rows.append([way, how, number(median(rates)), spread, *(f"{one:.0f}" for one in costs)])
        head = [
            kind,
            "requests",
            "answers a second",
            "ratio",
            "CPU us here",
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
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = compare(
            arguments.callers, arguments.seconds, arguments.rounds, Path(folder) / "models"
        )
    print(document(samples, arguments.callers))


if __name__ == "__main__":
    if len(sys.argv) == 6 and not sys.argv[1].startswith("-"):
        way, address, file, callers, seconds = sys.argv[1:]
        request = PredictRequest.FromString(Path(file).read_bytes())
        count(way, address, request, int(callers), float(seconds))
    else:
        main()
