"""A server of Prediction.Session in the test's process, whose model adds up what it is sent.

It speaks the protocol alone: a test decides when it answers, and what goes wrong.
"""

import asyncio
import struct
import threading
import zlib

import grpc
import numpy as np
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from neurona_protos.prediction_pb2 import (
    DATA_TYPE_FLOAT,
    DescribeModelResponse,
    Error,
    InputDescription,
    ModelMetadata,
    PredictResponse,
    Regression,
    RegressionRow,
    SequenceServing,
    SessionResponse,
    Task,
    TensorDescription,
    ValueDescription,
    VersionState,
)
from neurona_protos.prediction_pb2_grpc import (
    ModelsServicer,
    PredictionServicer,
    add_ModelsServicer_to_server,
    add_PredictionServicer_to_server,
)
from neurona_protos.tensors import to_array

STATE_HEADER = struct.Struct("<IqI")
"""Checksum of the rest, version and steps."""


def pack_state(version, steps, sums):
    rest = struct.pack("<qI", version, steps) + np.asarray(sums, np.float64).tobytes()
    return struct.pack("<I", zlib.crc32(rest)) + rest


def unpack_state(state):
    checksum, version, steps = STATE_HEADER.unpack_from(state)
    assert zlib.crc32(state[4:]) == checksum
    return version, steps, np.frombuffer(state[STATE_HEADER.size :], np.float64)


class SessionServer(PredictionServicer, ModelsServicer):
    """Serves the model "sum", whose input is `x` (batch, time, 1)."""

    def __init__(self, *, versions=(1,), address="127.0.0.1:0", max_streams=4096):
        self.versions = versions
        self.starts = []  # the first message of each session
        self.metadata = []
        self.open_sessions = 0
        self.max_open_sessions = 0
        self.computed = []  # the values of each message with steps
        self.failures = []  # errors of the next steps, instead of their answers
        self._ends = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._answering = asyncio.Event()
        self._answering.set()
        options = [("grpc.max_concurrent_streams", max_streams), ("grpc.so_reuseport", 0)]
        self.address = self._call(self._start(address, options))

    async def _start(self, address, options):
        self._server = grpc.aio.server(options=options)
        servicer = health.aio.HealthServicer()
        await servicer.set("", HealthCheckResponse.SERVING)
        add_HealthServicer_to_server(servicer, self._server)
        add_PredictionServicer_to_server(self, self._server)
        add_ModelsServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        await self._server.start()
        return f"127.0.0.1:{port}"

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def hold_answers(self):
        """Read messages, and answer none until `release_answers`."""
        self._loop.call_soon_threadsafe(self._answering.clear)

    def release_answers(self):
        self._loop.call_soon_threadsafe(self._answering.set)

    def end_sessions(self, reason):
        """End all sessions as a server does that stops, and return when they have ended."""

        async def end():
            for end in list(self._ends):
                end.put_nowait(reason)
            while self._ends:
                await asyncio.sleep(0.001)

        self._call(end())

    def stop(self):
        """Stop at once, as if killed. May be called again."""
        if self._thread.is_alive():
            self._call(self._server.stop(0))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    async def Describe(  # noqa: N802
        self, request, context
    ):
        if request.model != "sum":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"model {request.model!r} not found")
        return DescribeModelResponse(
            model="sum",
            version=VersionState(version=request.version or self.versions[-1]),
            inputs=[TensorDescription(name="x", dtype=DATA_TYPE_FLOAT, shape=[-1, -1, 1])],
            batched=True,
            metadata=ModelMetadata(
                task=Task.TASK_REGRESSION,
                values=[ValueDescription(name="sum")],
                inputs=[InputDescription(name="x")],
            ),
            sequences=SequenceServing(state_bytes=8, time_axes={"x": 1}),
        )

    async def Session(  # noqa: N802
        self, requests, context
    ):
        self.metadata.append(dict(context.invocation_metadata()))
        end = asyncio.Queue()
        self._ends.add(end)
        self.open_sessions += 1
        self.max_open_sessions = max(self.open_sessions, self.max_open_sessions)
        ending = asyncio.ensure_future(end.get())
        try:
            start, version, steps, sums = None, 0, 0, None
            while request := await _first(ending, requests.__aiter__().__anext__()):
                if start is None:
                    start = request.start
                    self.starts.append(start)
                    version, steps, sums = await self._begin(start, context)
                answer, next_steps, next_sums = self._answer(request, version, steps, sums)
                if not await _first(ending, self._answering.wait()):
                    break
                steps, sums = next_steps, next_sums
                yield answer
            if ending.done():
                state = pack_state(version, steps, sums) if start and steps else b""
                yield SessionResponse(ending=ending.result(), state=state, steps=steps)
                await context.abort(grpc.StatusCode.UNAVAILABLE, ending.result())
        finally:
            ending.cancel()
            self._ends.discard(end)
            self.open_sessions -= 1

    async def _begin(self, start, context):
        version = start.version or self.versions[-1]
        if start.model != "sum":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"model {start.model!r} not found")
        if version not in self.versions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"version {version} not found")
        if not start.state:
            return version, 0, None
        state_version, steps, sums = unpack_state(start.state)
        if state_version != version:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"state is of version {state_version}"
            )
        return version, steps, sums

    def _answer(self, request, version, steps, sums):
        if not request.inputs:
            return SessionResponse(id=request.id, steps=steps), steps, sums
        values = to_array(request.inputs[0]).astype(np.float64)
        if self.failures:
            answer = SessionResponse(id=request.id, error=self.failures.pop(0), steps=steps)
        elif np.isnan(values).any():
            error = Error(code=3, message="input 'x' has NaN (expected finite numbers)")
            answer = SessionResponse(id=request.id, error=error, steps=steps)
        else:
            self.computed.append(values[:, :, 0].tolist())
            sums = values.sum(axis=(1, 2)) + (0 if sums is None else sums)
            steps += values.shape[1]
            rows = [RegressionRow(values=[one]) for one in sums]
            regression = Regression(values=[ValueDescription(name="sum")], rows=rows)
            response = PredictResponse(model="sum", version=version, regression=regression)
            state = pack_state(version, steps, sums) if request.return_state else b""
            answer = SessionResponse(id=request.id, response=response, state=state, steps=steps)
        return answer, steps, sums


async def _first(ending, coroutine):
    """Return what a coroutine returns; None if it has nothing more, or `ending` comes first."""
    task = asyncio.ensure_future(coroutine)
    try:
        await asyncio.wait([task, ending], return_when=asyncio.FIRST_COMPLETED)
        return None if ending.done() else task.result()
    except StopAsyncIteration:
        return None
    finally:
        task.cancel()
