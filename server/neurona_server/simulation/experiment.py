"""Simulates a scenario for a time, and reports what its callers would have met."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, cycle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from neurona_server.simulation.arrivals import bursts, poisson, read_trace, recorded
from neurona_server.simulation.kernel import Kernel
from neurona_server.simulation.model import Outcomes
from neurona_server.simulation.scenario import Load, ModelScenario, Scenario, level_of
from neurona_server.simulation.server import Arrival, SimulatedServer

DRAIN_STEP = 1.0
"""Seconds in which all requests may be answered after the last one has come ..."""

DRAIN_STEPS = 60
"""... and how often that is waited for."""

PERCENTILES = {"p50_ms": 50.0, "p99_ms": 99.0, "p999_ms": 99.9}


@dataclass(frozen=True)
class ModelReport:
    """What the callers of one model met, of all servers together. Shares are between 0 and 1."""

    model: str
    rate: float
    """Requests that came in a second."""
    goodput: float
    """Rows answered in time in a second: within deadline and objective, where there are any."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    """From arrival to answer, of those that were answered; NaN without any."""
    mean_ms: float
    refused: float
    """Share of all requests."""
    dropped: float
    """Share of all requests: admitted, and then not answered."""
    in_time: float
    """Share of the admitted ones."""
    refusal_p99_ms: float
    """From arrival to the refusal."""
    mean_batch_rows: float
    utilisation: float
    """Share of the time in which its instances were at work."""


@dataclass(frozen=True)
class Report:
    """What a simulation shows."""

    replicas: int
    seconds: float
    """Those in which requests were counted."""
    models: Sequence[ModelReport]
    transport_utilisation: float
    """Share of the time in which the servers' transports read requests."""

    def to_json(self) -> dict[str, Any]:
        """Return it as a dictionary; what is not known is None."""

        def is_known(value: Any) -> bool:
            return not (isinstance(value, float) and math.isnan(value))

        models = [
            {name: value if is_known(value) else None for name, value in asdict(one).items()}
            for one in self.models
        ]
        return {**asdict(self), "models": models}


def simulate(
    scenario: Scenario,
    seconds: float = 10.0,
    *,
    warm_up: float = 1.0,
    seed: int = 1,
    times: Mapping[str, Sequence[float]] | None = None,
    folder: Path = Path(),
) -> Report:
    """Simulate a scenario.

    Args:
        scenario: What is simulated.
        seconds: How long requests come that are counted, in virtual time.
        warm_up: Seconds before, in which the servers learn; their requests are not counted.
        seed: Of chance: the same one gives the same report.
        times: By the names of models: seconds from the start at which requests come, in place of
            the model's load; `warm_up` is the part of them that is not counted.
        folder: Relative to which traces are named.

    Raises:
        OSError: A trace cannot be read.
        ValueError: Something in the scenario is not valid.
    """
    return Experiment(scenario, seconds, warm_up, seed, times or {}, folder).run()


