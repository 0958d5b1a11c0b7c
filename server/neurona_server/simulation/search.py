"""Answers of simulations to an operator's questions: how many servers, which rate, which objective.

Each answer comes with the reports that it follows from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neurona_server.simulation.experiment import ModelReport, Report
from neurona_server.simulation.scenario import Scenario

MAX_REPLICAS = 1024
"""Beyond so many servers an answer says more about the scenario than about servers."""

WORTHWHILE = 0.98
"""Twice the servers bring a target nearer than this many times what was missing, or never will."""

RATE_PRECISION = 0.02
"""Of the highest rate, relative to it."""

Simulate = Callable[[Scenario], Report]
"""`experiment.simulate`, with all but the scenario given."""


@dataclass(frozen=True)
class Target:
    """What all models must keep."""

    p99: float
    """Seconds from arrival to answer that 99 of 100 answered requests do not exceed."""
    max_unanswered: float = 0.001
    """The share of requests that may be refused or dropped."""

    def is_met(self, report: Report) -> bool:
        """Return whether every model of a report keeps the target; one without answers does not."""
        return all(
            model.p99_ms <= 1000 * self.p99 and model.refused + model.dropped <= self.max_unanswered
            for model in report.models
        )

    def miss(self, model: ModelReport) -> float:
        """Return how far a model is from the target, for comparisons: its p99 or worse."""
        unanswered = model.refused + model.dropped
        if unanswered > self.max_unanswered:
            return 1e9 * unanswered  # latencies of the few that are answered mean little
        return model.p99_ms


@dataclass(frozen=True)
class ObjectiveCost:
    """What a latency objective costs."""

    objective: float | None
    """Seconds; None for none."""
    report: Report
    """At the scenario's rate."""
    capacity: float
    """Rows answered in time in a second when far more requests come than can be answered."""


def find_replicas(
    scenario: Scenario, target: Target, simulate: Simulate
) -> tuple[Report, Sequence[Report]]:
    """Find the least number of servers that keeps a target.

    Args:
        scenario: Its rate is shared by the servers; its number of them does not matter.
        target: What is to be kept.
        simulate: Simulates a scenario.

    Returns:
        The report of so many servers, and those of all numbers that were tried.

    Raises:
        ValueError: More servers do not bring it nearer.
    """
    reports: dict[int, Report] = {}

    def is_met(replicas: int) -> bool:
        if replicas not in reports:
            reports[replicas] = simulate(scenario.with_replicas(replicas))
        return target.is_met(reports[replicas])

    replicas, last_miss = 1, math.inf
    while not is_met(replicas):
        report = reports[replicas]
        miss = max(target.miss(model) for model in report.models)
        if miss > WORTHWHILE * last_miss or replicas >= MAX_REPLICAS:
            model = max(report.models, key=target.miss)
            raise ValueError(
                f"p99 is {model.p99_ms:.1f} ms and {model.refused + model.dropped:.2%} have no "
                f"answer with {replicas} servers (expected at most {1000 * target.p99:g} ms and "
                f"{target.max_unanswered:.2%}): more servers do not help"
            )
        last_miss = miss
        replicas *= 2
    too_few = replicas // 2
    while replicas - too_few > 1:
        middle = (too_few + replicas) // 2
        if is_met(middle):
            replicas = middle
        else:
            too_few = middle
    return reports[replicas], [reports[number] for number in sorted(reports)]


def find_rate(
    scenario: Scenario, target: Target, simulate: Simulate
) -> tuple[float, Sequence[Report]]:
    """Find the highest rate at which a scenario keeps a target.

    Args:
        scenario: Its own rate is where the search begins.
        target: What is to be kept.
        simulate: Simulates a scenario.

    Returns:
        Requests a second of all models together, 0.0 if the target is kept at no rate, and the
        reports of all rates that were tried.
    """
    reports: dict[float, Report] = {}

    def is_met(rate: float) -> bool:
        reports[rate] = simulate(scenario.with_rate(rate))
        return target.is_met(reports[rate])

    low, high, lowest = 0.0, scenario.rate, scenario.rate / 1024
    if is_met(high):
        while is_met(2 * high):
            high *= 2
        low, high = high, 2 * high
    while high - low > RATE_PRECISION * high and high > lowest:
        middle = (low + high) / 2
        if is_met(middle):
            low = middle
        else:
            high = middle
    return low, [reports[rate] for rate in sorted(reports)]


def compare_objectives(
    scenario: Scenario, objectives: Sequence[float | None], simulate: Simulate
) -> Sequence[ObjectiveCost]:
    """Find what each of some latency objectives costs.

    A short one makes batches small: the capacity is lower, and more requests are refused.

    Args:
        scenario: The rate at which latencies and refusals are compared.
        objectives: Seconds; None for none.
        simulate: Simulates a scenario.

    Returns:
        What each costs, in the order of the objectives.
    """
    overload = 2 * max(scenario.rate, _capacity(scenario.with_objective(0.0), simulate))
    costs = []
    for objective in objectives:
        changed = scenario.with_objective(objective or 0.0)
        pressed = simulate(changed.with_rate(overload))
        costs.append(ObjectiveCost(objective, simulate(changed), _goodput(pressed)))
    return costs


def _capacity(scenario: Scenario, simulate: Simulate) -> float:
    """Return the requests a second that a scenario answers at most, to within a factor of two."""
    rate = scenario.rate
    while (answered := _goodput(simulate(scenario.with_rate(rate)))) > 0.9 * rate:
        rate *= 2
    return answered


def _goodput(report: Report) -> float:
    return sum([model.goodput for model in report.models])
