"""What dynamic batchers get wrong, each as a test: no thread, no clock, no sleep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from neurona_server.batching.batcher import Batcher
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Request
from neurona_server.errors import (
    CancelledError,
    ExpiredError,
    ModelFailedError,
    NeuronaError,
    QueueFullError,
    StoppingError,
)
from neurona_server.metrics import Metrics


class Asked:
    """A request and what its caller was told, each time it was told something."""

    def __init__(self, batcher, values, **options):
        self.told = []
        array = np.array(values, np.float32).reshape(len(values), -1)
        self.request = Request(
            {"x": array},
            len(array),
            array.shape[1:],
            lambda *told: self.told.append(told),
            **options,
        )
        batcher.submit(self.request)

    @property
    def answer(self):
        ((_, outputs, error),) = self.told  # exactly once
        return type(error) if error else outputs[0].ravel().tolist()


class Puppet:
    """A model that doubles, and does before it what the test says."""

    def __init__(self, before=lambda: None):
        self.batches = []
        self.before = before

    def __call__(self, inputs):
        self.batches.append(len(inputs["x"]))
        self.before()
        return [inputs["x"] * 2]


def make_batcher(registry=None, **options):
    now = iter(np.arange(1000.0))
    metrics = Metrics(registry or CollectorRegistry()).model("puppet", 1)
    policy = BatchPolicy(max_rows=8, max_queue_rows=64)
    return Batcher("puppet/1", policy, metrics, clock=lambda: float(next(now)), **options)


def step(batcher, run):
    batcher.process(batcher.queue.take(), run)


@pytest.fixture
def batcher():
    return make_batcher()


def test_answers_go_to_their_callers_with_mixed_row_counts(batcher):
    asked = [Asked(batcher, [1]), Asked(batcher, [2, 3, 4]), Asked(batcher, [5, 6])]
    puppet = Puppet()
    step(batcher, puppet)
    assert puppet.batches == [6]
    assert [one.answer for one in asked] == [[2], [4, 6, 8], [10, 12]]


def test_cancelling_one_of_three_does_not_disturb_the_others(batcher):
    asked = [Asked(batcher, [value]) for value in (1, 2, 3)]
    asked[1].request.fail(CancelledError())
    puppet = Puppet()
    step(batcher, puppet)
    assert puppet.batches == [2]
    assert [one.answer for one in asked] == [[2], CancelledError, [6]]


def test_cancelling_one_of_three_while_they_run_does_not_disturb_the_others(batcher):
    asked = [Asked(batcher, [value]) for value in (1, 2, 3)]
    step(batcher, Puppet(before=lambda: asked[1].request.fail(CancelledError())))
    assert [one.answer for one in asked] == [[2], CancelledError, [6]]


def test_a_failing_run_fails_its_requests_and_the_batcher_lives(batcher):
    def fail():
        raise RuntimeError("out of memory at 0xdeadbeef")

    lost = [Asked(batcher, [1]), Asked(batcher, [2])]
    step(batcher, Puppet(before=fail))
    assert [one.answer for one in lost] == [ModelFailedError, ModelFailedError]
    assert "deadbeef" not in str(lost[0].told[0][2])
    alive = Asked(batcher, [3])
    step(batcher, Puppet())
    assert alive.answer == [6]


def test_an_expired_request_never_reaches_the_model(batcher):
    expired = Asked(batcher, [1], deadline=0.0)
    puppet = Puppet()
    step(batcher, puppet)
    assert expired.answer is ExpiredError
    assert puppet.batches == []


@pytest.mark.parametrize("requests", [1, 2])
def test_a_wrong_number_of_output_rows_is_a_failure_not_a_mix_up(batcher, requests):
    asked = [Asked(batcher, [value]) for value in range(requests)]
    step(batcher, lambda inputs: [np.zeros((requests + 1, 1))])
    assert [one.answer for one in asked] == [ModelFailedError] * requests


def test_an_output_without_rows_is_a_failure(batcher):
    asked = Asked(batcher, [1])
    step(batcher, lambda inputs: [np.float32(1)])
    assert asked.answer is ModelFailedError


def test_one_answer_that_cannot_be_delivered_does_not_lose_the_others(batcher):
    def refuse(*_):
        raise OSError("the door is gone")

    array = np.ones((1, 1), np.float32)
    batcher.submit(Request({"x": array}, 1, array.shape[1:], refuse))
    asked = Asked(batcher, [3])
    step(batcher, Puppet())
    assert asked.answer == [6]


def test_a_model_without_a_batch_axis_runs_one_by_one_and_gives_its_outputs_whole():
    batcher = make_batcher(batched=False)
    asked = [Asked(batcher, [1, 2]), Asked(batcher, [3])]
    puppet = Puppet()
    step(batcher, lambda inputs: [puppet(inputs)[0].sum()])
    step(batcher, lambda inputs: [puppet(inputs)[0].sum()])
    assert puppet.batches == [2, 1]
    assert [one.answer for one in asked] == [[6], [6]]


def test_a_full_queue_refuses_with_a_hint_that_grows_with_what_waits(batcher):
    Asked(batcher, [1])
    step(batcher, Puppet())  # one run is known now
    Asked(batcher, range(64))
    with pytest.raises(QueueFullError) as caught:
        Asked(batcher, [1])
    assert caught.value.retry_after > 0


def test_drain_answers_all_that_was_admitted(batcher):
    asked = [Asked(batcher, [value]) for value in range(20)]
    batcher.close()
    batcher.serve(Puppet())
    assert [one.answer for one in asked] == [[2 * value] for value in range(20)]


def test_a_stop_that_cannot_wait_tells_all_that_wait(batcher):
    asked = [Asked(batcher, [value]) for value in range(3)]
    assert batcher.cancel_waiting(StoppingError("stopped")) == 3
    assert [one.answer for one in asked] == [StoppingError] * 3


def test_runs_and_waits_are_counted():
    registry = CollectorRegistry()
    batcher = make_batcher(registry)
    for values in ([1], [2, 3], [4]):
        Asked(batcher, values)
    step(batcher, Puppet())
    labels = {"model": "puppet", "version": "1"}

    def value(name):
        return registry.get_sample_value(f"neurona_{name}", labels)

    assert value("batch_rows_count") == 1
    assert value("batch_rows_sum") == 4
    assert value("batch_requests_sum") == 3
    assert value("queue_duration_seconds_count") == 3
    assert value("queue_duration_seconds_sum") == 3 + 2 + 1  # the clock ticks once an event
    assert value("queue_rows") == 0


FATES = st.sampled_from(["ok", "cancel", "expire", "poison"])


@given(st.lists(st.tuples(st.integers(1, 9), FATES)))
def test_every_request_is_answered_once_with_its_own_rows(plan):
    batcher = make_batcher()
    asked = []
    for number, (rows, fate) in enumerate(plan):
        values = [number * 100.0 + row for row in range(rows)]
        if fate == "poison":
            values[0] = np.nan
        try:
            asked.append(
                (fate, values, Asked(batcher, values, deadline=0.0 if fate == "expire" else np.inf))
            )
        except QueueFullError:
            continue
        if fate == "cancel":
            asked[-1][2].request.fail(CancelledError())

    def run(inputs):
        if np.isnan(inputs["x"]).any():
            raise RuntimeError("poisoned")
        return [inputs["x"] * 2]

    batcher.close()
    batcher.serve(run)
    assert batcher.queue.rows == 0
    for fate, values, one in asked:
        if fate == "cancel":
            assert one.answer is CancelledError
        elif fate == "expire":
            assert one.answer is ExpiredError
        elif fate == "poison":
            assert one.answer is ModelFailedError
        else:  # its own rows, or the failure of the batch it shared with a poisoned request
            assert one.answer in ([2 * value for value in values], ModelFailedError)


def test_every_error_has_an_outcome_that_metrics_know():
    from neurona_server.metrics import OUTCOMES

    for error in NeuronaError.__subclasses__():
        assert error.outcome in OUTCOMES
