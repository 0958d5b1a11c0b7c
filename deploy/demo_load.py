"""Puts a varying load on the sample models, so that dashboards and the status page move at once.

    python deploy/demo_load.py [--address 127.0.0.1:8001] [--rate 60] [--seconds 0]

The rate rises and falls within two minutes. The rows are those of the models' test data; they come
with every priority, alone and in batches, over sessions for the LSTM, now and then with a fault:
an unknown model, a wrong shape, a deadline that nobody can keep. A server that is not there yet, or
stops, is waited for. Models that it does not serve are left out.
"""

import argparse
import asyncio
import contextlib
import itertools
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine

import grpc
import numpy as np

from neurona_client import AsyncClient, PredictionStub, PredictRequest, to_tensor
from neurona_client.errors import NeuronaError
from neurona_training.recipes import RECIPES

MODELS = ("lenet5", "lstm", "rnn")
PRIORITIES = ("high", "normal", "normal", "normal", "low")
PERIOD = 120.0  # seconds from one peak to the next
FAULTS = 0.03  # share of requests
BATCHES = (1, 1, 1, 2, 4, 16)
MAX_IN_FLIGHT = 256
REPORT_SECONDS = 30.0


class Load:
    """Sends requests to one server, and counts how they end."""

    def __init__(self, client: AsyncClient, stub: PredictionStub) -> None:
        self._client = client
        self._stub = stub
        self._data = {name: RECIPES[name].load() for name in MODELS}
        self._random = random.Random(1)  # noqa: S311
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcomes: Counter[str] = Counter()

    async def run(self, rate: float, seconds: float) -> None:
        """Sends until `seconds` are over; 0: without an end."""
        started = last = reported = time.monotonic()
        names = MODELS
        due = 0.0
        for tick in itertools.count():
            await asyncio.sleep(0.05)
            now = time.monotonic()
            if tick % 100 == 0:
                names = await self._served()
            wave = 0.6 + 0.4 * math.sin(2 * math.pi * (now - started) / PERIOD)
            due = min(due + (now - last) * rate * wave, rate)
            last = now
            while due >= 1 and names and len(self._tasks) < MAX_IN_FLIGHT:
                due -= 1
                self._start(self._choose(self._random.choice(names)))
            if now - reported >= REPORT_SECONDS:
                reported = now
                print(*(f"{name} {n}" for name, n in self.outcomes.items()), sep=", ", flush=True)
            if seconds and now - started >= seconds:
                break
        await asyncio.gather(*self._tasks)

    async def _served(self) -> tuple[str, ...]:
        try:
            return tuple(one.name for one in await self._client.models() if one.name in MODELS)
        except NeuronaError:
            return ()

    def _start(self, call: Callable[[], Coroutine[object, object, object]]) -> None:
        async def run() -> None:
            try:
                await call()
                self.outcomes["answered"] += 1
            except NeuronaError as error:
                self.outcomes[type(error).__name__] += 1
            except grpc.aio.AioRpcError as error:
                self.outcomes[error.code().name] += 1

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _choose(self, name: str) -> Callable[[], Coroutine[object, object, object]]:
        """Returns what the next request is."""
        chance = self._random
        priority = chance.choice(PRIORITIES)
        inputs = self._data[name].test.inputs
        first = chance.randrange(len(inputs) - max(BATCHES))
        rows = inputs[first : first + chance.choice(BATCHES)]
        if chance.random() < FAULTS:
            return self._choose_fault(name, rows)
        if name == "lstm" and chance.random() < 0.2:
            return lambda: self._send_sequence(name, inputs[first])
        return lambda: self._client.predict(name, rows, priority=priority, timeout=5)

    def _choose_fault(
        self, name: str, rows: np.ndarray
    ) -> Callable[[], Coroutine[object, object, object]]:
        """Returns a request that fails; as a message, since the client would not send most."""
        predict = self._stub.Predict
        tensor = to_tensor(self._data[name].input.name, rows)
        misshapen = to_tensor(tensor.name, np.zeros((1, 3, 5, 7), np.float32))
        requests = (
            (PredictRequest(model="perceptron-of-1958", inputs=[tensor]), 5.0),
            (PredictRequest(model=name, inputs=[misshapen]), 5.0),
            (PredictRequest(model=name, inputs=[tensor]), 0.002),
        )
        request, timeout = self._random.choice(requests)

        async def send() -> None:
            await predict(request, timeout=timeout)

        return send

    async def _send_sequence(self, name: str, steps: np.ndarray) -> None:
        """Sends a sequence row by row, with an answer to each."""
        async with self._client.session(name, timeout=5) as session:
            for row in steps:
                await session.send(row)
                await session.receive()


async def generate(address: str, rate: float, seconds: float) -> None:
    async with AsyncClient(address) as client, grpc.aio.insecure_channel(address) as channel:
        work = asyncio.ensure_future(Load(client, PredictionStub(channel)).run(rate, seconds))
        for one in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(one, work.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:8001", metavar="HOST:PORT")
    parser.add_argument("--rate", type=float, default=60, help="requests a second, at its peak")
    parser.add_argument("--seconds", type=float, default=0, help="0: until it is stopped")
    options = parser.parse_args()
    asyncio.run(generate(options.address, options.rate, options.seconds))


if __name__ == "__main__":
    main()
