import numpy as np
import pytest
from puppets import Asked, Puppet, PuppetBatcher

from neurona_server.batching.admission import TRUSTED
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import ExpiredError, QueueFullError


def make(objective=None, seconds=lambda rows: 1.0):
    """A batcher of which every run takes a second, and that has just run."""
    policy = BatchPolicy(max_rows=8, max_queue_rows=640, latency_objective=objective)
    batcher = PuppetBatcher(policy)
    batcher.curve.measure(seconds, (1,), 4, budget=1e9)
    batcher.tune()
    batcher.admission.begin(0, 1.0)
    batcher.admission.end(0)
    return batcher


def ask(batcher, rows=1, within=np.inf):
    return Asked(batcher, [1] * rows, deadline=batcher.clock.now + within)


def test_the_wait_is_what_runs_and_what_waits():
    batcher = make()
    assert batcher.admission.wait() == 0.0
    batcher.admission.begin(0, 1.0)
    batcher.clock.now += 0.25
    assert batcher.admission.wait() == 0.75
    ask(batcher, rows=8)
    ask(batcher, rows=8)
    assert batcher.admission.wait() == 2.75
    batcher.admission.instances = 2  # one of them idles
    assert batcher.admission.wait() == 1.0


def test_a_deadline_that_a_run_cannot_meet_is_refused_at_once():
    batcher = make()
    with pytest.raises(ExpiredError, match="would take 1000.0 ms, its deadline is in 500.0 ms"):
        ask(batcher, within=0.5)
    assert batcher.queue.rows == 0
    ask(batcher, within=1.5)


def test_a_deadline_that_the_wait_will_miss_is_refused_at_once_with_the_wait():
    batcher = make()
    ask(batcher, rows=80)
    with pytest.raises(QueueFullError, match="would wait 10000.0 ms and take 1000.0 ms") as caught:
        ask(batcher, within=5.0)
    assert caught.value.retry_after == pytest.approx(6.0)
    ask(batcher, within=12.0)
    ask(batcher)  # without a deadline it may wait


def test_a_deadline_in_the_past_is_refused():
    with pytest.raises(ExpiredError, match="had passed when the request came"):
        ask(make(), within=0.0)


def test_estimates_nobody_has_confirmed_for_long_refuse_nobody():
    """Else a wrong estimate that refuses everybody could never be put right."""
    batcher = make()
    batcher.clock.now += TRUSTED + 1
    asked = ask(batcher, within=0.5)
    batcher.step(Puppet())
    assert asked.answer == [2]


def test_an_objective_bounds_the_queue_and_the_batch():
    batcher = make(objective=4.0, seconds=lambda rows: rows * 1.0)
    assert batcher.queue.limit in (1, 2)  # two runs of it fit, and no rung is quicker by row
    batcher.admission.begin(0, 1.0)
    for _ in range(3):
        ask(batcher)
    with pytest.raises(QueueFullError, match="expected an answer within 4000.0 ms"):
        ask(batcher)


def test_an_objective_that_no_run_meets_does_not_close_the_door():
    batcher = make(objective=0.001)
    assert batcher.queue.limit == 1
    for _ in range(5):
        asked = ask(batcher)
        batcher.step(Puppet())
        assert asked.answer == [2]
