"""One model of one simulated server: a real batcher whose runs take virtual time."""

import math
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import numpy as np
from prometheus_client import CollectorRegistry

from neurona_server.batching.batch import Run
from neurona_server.batching.batcher import Batcher, Defer
from neurona_server.batching.device_scheduler import CPU, DeviceScheduler
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.batching.watchdog import RUN_PERIOD, RunWatchdog
from neurona_server.errors import DeadlineExceededError, NeuronaError, QueueFullError
from neurona_server.simulation.costs import BatchCosts, Phases
from neurona_server.simulation.kernel import Kernel
from neurona_server.telemetry.metrics import Metrics, ModelMetrics

NO_INPUTS: Inputs = {}


@dataclass
class Outcomes:
    """What became of the requests of a model that arrived after the warm-up. Times in seconds."""

    offered: int = 0
    refused: int = 0
    """On arrival, or displaced from the queue later."""
    dropped: int = 0
    """Admitted, but not answered, as they could not be answered in time."""
    failed: int = 0
    """By another error."""
    in_time: int = 0
    """Answered within the deadline and the latency objective, where there are any."""
    answered_rows: int = 0
    """Of the answers in time between the same times, whenever their requests arrived."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    """From arrival to answer."""
    refusal_latencies: "array[float]" = field(default_factory=lambda: array("d"))
    """From arrival to the error."""
    hints: "array[float]" = field(default_factory=lambda: array("d"))
    """What refused requests were told to wait."""
    batches: int = 0
    batch_rows: int = 0
    busy: float = 0.0
    """The sum of the cycles of batches."""

    @property
    def admitted(self) -> int:
        return self.offered - self.refused


class SimulatedRequest(Request):
    """A request that knows when it came."""

    __slots__ = ("_model", "arrived")

    def __init__(
        self,
        model: "SimulatedModel",
        arrived: float,
        rows: int = 1,
        deadline: float = math.inf,
        priority: Priority = Priority.NORMAL,
        group: Hashable = None,
    ) -> None:
        inputs = NO_INPUTS if rows == 1 else {"x": np.broadcast_to(np.uint8(0), (rows, 1))}
        super().__init__(inputs, rows, group, deadline, priority, model.request_bytes * rows)
        self._model = model
        self.arrived = arrived
        self.arrival_lag = model.kernel.now - arrived

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        self._model.record(self, outputs, error)


class _SimulatedRun:
    """A run that takes the seconds that its "inputs" say."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._is_terminated = False

    def __call__(self, inputs: Inputs) -> Outputs:
        phases = cast(Phases, inputs)
        self._sleep(phases.run)
        if self._is_terminated:
            raise RuntimeError("the run was terminated")
        return cast(Outputs, phases)

    def terminate(self) -> None:
        self._is_terminated = True


class _SimulatedJoiner:
    """Takes the time of joining inputs and of writing answers, in place of doing it."""

    def __init__(self, model: "SimulatedModel") -> None:
        self._model = model

    def group(self, requests: Sequence[Request]) -> Hashable:
        return requests[0].group

    def join(self, requests: Sequence[Request], padded_rows: int, run: Run | None) -> Inputs:  # noqa: ARG002
        model = self._model
        phases = model.draw(padded_rows, requests[0].group)
        model.count_batch(requests, phases)
        if phases.join:
            model.sleep(phases.join)
        return cast(Inputs, phases)

    def split(self, outputs: Outputs, requests: Sequence[Request], padded_rows: int) -> list[Any]:  # noqa: ARG002
        """Return when each request is answered, once all of them are."""
        answer = cast(Phases, outputs).answer
        model = self._model
        started = model.kernel.now
        if answer:
            model.sleep(answer)
        each = (model.kernel.now - started) / len(requests)
        return [
            (started + each * (index + 1),) if isinstance(request, SimulatedRequest) else ()
            for index, request in enumerate(requests)
        ]


