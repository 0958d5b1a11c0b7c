"""A simulation of overload: arrivals of several levels at a batcher with a fake clock.

It is deterministic: a seed gives the arrivals and the times of the runs.
"""

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.errors import DeadlineExceededError, NeuronaError, QueueFullError
from support.fakes import FakeRequest, Puppet, PuppetBatcher


@dataclass
class LevelReport:
    """What became of the requests of one level that arrived after the first seconds."""

    offered: int = 0
    refused: int = 0
    """On arrival."""
    displaced: int = 0
    expired: int = 0
    """In the queue."""
    late: int = 0
    """Answered after their deadlines."""
    answered_rows: int = 0
    seconds: list[float] = field(default_factory=list)
    """From arrival to response, of those that ran."""

    @property
    def rejected_share(self) -> float:
        return (self.refused + self.displaced) / max(1, self.offered)

    @property
    def missed_share(self) -> float:
        """Of the admitted ones, those that expired or were late."""
        admitted = self.offered - self.refused - self.displaced
        return (self.expired + self.late) / max(1, admitted)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent)) if self.seconds else 0.0


@dataclass
class Report:
    """The levels, and the rows answered in time as a share of the capacity."""

    levels: dict[Priority, LevelReport]
    goodput: float


@dataclass(frozen=True)
class Load:
    """Poisson arrivals.

    factor: of the capacity, all levels together. mix: share of each level. rows: what a request
    has, chosen at random. timeout: seconds to each request's deadline. pause: seconds that each
    level but the lowest alternates between twice its rate and none.
    """

    factor: float
    mix: Mapping[Priority, float]
    rows: Sequence[int] = (1,)
    timeout: float = math.inf
    pause: float = 0.0


class _TimedRequest(FakeRequest):
    def __init__(self, simulation: "Simulation", rows: int, load: Load, priority: Priority) -> None:
        now = simulation.batcher.clock.now
        inputs = {"x": np.zeros((rows, 1), np.float32)}
        super().__init__(inputs, rows, (1,), now + load.timeout, priority)
        self.arrived = now
        self._simulation = simulation

    def finish(self, outputs: object, error: NeuronaError | None) -> None:
        self._simulation.record(self, error)


class Simulation:
    """A model whose run of `rows` takes `base + per_row * rows` seconds, give or take `noise`."""

    def __init__(
        self, policy: BatchPolicy, base: float, per_row: float, noise: float = 0.05, seed: int = 0
    ) -> None:
        self.batcher = PuppetBatcher(policy)
        self._base, self._per_row, self._noise = base, per_row, noise
        self._random = random.Random(seed)  # noqa: S311
        self.batcher.cost_model.measure(self._expected_seconds, (1,), budget=1e9)
        self.batcher.tune()
        self.full_run = self._expected_seconds(policy.max_rows)
        self.capacity = policy.max_rows / self.full_run  # rows a second
        self._measured_from = math.inf
        self._levels = {level: LevelReport() for level in Priority}
        self._answered_rows = 0

    def run(self, load: Load, seconds: float, warm_up: float = 5.0) -> Report:
        """Simulate the load, and report on what arrives after `warm_up` seconds."""
        clock = self.batcher.clock
        started = clock.now
        self._levels = {level: LevelReport() for level in Priority}
        self._answered_rows = 0
        self._measured_from = started + warm_up
        end = self._measured_from + seconds
        arrivals = self._arrivals(load)

        def submit_until(time: float) -> None:
            while arrivals[0][0] <= time:
                arrival, level, gap = arrivals[0]
                heapq.heapreplace(arrivals, (arrival + self._random.expovariate(gap), level, gap))
                clock.now = max(clock.now, arrival)
                pauses = load.pause and level != Priority.LOW
                if not (pauses and int((arrival - started) / load.pause) % 2):
                    self._submit(load, level)

        def pass_time(inputs: Mapping[str, np.ndarray]) -> None:
            run = self._expected_seconds(len(inputs["x"]))
            run_end = clock.now + run * (1 + self._noise * self._random.uniform(-1, 1))
            submit_until(run_end)
            clock.now = run_end

        puppet = Puppet(before=pass_time)
        while clock.now < end:
            if self.batcher.step(puppet) is None:
                submit_until(max(clock.now, arrivals[0][0]))
        return Report(self._levels, self._answered_rows / (seconds * self.capacity))

    def record(self, request: _TimedRequest, error: NeuronaError | None) -> None:
        """Count a request that ended."""
        now = self.batcher.clock.now
        if now >= self._measured_from and error is None and now <= request.deadline:
            self._answered_rows += request.rows
        if request.arrived < self._measured_from:
            return
        level = self._levels[request.priority]
        if isinstance(error, QueueFullError):
            level.displaced += 1
        elif isinstance(error, DeadlineExceededError):
            level.expired += 1
        else:
            assert error is None
            level.seconds.append(now - request.arrived)
            level.answered_rows += request.rows
            level.late += now > request.deadline

    def _submit(self, load: Load, priority: Priority) -> None:
        request = _TimedRequest(self, self._random.choice(load.rows), load, priority)
        is_measured = request.arrived >= self._measured_from
        level = self._levels[priority]
        level.offered += is_measured
        try:
            self.batcher.submit(request)
        except (QueueFullError, DeadlineExceededError):
            level.refused += is_measured

    def _arrivals(self, load: Load) -> list[tuple[float, Priority, float]]:
        """A heap of the next arrival of each level, with the level's arrivals a second."""
        mean_rows = sum(load.rows) / len(load.rows)
        arrivals = []
        for level, share in load.mix.items():
            rate = load.factor * share * self.capacity / mean_rows
            if load.pause and level != Priority.LOW:
                rate *= 2
            arrivals.append((self.batcher.clock.now + self._random.expovariate(rate), level, rate))
        heapq.heapify(arrivals)
        return arrivals

    def _expected_seconds(self, rows: int) -> float:
        return self._base + self._per_row * rows
