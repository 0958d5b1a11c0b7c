"""The rows of the next batch, by what runs cost and how busy the model is."""

import heapq
import itertools
from collections import deque

import numpy as np
import pytest

from neurona_server.batching.batch_size_choice import (
    MAX_PRICE,
    BatchSizeChoice,
    RelativeCosts,
    Utilisation,
    choice_table,
)
from neurona_server.batching.cost_model import CostModel
from neurona_server.simulation.optimum import BatchingProcess, BatchService

SIZES = (1, 2, 4, 8, 16, 32, 64)
CURVES = {
    "no gain": {1: 1.0, 64: 64.0},
    "little gain": {1: 60.0, 2: 115.0, 8: 430.0, 64: 3440.0},
    "gain up to eight": {1: 12.0, 2: 15.6, 4: 23.6, 8: 41.0, 16: 74.5, 64: 297.7},
    "less efficient when large": {1: 17.0, 2: 19.7, 4: 25.0, 16: 86.0, 32: 168.0, 64: 376.0},
    "much gain": {1: 4.0, 64: 10.0},
}


class Waiting:
    rows = 0


def run_of(curve, rows):
    """Seconds."""
    return 1e-3 * float(np.interp(rows, sorted(curve), [curve[size] for size in sorted(curve)]))


@pytest.mark.parametrize("load", [0.95, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CURVES)
def test_the_mean_response_is_near_the_optimum(name, load):
    curve = CURVES[name]
    seconds = {size: run_of(curve, size) for size in curve}
    service = BatchService.from_curve(seconds, spread=(0.9, 1.1), max_queue_rows=256)
    process = BatchingProcess(service, load * service.capacity)
    runs = [run_of(curve, rows) for rows in range(1, 65)]
    utilisation = load
    for _ in range(4):  # it depends on the choices, and they on it
        price = min(MAX_PRICE, 1 / max(1 - utilisation, 1e-9))
        table = choice_table(runs, 1 / service.capacity, price, 1, 128)
        evaluation = process.evaluate(lambda waiting, table=table: table[min(waiting, 128)])
        utilisation = evaluation.utilisation
    assert evaluation.response < 1.05 * process.solve().response


def closed_loop(curve, in_flight, cycles, *, chooses=True, instances=1):
    """Rows per second of callers that each send a row as soon as they have an answer."""
    now, waiting = 0.0, Waiting()
    cost_model = CostModel(SIZES)
    cost_model.measure(lambda rows: run_of(curve, rows), None, budget=1e9)
    choice = BatchSizeChoice(cost_model, int, waiting, lambda: now, instances)
    random, numbers = np.random.default_rng(0), itertools.count()
    queued, running, rows_run = deque([0.0] * in_flight), [], 0
    for _ in range(cycles):
        while queued and len(running) < instances:
            waiting.rows = len(queued)
            most = min(64, len(queued))
            rows = choice.choose(None, most) if chooses else most
            first = queued[0]
            for _ in range(rows):
                queued.popleft()
            seconds = run_of(curve, rows) * random.choice((0.9, 1.1))
            heapq.heappush(running, (now + seconds, next(numbers), now, first, rows))
        ended, _, started, first, rows = heapq.heappop(running)
        now = ended
        choice.observe_run(rows, ended - started, None)
        choice.observe_batch(first, started, ended)
        queued.extend([now] * rows)
        rows_run += rows
    return rows_run / now


@pytest.mark.parametrize("in_flight", [64, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CURVES)
def test_callers_that_wait_for_answers_get_no_lower_rate(name, in_flight):
    curve = CURVES[name]
    rate = closed_loop(curve, in_flight, 400)
    assert rate > 0.97 * closed_loop(curve, in_flight, 400, chooses=False)


def test_two_instances_have_no_lower_rate():
    curve = CURVES["gain up to eight"]
    rate = closed_loop(curve, 64, 400, instances=2)
    assert rate > 0.97 * closed_loop(curve, 64, 400, chooses=False, instances=2)


def test_what_other_groups_have_waiting_counts_like_more_of_the_same():
    cost_model, waiting = CostModel((1, 2, 4, 8)), Waiting()
    cost_model.measure(lambda rows: 0.9 + rows * (1 + 0.001 / rows), None, budget=1e9)
    choice = BatchSizeChoice(cost_model, int, waiting, lambda: 0.0)
    choice.observe_run(1, 1.901, None)
    choice.observe_batch(0.0, 0.0, 0.1)
    waiting.rows = 40
    choice.choose(None, 8)
    choice.observe_batch(0.0, 10.0, 11.0)
    assert choice.choose(None, 8) == 8
    waiting.rows = 3
    assert choice.choose(None, 3) == 3


def test_short_runs_have_no_choice():
    """What a batch takes beside its run is unknown, and more than that."""
    for row_seconds, rows in ((0.0009, 8), (0.0011, 1)):
        cost_model, waiting = CostModel((1, 2, 4, 8)), Waiting()
        cost_model.measure(lambda rows, row_seconds=row_seconds: rows * row_seconds, None)
        choice = BatchSizeChoice(cost_model, int, waiting, lambda: 0.0)
        waiting.rows = 8
        for second in range(10):  # hardly busy
            choice.choose(None, 8)
            choice.observe_run(1, row_seconds, None)
            choice.observe_batch(10.0 * second, 10.0 * second, 10.0 * second + 0.001)
        assert choice.choose(None, 8) == rows


def test_before_any_run_all_are_taken():
    assert BatchSizeChoice(CostModel(SIZES), int, Waiting(), lambda: 0.0).choose(None, 50) == 50


def test_a_size_that_has_never_run_is_tried():
    costs, waiting = CostModel((1, 2, 4)), Waiting()
    choice = BatchSizeChoice(costs, int, waiting, lambda: 0.0)
    choice.observe_run(1, 1.0, None)
    choice.observe_batch(0.0, 0.0, 1.0)
    waiting.rows = 3
    assert choice.choose(None, 3) == 3


def test_a_slow_time_of_the_machine_makes_no_size_seem_worse():
    costs = RelativeCosts((1, 2, 4))
    costs.start({1: 1.0, 2: 1.8, 4: 3.4})
    for _ in range(200):
        costs.observe(4, 3 * 3.4)
    assert costs.costs[4] / costs.costs[1] == pytest.approx(3.4, rel=0.35)
    for _ in range(200):
        costs.observe(2, 3 * 1.8)
    ratio = costs.costs[4] / costs.costs[2]
    assert ratio == pytest.approx(3.4 / 1.8, rel=0.35)


def test_a_wrong_measurement_is_corrected():
    costs = RelativeCosts((1, 2, 4))
    costs.start({1: 1.0, 2: 1.8, 4: 20.0})
    for _ in range(200):
        for _ in range(7):
            costs.observe(2, 1.8)
        costs.observe(4, 3.4)
    assert costs.costs[4] / costs.costs[2] == pytest.approx(3.4 / 1.8, rel=0.1)


def test_the_utilisation_counts_the_wait_for_a_turn():
    utilisation = Utilisation(0.0, 1)
    for second in range(100):  # each runs for 0.2 s after 0.3 s in which others had the device
        utilisation.observe(second, second + 0.3, second + 0.5, 5.0)
    assert utilisation.share == pytest.approx(0.5, abs=0.02)