class SimulatedModel:
    """A model on one server: its batcher, and what has become of its requests."""

    def __init__(
        self,
        kernel: Kernel,
        policy: BatchPolicy,
        costs: BatchCosts,
        random: Random,
        *,
        name: str = "model",
        devices: Sequence[str] = (CPU,),
        batched: bool = True,
        scheduler: DeviceScheduler | None = None,
        watchdog: RunWatchdog | None = None,
        group_factors: Mapping[Hashable, float] | None = None,
        request_bytes: int = 0,
        sleep: Callable[[float], None] | None = None,
        metrics: ModelMetrics | None = None,
        outcomes: Outcomes | None = None,
        measured: tuple[float, float] = (-math.inf, math.inf),
        on_end: Callable[[], object] = lambda: None,
    ) -> None:
        """Make a model that has been warmed up: its cost model is measured.

        Args:
            kernel: The virtual time.
            policy: Its batching. `inline` must be set, as here no time of a machine can decide it.
            costs: How long its batches take.
            random: Where chance comes from.
            name: Of the model.
            devices: For each run that it can have at once, the device.
            batched: Whether requests share runs.
            scheduler: That of the devices, if other models run on them, too.
            watchdog: That of the server.
            group_factors: By how much the runs of each group take longer.
            request_bytes: Bytes of a row.
            sleep: Lets the server work for so many seconds; by default time passes.
            metrics: Its series; by default of its own.
            outcomes: Where its requests are counted; by default by itself.
            measured: The times between which requests that arrive are counted.
            on_end: Called for each request that has ended.
        """
        self.kernel = kernel
        self.costs = costs
        self.random = random
        self.name = name
        self.request_bytes = request_bytes
        self.sleep = sleep or kernel.sleep
        self.outcomes = outcomes or Outcomes()
        self._measured_from, self._measured_until = measured
        self._on_end = on_end
        self._factors = group_factors or {}
        self._objective = math.inf if policy.latency_objective is None else policy.latency_objective
        self.batcher = Batcher(
            name,
            policy,
            metrics or Metrics(CollectorRegistry()).for_version(name, 1),
            [(device, self._new_run) for device in devices],
            batched=batched,
            scheduler=scheduler or DeviceScheduler(1 << 30, new_condition=kernel.new_condition),
            watchdog=watchdog,
            clock=kernel.clock,
            new_condition=kernel.new_condition,
        )
        self.batcher.joiner = _SimulatedJoiner(self)
        self.batcher.padding._padded_sizes.update(costs.padded_sizes)
        self._group = next(iter(self._factors), None)
        self.batcher.cost_model.measure(self._time_run, self._group, budget=math.inf)
        self.batcher.tune()

    def start(self) -> None:
        """Start the threads of its instances, and look at its runs now and then."""
        for number in range(self.batcher.instances):
            self.kernel.spawn(self.batcher.serve, f"{self.name}#{number}")
        self._check_runs()

    def submit(
        self,
        arrived: float | None = None,
        *,
        rows: int = 1,
        timeout: float = math.inf,
        priority: Priority = Priority.NORMAL,
        group: Hashable = None,
        defer: Defer | None = None,
    ) -> SimulatedRequest | None:
        """Have a request come that has arrived at a time, by default now.

        Returns:
            The request, or None if it was refused.
        """
        if arrived is None:
            arrived = self.kernel.now
        request = SimulatedRequest(self, arrived, rows, arrived + timeout, priority, group)
        if self._measured_from <= arrived < self._measured_until:
            self.outcomes.offered += 1
        try:
            self.batcher.submit(request, defer)
        except NeuronaError as error:
            self.record(request, None, error)
            return None
        return request

    def record(
        self, request: SimulatedRequest, outputs: Outputs | None, error: NeuronaError | None
    ) -> None:
        """Count a request that has ended."""
        self._on_end()
        outcomes, ended = self.outcomes, self.kernel.now
        is_counted = self._measured_from <= request.arrived < self._measured_until
        if error is None:
            ended = cast(float, outputs[0]) if outputs else ended
            in_time = ended <= min(request.deadline, request.arrived + self._objective)
            if in_time and self._measured_from <= ended < self._measured_until:
                outcomes.answered_rows += request.rows
            if is_counted:
                outcomes.latencies.append(ended - request.arrived)
                outcomes.in_time += in_time
        elif not is_counted:
            pass
        elif isinstance(error, QueueFullError):
            outcomes.refused += 1
            outcomes.refusal_latencies.append(ended - request.arrived)
            if error.retry_after:
                outcomes.hints.append(error.retry_after)
        elif isinstance(error, DeadlineExceededError):
            if request.queued_at:
                outcomes.dropped += 1
            else:  # it is too short for any answer
                outcomes.refused += 1
                outcomes.refusal_latencies.append(ended - request.arrived)
        else:
            outcomes.failed += 1

    def draw(self, rows: int, group: Hashable) -> Phases:
        """Return the phases of the next batch."""
        phases = self.costs.draw(rows, self.random)
        factor = self._factors.get(group, 1.0)
        return phases if factor == 1.0 else phases.scaled(factor)

    def count_batch(self, requests: Sequence[Request], phases: Phases) -> None:
        """Count a batch that begins."""
        if self._measured_from <= self.kernel.now < self._measured_until:
            outcomes = self.outcomes
            outcomes.batches += 1
            outcomes.batch_rows += sum([request.rows for request in requests])
            outcomes.busy += phases.cycle

    def _new_run(self) -> Run:
        return _SimulatedRun(self.sleep)

    def _time_run(self, rows: int) -> float:
        phases = self.draw(rows, self._group)
        return phases.join + phases.run

    def _check_runs(self) -> None:
        self.batcher.check_runs()
        self.kernel.at(self.kernel.now + RUN_PERIOD, self._check_runs)
