"""Compares unary calls and streams from one Python process with 64 callers.

    python streaming.py METHOD ADDRESS REQUEST_FILE CALLERS SECONDS

runs the callers in this process and prints responses per second. METHOD is unary (a call for each
request), stream (requests of several callers share a message) or bytes (serialized messages
without callers).
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

Predict = Callable[[PredictRequest], Awaitable[PredictResponse]]

STREAM_PATH = "/neurona.v1.Prediction/PredictStream"
UNARY, STREAM, BYTES = "unary", "stream", "bytes"
METHODS = {
    UNARY: "Predict, unary",
    STREAM: "PredictStream, coalesced",
    BYTES: "PredictStream, bytes",
}


@dataclass
class StreamingRates:
    """Responses per second by name of the method, one per round."""

    model: str
    callers: int
    rates: dict[str, list[float]] = field(default_factory=dict)

    @property
    def base(self) -> list[float]:
        return self.rates[METHODS[UNARY]]


class Coalescer:
    """Sends the requests that callers make while a message is being sent in the next message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(
            STREAM_PATH,
            request_serializer=PredictStreamRequest.SerializeToString,
            response_deserializer=PredictStreamResponse.FromString,
        )
        self._call = call(self._messages())
        self._requests: list[StreamedRequest] = []
        self._has_requests = asyncio.Event()
        self._futures: dict[int, asyncio.Future[PredictResponse]] = {}
        self._last_id = 0
        self._reader = asyncio.create_task(self._read_responses())

    def predict(self, request: PredictRequest) -> Awaitable[PredictResponse]:
        self._last_id += 1
        # Serialized: a nested message would be copied once more.
        streamed = StreamedRequest(id=self._last_id, request=request.SerializeToString())
        self._requests.append(streamed)
        self._has_requests.set()
        self._futures[self._last_id] = asyncio.get_running_loop().create_future()
        return self._futures[self._last_id]

    async def _messages(self) -> AsyncIterator[PredictStreamRequest]:
        while True:
            await self._has_requests.wait()
            self._has_requests.clear()
            requests, self._requests = self._requests, []
            yield PredictStreamRequest(requests=requests)

    async def _read_responses(self) -> None:
        message: PredictStreamResponse
        async for message in self._call:
            for response in message.responses:
                future = self._futures.pop(response.id)
                if response.HasField("error"):
                    future.set_exception(RuntimeError(response.error.message))
                else:
                    future.set_result(response.response)

    async def close(self) -> None:
        self._call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader


async def measure_bytes(
    address: str, request: PredictRequest, callers: int, seconds: float
) -> float:
    """Returns responses per second with two serialized messages in flight, without callers.

    It is the capacity of a stream when the client only counts responses.
    """
    body, per_message = request.SerializeToString(), callers // 2
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        call = channel.stream_stream(STREAM_PATH)()
        ids = itertools.count(1)

        async def write() -> None:
            requests = [StreamedRequest(id=next(ids), request=body) for _ in range(per_message)]
            await call.write(PredictStreamRequest(requests=requests).SerializeToString())

        in_flight = responses = before = 0
        start = time.perf_counter()
        warm_up_end, until = start + seconds / 10, math.inf
        while (now := time.perf_counter()) < until:
            if until == math.inf and now >= warm_up_end:
                start, until, before = now, now + seconds, responses
            while in_flight <= callers - per_message:
                await write()
                in_flight += per_message
            message = PredictStreamResponse.FromString(await call.read())
            if any(one.HasField("error") for one in message.responses):
                raise RuntimeError(message.responses[0].error.message)
            in_flight -= len(message.responses)
            responses += len(message.responses)
        call.cancel()
    return (responses - before) / (now - start)


async def measure_callers(
    method: str, address: str, request: PredictRequest, callers: int, seconds: float
) -> float:
    """Returns responses per second, after a warm-up of a tenth of `seconds`."""
    responses = 0
    stopping = False

    async def call(predict: Predict) -> None:
        nonlocal responses
        while not stopping:
            await predict(request)
            responses += 1

    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub = PredictionStub(channel)
        coalescer = Coalescer(channel) if method == STREAM else None
        predict = coalescer.predict if coalescer else stub.Predict
        tasks = [asyncio.create_task(call(predict)) for _ in range(callers)]
        await asyncio.sleep(seconds / 10)
        before, start = responses, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (responses - before) / (time.perf_counter() - start)
        stopping = True
        await asyncio.gather(*tasks)
        if coalescer:
            await coalescer.close()
    return rate


def compare(
    address: str, model: str, request: PredictRequest, callers: int, seconds: float, rounds: int
) -> StreamingRates:
    """Measures each method in a process of its own, in rounds."""
    result = StreamingRates(model, callers, {name: [] for name in METHODS.values()})
    with tempfile.NamedTemporaryFile() as file:
        file.write(request.SerializeToString())
        file.flush()
        for _ in range(rounds):
            for method, name in METHODS.items():
                words = [sys.executable, __file__, method, address, file.name, callers, seconds]
                rate = _run([str(word) for word in words])
                result.rates[name].append(rate)
                print(f"{callers} callers, {name}: {rate:.0f} per second", file=sys.stderr)
    return result


def _run(command: list[str]) -> float:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the client failed: {result.stderr}")
    return float(result.stdout)


if __name__ == "__main__":
    method, address, file, callers, seconds = sys.argv[1:]
    request = PredictRequest.FromString(Path(file).read_bytes())
    load = (address, request, int(callers), float(seconds))
    coroutine = measure_bytes(*load) if method == BYTES else measure_callers(method, *load)
    print(asyncio.run(coroutine))
