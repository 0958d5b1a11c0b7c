"""The simulation against what queueing theory says in closed form."""

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
