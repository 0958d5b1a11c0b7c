"""Load on a server, and the latency of each response.

Closed loop: a number of callers, each of whom sends its next request when it has a response. A slow
server gets fewer requests, so that its latencies look better than those of independent callers.

Open loop: requests at a fixed rate, whatever the server does. A latency counts from the moment when
the request was due, not from when there was time to send it: otherwise a stall would hide the
requests that it delayed (coordinated omission; G. Tene, "How NOT to Measure Latency", 2015).
"""

import asyncio
import itertools
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neurona_client.errors import NeuronaError

if TYPE_CHECKING:
    from neurona_client.async_client import AsyncClient
    from neurona_client.inputs import Inputs

PROGRESS_INTERVAL_SECONDS = 0.1
PAUSE_AFTER_FAILURE_SECONDS = 0.1


@dataclass(frozen=True)
class LoadPlan:
    """What load to generate.

    Attributes:
        model: its name.
        inputs: of the requests, in turn.
        version: of the model.
        label: of a version, instead.
        warm_up: seconds before the measurement.
        duration: seconds of the measurement.
        concurrency: callers of a closed loop.
        rate: requests per second of an open loop; None: a closed loop.
    """

    model: str
    inputs: "Sequence[Inputs]"
    version: int | None
    label: str | None
    warm_up: float
    duration: float
    concurrency: int
    rate: float | None


@dataclass
class LoadResult:
    """The requests that were due after the warm-up. Times are in seconds since the start.

    Attributes:
        starts: when each answered request was due.
        latencies: of the same requests.
        responses_in_time: responses received before the end of the measurement.
        errors: failures by class of the error.
        examples: message of the first failure of each class.
    """

    starts: "array[float]" = field(default_factory=lambda: array("d"))
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    responses_in_time: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


async def generate_load(
    client: "AsyncClient", plan: LoadPlan, on_progress: Callable[[float, int], None]
) -> LoadResult:
    """Generate load and measure it.

    Args:
        client: sends the requests.
        plan: which requests.
        on_progress: called repeatedly with the seconds since the start and the responses so far.
    """
    result = LoadResult()
    start = time.perf_counter()
    end = plan.warm_up + plan.duration
    inputs = itertools.cycle(plan.inputs)

    async def send_request(due: float) -> None:
        try:
            await client.predict(plan.model, next(inputs), version=plan.version, label=plan.label)
        except NeuronaError as error:
            error_class = type(error).__name__
            if due >= plan.warm_up:
                result.errors[error_class] += 1
                result.examples.setdefault(error_class, str(error))
            return
        now = time.perf_counter() - start
        if plan.warm_up <= now <= end:
            result.responses_in_time += 1
        if due >= plan.warm_up:
            result.starts.append(due)
            result.latencies.append(now - due)

    async def run_caller() -> None:
        while (now := time.perf_counter() - start) < end:
            failures = result.errors.total()
            await send_request(now)
            if result.errors.total() > failures:
                await asyncio.sleep(PAUSE_AFTER_FAILURE_SECONDS)

    async def run_schedule(rate: float) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            due = number / rate
            if due >= end:
                break
            wait = due - (time.perf_counter() - start)
            # Even without a wait, the tasks need their turn regularly.
            if wait > 0 or number % 64 == 0:
                await asyncio.sleep(max(0.0, wait))
            task = asyncio.create_task(send_request(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def report_progress() -> None:
        while True:
            on_progress(time.perf_counter() - start, len(result.latencies))
            await asyncio.sleep(PROGRESS_INTERVAL_SECONDS)

    reporting = asyncio.create_task(report_progress())
    try:
        if plan.rate is None:
            await asyncio.gather(*(run_caller() for _ in range(plan.concurrency)))
        else:
            await run_schedule(plan.rate)
    finally:
        reporting.cancel()
    return result
