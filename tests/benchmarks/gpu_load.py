"""The load of gpu.py: processes that call a server in a closed or an open loop.

One process of grpc.aio makes some thousand calls a second, so there are several; they start and end
measuring at the same time. Bodies are prepared, and responses are not parsed. Where a row has many
bytes, requests may be in system shared memory, as the Open Inference Protocol has it: otherwise the
copies of gRPC are measured.
"""

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from processes import INFER, PREDICT
from seeded_weights import make_rows

from neurona_protos.open_inference_pb2 import (
    ModelInferRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
)
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor

VARIETY = 4
"""Different requests that a process sends in turn, so that no cache holds them all."""

MAX_SHARING = 4
"""Processes with requests in shared memory, of which there may be little."""

_START_DELAY = 0.5  # seconds until every process has its job and an open channel
_LATE = 10.0  # seconds after the end for the last responses
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  its own file system
_SERVICE = "/inference.GRPCInferenceService/"
_NO_LIMIT = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Job:
    """What the processes do together.

    Attributes:
        address: Of the server.
        model: The name of the model, whose one input is x of float32.
        row: The shape of a row.
        rows: Rows of each request.
        in_flight: Requests of a closed loop; 0 for an open one.
        rate: Requests per second of an open loop, at random times (a Poisson process).
        seconds: That are measured.
        warm_up: Seconds before them.
        in_shared_memory: Whether inputs are in system shared memory, by ModelInfer.
    """

    address: str
    model: str
    row: tuple[int, ...]
    rows: int
    in_flight: int = 0
    rate: float = 0.0
    seconds: float = 2.0
    warm_up: float = 0.5
    in_shared_memory: bool = False


@dataclass
class Sample:
    """What was measured.

    Attributes:
        seconds: That were measured.
        latencies: Seconds of each call that ended in them; of an open loop from the time at which
            it should have been sent.
        errors: The first errors, and how many there were.
    """

    seconds: float
    latencies: NDArray[np.float64]
    errors: list[str] = field(default_factory=list)
    failed: int = 0

    @property
    def rate(self) -> float:
        """Responses per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Returns seconds; NaN without responses."""
        return float(np.percentile(self.latencies, percent)) if len(self.latencies) else np.nan


class LoadProcesses:
    """Processes that take one job after the other. A context manager ends them."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, number), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "LoadProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        for process in self._processes:
            process.join(5)
            process.kill()

    def run(self, job: Job, during: Callable[[], None] = lambda: None) -> Sample:
        """Runs a job on as many processes as it has requests for.

        Args:
            job: What to do.
            during: Called when measuring begins, and again when it ends.

        Raises:
            RuntimeError: A process has ended, or does not answer.
        """
        count = len(self._connections)
        if job.in_flight:
            count = min(count, job.in_flight)
        if job.in_shared_memory:
            count = min(count, MAX_SHARING)
        start = time.monotonic() + _START_DELAY + job.warm_up
        for number, connection in enumerate(self._connections[:count]):
            connection.send((job, start, number, count))
        time.sleep(max(0.0, start - time.monotonic()))
        during()
        time.sleep(max(0.0, start + job.seconds - time.monotonic()))
        during()
        sample = Sample(job.seconds, np.empty(0))
        for connection in self._connections[:count]:
            if not connection.poll(_LATE + 60):
                raise RuntimeError("a process of the load does not answer")
            try:
                latencies, errors, failed = connection.recv()
            except EOFError:
                raise RuntimeError("a process of the load has ended") from None
            sample.latencies = np.concatenate([sample.latencies, latencies])
            sample.errors = [*sample.errors, *errors][:5]
            sample.failed += failed
        return sample


def _work(connection: Connection, number: int) -> None:
    while (message := connection.recv()) is not None:
        job, start, part, count = message
        try:
            result = asyncio.run(_run(job, start, part, count, number))
        except Exception as error:  # whatever it is, the table has to say it
            result = (np.empty(0), [f"{type(error).__name__}: {error}"], 1)
        connection.send(result)


async def _run(
    job: Job, start: float, part: int, count: int, number: int
) -> tuple[NDArray[np.float64], list[str], int]:
    """Runs one process's part of a job: latencies, some errors, and their number."""
    calls: list[tuple[float, float]] = []  # end and duration
    errors: list[str] = []
    failed = 0
    end = start + job.seconds
    async with grpc.aio.insecure_channel(job.address, options=_NO_LIMIT) as channel:
        with contextlib.ExitStack() as stack:
            bodies = await _prepare(job, channel, stack, number)
            method = INFER if job.in_shared_memory else PREDICT
            call: Callable[..., Awaitable[bytes]] = channel.unary_unary(method)
            turn = 0

            async def send(scheduled: float) -> None:
                nonlocal turn, failed
                turn += 1
                try:
                    await call(bodies[turn % len(bodies)], timeout=job.seconds + 30)
                except grpc.RpcError as error:
                    failed += 1
                    if len(errors) < 3:
                        errors.append(f"{error.code().name}: {error.details()}")
                    await asyncio.sleep(0.01)
                else:
                    now = time.monotonic()
                    calls.append((now, now - scheduled))

            if job.in_flight:
                loops = job.in_flight // count + (part < job.in_flight % count)
                await asyncio.gather(*(_closed_loop(send, end) for _ in range(loops)))
            else:
                await _open_loop(send, job, start - job.warm_up, end, job.rate / count, number)
    latencies = [duration for ended, duration in calls if start <= ended < end]
    return np.array(latencies), errors, failed


