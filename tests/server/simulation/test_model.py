"""The simulation against what queueing theory says, and admission where runs vary."""

from random import Random

import numpy as np
import pytest

from neurona_server.batching.policy import BatchPolicy
from neurona_server.simulation.arrivals import poisson
from neurona_server.simulation.costs import BatchCosts
from neurona_server.simulation.kernel import Kernel
from neurona_server.simulation.model import SimulatedModel


def simulate(rate, seconds, costs, *, instances=1, seed=1, **policy):
    with Kernel() as kernel:
        model = SimulatedModel(
            kernel,
            BatchPolicy(inline=False, **policy),
            costs,
            Random(seed),  # noqa: S311
            devices=["cpu"] * instances,
        )
        model.start()
        start, times = kernel.now, poisson(rate, Random(seed + 1))  # noqa: S311

        def arrive():
            model.submit()
            kernel.at(start + next(times), arrive)

        kernel.at(start + next(times), arrive)
        kernel.run(until=start + seconds)
        return model


def test_single_requests_wait_as_in_an_m_d_1_queue():
    model = simulate(70.0, 60.0, BatchCosts.linear(0.01, 0.0, [1]), max_rows=1)
    # Pollaczek and Khinchine: the load 0.7, a fixed service time of 10 ms.
    expected = 0.01 + 0.7 * 0.01 / (2 * (1 - 0.7))
    assert np.mean(model.outcomes.latencies) == pytest.approx(expected, rel=0.07)
    assert model.outcomes.busy / 60.0 == pytest.approx(0.7, rel=0.03)


def test_two_instances_run_at_once():
    costs = BatchCosts.linear(0.01, 0.0, [1])
    model = simulate(150.0, 8.0, costs, instances=2, max_rows=1)
    assert model.outcomes.answered_rows / 8.0 == pytest.approx(150.0, rel=0.07)


def test_batches_grow_with_the_load():
    costs = BatchCosts.linear(0.002, 0.0001, [1, 2, 4, 8, 16, 32, 64])
    outcomes = simulate(5000.0, 1.0, costs).outcomes
    # Each batch has what came during the one before: b = rate * (base + row * b).
    assert outcomes.batch_rows / outcomes.batches == pytest.approx(20.0, rel=0.07)


def test_a_seed_gives_the_same_requests_the_same_times():
    costs = BatchCosts.linear(0.002, 0.0001, [1, 8, 64], spread=0.3)
    first, again, other = [
        simulate(9000.0, 0.15, costs, seed=seed, latency_objective=0.03).outcomes
        for seed in (1, 1, 5)
    ]
    assert first == again
    assert first.refused > 0
    assert first != other


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("factor", [0.8, 2.0])
def test_what_is_admitted_is_in_time_though_runs_vary(factor, seed):
    """32 rows in 15 ms, give or take a fifth, and an objective of five such cycles."""
    costs = BatchCosts.linear(0.005, 0.01 / 32, [1, 2, 4, 8, 16, 32], spread=0.2)
    capacity, seconds = 32 / 0.015, 4.0
    outcomes = simulate(
        factor * capacity, seconds, costs, seed=seed, max_rows=32, latency_objective=0.075
    ).outcomes
    late = outcomes.admitted - outcomes.in_time
    # What waits at the end has no answer: a queue that is within the objective.
    assert late <= 0.001 * outcomes.admitted + 0.075 * capacity
    assert outcomes.dropped <= 0.001 * outcomes.admitted
    assert np.mean(np.array(outcomes.latencies) > 0.075) <= 0.001
    assert outcomes.in_time >= 0.92 * min(factor, 1.0) * capacity * seconds
