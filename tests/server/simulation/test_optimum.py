"""The optimal batching: against closed forms, and against all policies of small queues."""

import itertools

import numpy as np
import pytest

from neurona_server.simulation.optimum import BatchingProcess, BatchService, simulate


def test_single_rows_wait_as_pollaczek_and_khinchine_say():
    service = BatchService(np.array([[0.5, 1.5]]), max_queue_rows=200)
    evaluation = BatchingProcess(service, 0.7).solve()
    second_moment = (0.5**2 + 1.5**2) / 2
    assert evaluation.response == pytest.approx(1 + 0.7 * second_moment / (2 * 0.3), rel=1e-9)
    assert evaluation.refused < 1e-9


def test_a_full_queue_refuses_what_erlang_says():
    # One place to wait beside the one that runs: M/D/1/2, whose empty state is a fixed point.
    service = BatchService(np.array([[1.0]]), max_queue_rows=1)
    rate = 0.8
    evaluation = BatchingProcess(service, rate).solve()
    empty = np.exp(-rate)  # chance that nobody comes during a run
    busy = 1 / (1 + empty / rate)
    assert evaluation.refused == pytest.approx(1 - busy / rate, rel=1e-9)


@pytest.mark.parametrize("rate", [0.5, 1.5, 2.5])
def test_no_policy_of_a_small_queue_is_better(rate):
    service = BatchService(np.array([[0.8, 1.0], [0.9, 1.3], [1.0, 1.4]]), 0.1, 4)
    process = BatchingProcess(service, rate)
    best = process.solve()
    costs = []
    for rows in itertools.product(
        *[range(min(waiting, 3) + 1) for waiting in range(1, 4)], (1, 2, 3)
    ):
        one = process.evaluate(lambda waiting, rows=rows: rows[waiting - 1])
        # The mean number in the system, and what is refused at its price.
        number = one.response * rate * (1 - one.refused)
        costs.append(number + 2 * 4 / service.capacity * rate * one.refused)
    number = best.response * rate * (1 - best.refused)
    least = number + 2 * 4 / service.capacity * rate * best.refused
    assert least == pytest.approx(min(costs), rel=1e-9)


def test_where_batching_gains_nothing_the_optimum_takes_single_rows():
    service = BatchService.from_curve({1: 1.0, 8: 8.0}, max_queue_rows=64)
    assert set(BatchingProcess(service, 0.5).solve().rows[1:40]) == {1}


def test_where_a_batch_costs_no_more_the_optimum_takes_all():
    service = BatchService.from_curve({1: 1.0, 8: 1.01}, max_queue_rows=64)
    rows = BatchingProcess(service, 3.0).solve().rows
    assert [*rows[8:40]] == [8] * 32


def test_a_simulation_has_the_mean_that_is_computed():
    service = BatchService.from_curve({1: 1.0, 8: 3.0}, answer_seconds=0.05, spread=(0.8, 1.2))
    evaluation = BatchingProcess(service, 1.5).solve()
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / 1.5, 100_000))
    responses = simulate(service, lambda waiting: int(evaluation.rows[waiting]), arrivals)
    assert responses.mean() == pytest.approx(evaluation.response, rel=0.02)


def test_a_policy_that_takes_more_than_waits_is_refused():
    process = BatchingProcess(BatchService(np.array([[1.0], [1.5]]), max_queue_rows=4), 0.5)
    with pytest.raises(ValueError, match="choice of rows invalid"):
        process.evaluate(lambda _: 2)