async def _closed_loop(send: Callable[[float], Awaitable[None]], end: float) -> None:
    while (now := time.monotonic()) < end:
        await send(now)


async def _open_loop(
    send: Callable[[float], Awaitable[None]],
    job: Job,
    start: float,
    end: float,
    rate: float,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    scheduled = start
    tasks = set()
    while (scheduled := scheduled + random.exponential(1 / rate)) < end:
        if (delay := scheduled - time.monotonic()) > 0:
            await asyncio.sleep(delay)
        task = asyncio.ensure_future(send(scheduled))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=_LATE)


async def _prepare(
    job: Job, channel: grpc.aio.Channel, stack: contextlib.ExitStack, number: int
) -> Sequence[bytes]:
    """Returns the bodies of some requests; in shared memory, once that is registered."""
    arrays = [make_rows(job.row, job.rows, seed=100 * number + i) for i in range(VARIETY)]
    await channel.channel_ready()
    if not job.in_shared_memory:
        requests = [PredictRequest(model=job.model, inputs=[to_tensor("x", a)]) for a in arrays]
        return [request.SerializeToString() for request in requests]
    memory = stack.enter_context(_shared_memory(arrays))
    region = f"load-{os.getpid()}"
    unregister = channel.unary_unary(f"{_SERVICE}SystemSharedMemoryUnregister")
    await unregister(SystemSharedMemoryUnregisterRequest(name=region).SerializeToString())
    register = SystemSharedMemoryRegisterRequest(
        name=region, key=f"/{memory.name}", byte_size=memory.size
    )
    method = channel.unary_unary(f"{_SERVICE}SystemSharedMemoryRegister")
    await method(register.SerializeToString())
    size = arrays[0].nbytes
    bodies = []
    for index in range(VARIETY):
        request = ModelInferRequest(model_name=job.model)
        tensor = request.inputs.add(name="x", datatype="FP32", shape=arrays[0].shape)
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = size
        tensor.parameters["shared_memory_offset"].int64_param = index * size
        bodies.append(request.SerializeToString())
    return bodies


@contextlib.contextmanager
def _shared_memory(arrays: Sequence[NDArray[np.float32]]) -> Iterator[SharedMemory]:
    """Yields memory with these arrays, one after the other, and deletes it."""
    size = sum(array.nbytes for array in arrays)
    # The kernel promises more than there is, and ends the process that writes it.
    if (free := shutil.disk_usage(_SHARED_MEMORY).free) < size:
        raise OSError(f"{_SHARED_MEMORY} has {free >> 20} MiB (expected {size >> 20} or more)")
    memory = SharedMemory(create=True, size=size)
    try:
        at = 0
        for array in arrays:
            memory.buf[at : at + array.nbytes] = array.tobytes()
            at += array.nbytes
        yield memory
    finally:
        memory.close()
        memory.unlink()