class Experiment:
    """The servers of a scenario, the balancer before them, and the callers."""

    def __init__(
        self,
        scenario: Scenario,
        seconds: float,
        warm_up: float,
        seed: int,
        times: Mapping[str, Sequence[float]],
        folder: Path,
    ) -> None:
        """See `simulate`."""
        self._scenario = scenario
        self._seconds = seconds
        self._kernel = kernel = Kernel()
        kernel.handover_seconds = scenario.handover_seconds
        self._start = kernel.now
        self._end = kernel.now + warm_up + seconds
        measured = (kernel.now + warm_up, self._end)
        self.outcomes = [Outcomes() for _ in scenario.models]
        # Each part has chance of its own: the callers come at the same times whatever the servers.
        self.servers = [
            SimulatedServer(
                kernel, scenario, _random(seed, "server", number), self.outcomes, measured
            )
            for number in range(scenario.replicas)
        ]
        next_server = cycle(self.servers).__next__
        if scenario.balancer == "least_outstanding":

            def next_server() -> SimulatedServer:
                return min(self.servers, key=lambda server: server.outstanding)

        for index, model in enumerate(scenario.models):
            random = _random(seed, "load", index)
            own = times.get(model.name)
            arrivals = _times(model.load, random, folder) if own is None else iter(sorted(own))
            self._send(arrivals, _new_arrivals(index, model, random), next_server)

    def run(self) -> Report:
        """Let the time pass, and report on it."""
        with self._kernel as kernel:
            kernel.run(until=self._end)
            for _ in range(DRAIN_STEPS):
                if not any(server.outstanding for server in self.servers):
                    break
                kernel.run(until=kernel.now + DRAIN_STEP)
        replicas = len(self.servers)
        reading = sum([server.transport.busy_seconds for server in self.servers])
        return Report(
            replicas=replicas,
            seconds=self._seconds,
            models=[
                _report(model, counts, self._seconds, replicas * model.batching.instances)
                for model, counts in zip(self._scenario.models, self.outcomes, strict=True)
            ],
            transport_utilisation=reading / replicas / (self._end - self._start),
        )

    def _send(
        self,
        times: Iterator[float],
        new_arrival: Callable[[float], Arrival],
        next_server: Callable[[], SimulatedServer],
    ) -> None:
        """Have the requests of one model come, one after the other."""
        kernel, start, end = self._kernel, self._start, self._end

        def arrive() -> None:
            next_server().receive(new_arrival(kernel.now))
            schedule()

        def schedule() -> None:
            time = start + next(times, math.inf)
            if time < end:
                kernel.at(time, arrive)

        schedule()


def _times(load: Load, random: Random, folder: Path) -> Iterator[float]:
    if load.arrivals == "trace":
        times = read_trace(folder / load.trace)
        own_rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9) if times else 1.0
        return recorded(times, load.rate / own_rate)
    if load.arrivals == "bursts":
        return bursts(
            load.rate,
            random,
            ratio=load.burst_ratio,
            share=load.burst_share,
            seconds=load.burst_seconds,
        )
    return poisson(load.rate, random)


def _new_arrivals(index: int, model: ModelScenario, random: Random) -> Callable[[float], Arrival]:
    """Return what makes requests of a model, with properties as its load says."""
    load = model.load
    timeout = load.deadline_ms / 1000 or math.inf
    rows = _choice({int(rows): share for rows, share in load.rows.items()}, random)
    priorities = {level_of(name): share for name, share in load.priorities.items()}
    priority = _choice(priorities, random)
    groups = {(number,): group.share for number, group in enumerate(model.groups)}
    group = _choice(groups or {None: 1.0}, random)

    def new_arrival(time: float) -> Arrival:
        return Arrival(time, index, rows(), timeout, priority(), group())

    return new_arrival


def _choice(shares: Mapping[Any, float], random: Random) -> Callable[[], Any]:
    """Return what draws one of the keys, as often as the shares say."""
    values = list(shares)
    if len(values) == 1:
        return lambda: values[0]
    weights = list(accumulate(shares.values()))
    return lambda: random.choices(values, cum_weights=weights)[0]


def _report(model: ModelScenario, counts: Outcomes, seconds: float, instances: int) -> ModelReport:
    latencies = 1000 * np.array(counts.latencies)
    refusals = 1000 * np.array(counts.refusal_latencies)

    def percentile(values: "np.ndarray[Any, Any]", percent: float) -> float:
        return float(np.percentile(values, percent)) if len(values) else math.nan

    offered = max(1, counts.offered)
    return ModelReport(
        model=model.name,
        rate=counts.offered / seconds,
        goodput=counts.answered_rows / seconds,
        **{name: percentile(latencies, percent) for name, percent in PERCENTILES.items()},
        mean_ms=float(latencies.mean()) if len(latencies) else math.nan,
        refused=counts.refused / offered,
        dropped=counts.dropped / offered,
        in_time=counts.in_time / counts.admitted if counts.admitted else math.nan,
        refusal_p99_ms=percentile(refusals, 99.0),
        mean_batch_rows=counts.batch_rows / counts.batches if counts.batches else math.nan,
        utilisation=counts.busy / seconds / instances,
    )


def _random(seed: int, part: str, number: int) -> Random:
    return Random(f"{seed} {part} {number}")  # noqa: S311  no secret
