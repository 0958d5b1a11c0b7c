"""64 callers in one Python process: their requests one by one, and many in a message; and as many
requests that no caller makes: messages of bytes.

    python streaming.py WAY ADDRESS REQUEST_FILE CALLERS SECONDS

is that process; it prints how many answers a second it got.
"""

import asyncio
import contextlib
import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from neurona_protos.frames_pb2 import PredictStreamRequest, StreamedRequest
from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse, PredictStreamResponse
from neurona_protos.prediction_pb2_grpc import PredictionStub

Ask = Callable[[PredictRequest], Awaitable[PredictResponse]]

STREAM_PATH = "/neurona.v1.Prediction/PredictStream"
UNARY, STREAM, BYTES = "unary", "stream", "bytes"
WAYS = {
    UNARY: "Predict, a call each",
    STREAM: "PredictStream, gathered",
    BYTES: "PredictStream, bytes",
}


@dataclass
class Streamed:
    """rates: answers a second by the name of the way, one a round."""

    model: str
    callers: int
    rates: dict[str, list[float]] = field(default_factory=dict)

    @property
    def base(self) -> list[float]:
        return self.rates[WAYS[UNARY]]


class Coalescer:
    """What callers ask while a message is on its way goes into the next one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(
            STREAM_PATH,
            request_serializer=PredictStreamRequest.SerializeToString,
            response_deserializer=PredictStreamResponse.FromString,
        )
        self._call = call(self._messages())
        self._asked: list[StreamedRequest] = []
        self._some = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[PredictResponse]] = {}
        self._last = 0
        self._reading = asyncio.create_task(self._read())

    def ask(self, request: PredictRequest) -> Awaitable[PredictResponse]:
        self._last += 1
        # As bytes: a message in a message would be copied once more.
        asked = StreamedRequest(id=self._last, request=request.SerializeToString())
        self._asked.append(asked)
        self._some.set()
        self._waiting[self._last] = asyncio.get_running_loop().create_future()
        return self._waiting[self._last]

    async def _messages(self) -> AsyncIterator[PredictStreamRequest]:
        while True:
            await self._some.wait()
            self._some.clear()
            asked, self._asked = self._asked, []
            yield PredictStreamRequest(requests=asked)

    async def _read(self) -> None:
        message: PredictStreamResponse
        async for message in self._call:
            for answered in message.responses:
                waiting = self._waiting.pop(answered.id)
                if answered.HasField("error"):
                    waiting.set_exception(RuntimeError(answered.error.message))
                else:
                    waiting.set_result(answered.response)

    async def close(self) -> None:
        self._call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading


async def exchange(address: str, request: PredictRequest, callers: int, seconds: float) -> float:
    """Answers a second to two messages under way that are bytes and hold `callers` requests
    together: what a stream carries when making and reading of messages costs the caller nothing
    but counting."""
    asked, each = request.SerializeToString(), callers // 2
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        call = channel.stream_stream(STREAM_PATH)()
        numbers = itertools.count(1)

        async def ask() -> None:
            some = [StreamedRequest(id=next(numbers), request=asked) for _ in range(each)]
            await call.write(PredictStreamRequest(requests=some).SerializeToString())

        under_way = answers = before = 0
        begun = time.perf_counter()
        warm_until, until = begun + seconds / 10, math.inf
        while (now := time.perf_counter()) < until:
            if until == math.inf and now >= warm_until:
                begun, until, before = now, now + seconds, answers
            while under_way <= callers - each:
                await ask()
                under_way += each
            responses = PredictStreamResponse.FromString(await call.read()).responses
            if any(answered.HasField("error") for answered in responses):
                raise RuntimeError(responses[0].error.message)
            under_way -= len(responses)
            answers += len(responses)
        call.cancel()
    return (answers - before) / (now - begun)


async def count(way: str, address: str, request: PredictRequest, callers: int, seconds: float):
    """Answers a second, after a warm-up of a tenth of that time."""
    answers = 0
    ending = False

    async def call(ask: Ask) -> None:
        nonlocal answers
        while not ending:
            await ask(request)
            answers += 1

    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub = PredictionStub(channel)
        gathering = Coalescer(channel) if way == STREAM else None
        ask = gathering.ask if gathering else stub.Predict
        tasks = [asyncio.create_task(call(ask)) for _ in range(callers)]
        await asyncio.sleep(seconds / 10)
        before, begun = answers, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (answers - before) / (time.perf_counter() - begun)
        ending = True
        await asyncio.gather(*tasks)
        if gathering:
            await gathering.close()
    return rate


def compare(
    address: str, model: str, request: PredictRequest, callers: int, seconds: float, rounds: int
) -> Streamed:
    streamed = Streamed(model, callers, {name: [] for name in WAYS.values()})
    with tempfile.NamedTemporaryFile() as file:
        file.write(request.SerializeToString())
        file.flush()
        for _ in range(rounds):
            for way, name in WAYS.items():
                words = [sys.executable, __file__, way, address, file.name, callers, seconds]
                rate = _run([str(word) for word in words])
                streamed.rates[name].append(rate)
                print(f"{callers} callers, {name}: {rate:.0f} a second", file=sys.stderr)
    return streamed


def _run(command: list[str]) -> float:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the client failed: {done.stderr}")
    return float(done.stdout)


if __name__ == "__main__":
    way, address, file, callers, seconds = sys.argv[1:]
    request = PredictRequest.FromString(Path(file).read_bytes())
    asking = (address, request, int(callers), float(seconds))
    print(asyncio.run(exchange(*asking) if way == BYTES else count(way, *asking)))
