"""A day in the life of a batcher, on a clock that the test moves: costs change, load comes."""

import heapq

import numpy as np
import pytest
from support.fakes import Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import NeuronaError


class Day:
    """Requests come at random at a given rate; a run takes what `cost` says of its rows."""

    def __init__(self, cost, objective=None, warm_up=None, budget=1e9, seed=0):
        policy = BatchPolicy(max_rows=64, latency_objective=objective)
        self.batcher = PuppetBatcher(policy)
        self.cost = cost
        self.random = np.random.default_rng(seed)
        if warm_up:
            self.batcher.cost_model.measure(warm_up, (1,), budget=budget)
        self.batcher.tune()

    def pass_(self, seconds, rate, within=np.inf):
        """Latencies of what was answered, and how many were not."""
        clock = self.batcher.clock
        start, end = clock.now, clock.now + seconds
        gaps = self.random.exponential(1 / rate, int(2 * rate * seconds) + 10)
        coming = [when for when in start + np.cumsum(gaps) if when < end]
        heapq.heapify(coming)
        latencies, failures = [], 0
        pending = []

        def arrive_until(now):
            nonlocal failures
            while coming and coming[0] <= now:
                clock.now = heapq.heappop(coming)
                try:
                    pending.append(
                        (
                            clock.now,
                            SubmittedRequest(self.batcher, [1], deadline=clock.now + within),
                        )
                    )
                except NeuronaError:
                    failures += 1
            clock.now = now

        def pass_time(inputs):
            arrive_until(clock.now + self.cost(len(inputs["x"])))

        puppet = Puppet(before=pass_time)
        while coming or self.batcher.queue.rows:
            if not self.batcher.queue.rows:
                arrive_until(max(clock.now, coming[0]))
            self.batcher.step(puppet)
            open_ones = []
            for arrived, one in pending:
                if not one.results:
                    open_ones.append((arrived, one))
                elif one.results[0][1] is None:
                    latencies.append(clock.now - arrived)
                else:
                    failures += 1
            pending[:] = open_ones
        return np.array(latencies), failures


def by_row(rows):
    return 0.002 * rows


def flat(rows):
    return 0.01 + 0.0001 * rows


def test_half_the_capacity_with_deadlines_rejects_no_request():
    day = Day(by_row, warm_up=by_row)
    latencies, failures = day.pass_(20, rate=250, within=0.2)
    assert failures == 0
    assert np.quantile(latencies, 0.99) < 0.1


def test_twice_the_capacity_with_an_objective_keeps_it_and_stays_busy():
    day = Day(flat, objective=0.1, warm_up=flat)
    latencies, failures = day.pass_(10, rate=8000)  # 64 rows in 16.4 ms are 3,900 a second
    assert np.quantile(latencies, 0.99) < 0.11
    assert len(latencies) > 0.8 * 39_000
    assert failures > 0


@pytest.mark.parametrize(
    ("name", "warm_up", "budget"),
    [
        pytest.param("a warm-up that was cut short", flat, 0.005, marks=pytest.mark.slow),
        ("a warm-up while the machine was busy", lambda rows: flat(rows) * (1 + 9 * (rows > 4)), 9),
        ("no warm-up", None, 0.0),
    ],
)
def test_the_best_batch_size_is_found_whatever_the_warm_up_measured(name, warm_up, budget):
    day = Day(flat, objective=0.1, warm_up=warm_up, budget=budget)
    day.pass_(20, rate=3000)  # time to learn
    latencies, _ = day.pass_(5, rate=3000)
    assert len(latencies) > 0.9 * 15_000, f"{name}: limit {day.batcher.queue.max_batch_rows}"


@pytest.mark.slow
def test_after_a_slow_time_the_limit_returns():
    day = Day(flat, objective=0.1, warm_up=flat)
    day.pass_(5, rate=3000)
    day.cost = lambda rows: 4 * flat(rows)
    day.pass_(5, rate=3000)
    assert day.batcher.queue.max_batch_rows <= 32
    day.cost = flat
    day.pass_(20, rate=3000)
    latencies, _ = day.pass_(5, rate=3000)
    assert len(latencies) > 0.9 * 15_000
    assert day.batcher.queue.max_batch_rows >= 32


def test_an_objective_out_of_reach_costs_no_throughput():
    def slow(rows):
        return 0.06 + 0.0001 * rows

    latencies, failures = Day(slow, objective=0.05, warm_up=slow).pass_(20, rate=200)
    assert failures < 0.1 * 4000
    assert np.quantile(latencies, 0.99) < 0.25
