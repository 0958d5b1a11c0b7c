"""Load on a server, and when each answer came.

Closed loop: so many callers, each of whom asks again as soon as it is answered. A slow server is
asked less often, so that its latencies look better than those of independent callers.

Open loop: calls at a fixed rate, whatever the server does. A latency counts from the moment when
the call was due, not from when there was time to send it: otherwise a stall would hide the calls
that it held up (coordinated omission; G. Tene, "How NOT to Measure Latency", 2015).
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

LOOK = 0.1
"""Seconds between two reports of progress."""


@dataclass(frozen=True)
class Plan:
    """Seconds. rate: calls a second of an open loop; None: a closed loop of `concurrency`."""

    model: str
    inputs: "Sequence[Inputs]"
    version: int | None
    label: str | None
    warm_up: float
    duration: float
    concurrency: int
    rate: float | None


@dataclass
class Measured:
    """Of the calls that were due after the warm-up. Times are seconds since the load began.

    starts, latencies: of the answers, in pairs.  in_time: answers that came before the end.
    errors: how often each kind failed; examples: a message of each.
    """

    starts: "array[float]" = field(default_factory=lambda: array("d"))
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    in_time: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


async def load(
    client: "AsyncClient", plan: Plan, progress: Callable[[float, int], None]
) -> Measured:
    """progress: is told now and then how many seconds have passed and how many answers came."""
    measured = Measured()
    begin = time.perf_counter()
    end = plan.warm_up + plan.duration
    inputs = itertools.cycle(plan.inputs)

    async def call(due: float) -> None:
        try:
            await client.predict(plan.model, next(inputs), version=plan.version, label=plan.label)
        except NeuronaError as error:
            kind = type(error).__name__
            if due >= plan.warm_up:
                measured.errors[kind] += 1
                measured.examples.setdefault(kind, str(error))
            return
        now = time.perf_counter() - begin
        if plan.warm_up <= now <= end:
            measured.in_time += 1
        if due >= plan.warm_up:
            measured.starts.append(due)
            measured.latencies.append(now - due)

    async def caller() -> None:
        while (now := time.perf_counter() - begin) < end:
            failures = measured.errors.total()
            await call(now)
            if measured.errors.total() > failures:
                await asyncio.sleep(LOOK)  # a server that is down is not asked without end

    async def schedule(rate: float) -> None:
        under: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            due = number / rate
            if due >= end:
                break
            wait = due - (time.perf_counter() - begin)
            # Also without a wait the answers need their turn now and then.
            if wait > 0 or number % 64 == 0:
                await asyncio.sleep(max(0.0, wait))
            task = asyncio.create_task(call(due))
            under.add(task)
            task.add_done_callback(under.discard)
        await asyncio.gather(*under)

    async def watch() -> None:
        while True:
            progress(time.perf_counter() - begin, len(measured.latencies))
            await asyncio.sleep(LOOK)

    watching = asyncio.create_task(watch())
    try:
        if plan.rate is None:
            await asyncio.gather(*(caller() for _ in range(plan.concurrency)))
        else:
            await schedule(plan.rate)
    finally:
        watching.cancel()
    return measured
