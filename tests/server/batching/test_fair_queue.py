"""Who goes next, and how long it may run, with accounts that the tests write."""

import math

import pytest

from neurona_server.batching.fair_queue import (
    ACTIVE_SECONDS,
    MAX_CREDIT,
    Account,
    FairQueue,
    ModelShare,
)


class Model(Account):
    asked = 0

    def __init__(self, queue, *, due=0.0, objective=None, turn=0.001):
        super().__init__(queue.next_number(), -math.inf)
        self.share = ModelShare()
        self.share.objective = objective
        self.share.observe_turn(turn)
        self.waits = True
        self._due = due
        queue.limit_credit(self)

    @property
    def can_start(self):
        Model.asked += 1
        return self.waits

    @property
    def due(self):
        return self._due

    @property
    def slack(self):
        return self.share.slack

    @property
    def turn_seconds(self):
        return self.share.turn_seconds

    @property
    def run_count(self):
        return 1


def add(queue, now, **options):
    model = Model(queue, **options)
    queue.advance(now)
    queue.set_active(model, True)
    queue.note_request(model, now)
    queue.push(model)
    return model


def test_of_those_within_their_shares_the_one_that_is_due_first_goes_first():
    queue = FairQueue(1)
    late, early, debtor = (add(queue, 1.0, due=due) for due in (9.0, 2.0, 1.0))
    debtor.used = 0.5
    assert [queue.pop(), queue.pop(), queue.pop(), queue.pop()] == [early, late, debtor, None]


def test_of_those_beyond_their_shares_the_one_that_used_least_goes_first():
    queue = FairQueue(1)
    models = [add(queue, 1.0) for _ in range(3)]
    for model, used in zip(models, (3.0, 1.0, 2.0), strict=True):
        model.used = used
    assert [queue.pop().used for _ in models] == [1.0, 2.0, 3.0]


def test_who_does_not_want_a_turn_any_more_is_passed_over():
    queue = FairQueue(1)
    gone, still = add(queue, 1.0, due=1.0), add(queue, 1.0, due=2.0)
    gone.waits = False
    assert queue.pop() is still
    assert queue.pop() is None
    gone.waits = True
    queue.push(gone)
    assert queue.pop() is gone


def test_an_idle_model_saves_no_more_than_its_credit_and_owes_no_more_than_a_turn():
    queue = FairQueue(1)
    idle, busy = add(queue, 0.0), add(queue, 0.0)
    queue.set_active(idle, False)
    for second in range(1, 11):
        queue.advance(float(second))
        queue.charge(busy, 1.0)
    queue.limit_credit(idle)
    assert queue.virtual_time - idle.used == pytest.approx(MAX_CREDIT)
    assert busy.used - queue.virtual_time <= 1.0


@pytest.mark.parametrize("count", [10, 1000])
def test_to_choose_one_looks_at_few_of_those_that_wait(count):
    queue = FairQueue(1)
    for _ in range(count):
        add(queue, 1.0, due=2.0)
    Model.asked = 0
    now = 1.0
    for _ in range(3 * count):
        now += 0.001
        model = queue.pop()
        queue.advance(now)
        queue.charge(model, 0.001)
        queue.push(model)
    assert Model.asked <= 6 * 3 * count


class TestRunLimits:
    def test_leave_what_an_objective_can_wait(self):
        queue = FairQueue(1)
        pressed, tight, loose = (add(queue, 1.0, objective=seconds) for seconds in (None, 0.02, 1))
        assert queue.max_seconds(pressed, 1.0) == tight.slack < 0.02
        assert queue.max_seconds(loose, 1.0) == tight.slack
        assert queue.max_seconds(tight, 1.0) == loose.slack

    def test_end_when_the_objective_is_not_used_any_more(self):
        queue = FairQueue(1)
        pressed = add(queue, 1.0)
        add(queue, 1.0, objective=0.02)
        now = 1.5 + ACTIVE_SECONDS
        queue.note_request(pressed, now)
        assert queue.max_seconds(pressed, now) == math.inf

    def test_are_not_needed_without_objectives_or_with_a_slot_for_each_run(self):
        queue = FairQueue(2)
        pressed = add(queue, 1.0)
        assert queue.max_seconds(pressed, 1.0) == math.inf
        add(queue, 1.0, objective=0.02)
        assert queue.max_seconds(pressed, 1.0) == math.inf
        add(queue, 1.0)
        assert queue.max_seconds(pressed, 1.0) < 0.02

    def test_do_not_vanish_because_of_an_objective_that_cannot_be_met(self):
        share = ModelShare()
        share.objective = 0.001
        share.observe_turn(0.1)
        assert share.slack > 0.01
