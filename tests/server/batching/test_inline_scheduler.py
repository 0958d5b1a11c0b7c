"""Models that share a transport's thread, with batches that take the time the tests say."""

import math

import pytest
from support.fakes import Clock

from neurona_server.batching.fair_queue import ModelShare
from neurona_server.batching.inline_scheduler import MAX_INLINE_SECONDS, ThreadTurns


class InlineModel(ModelShare):
    """A model whose batches take `seconds` or as long as they may; `left` of them wait."""

    def __init__(self, turns, clock, seconds, *, objective=None):
        super().__init__()
        self.turns, self.clock, self.seconds, self.objective = turns, clock, seconds, objective
        self.left = 0
        self.limits, self.ran_at = [], []

    def submit(self, batches=1):
        self.left += batches
        return self.turns.request(self, self.serve)

    def serve(self, end, max_seconds):
        while self.left:
            self.left -= 1
            self.clock.now += min(self.seconds, max_seconds)
            self.limits.append(max_seconds)
            self.ran_at.append(self.clock.now)
            if self.clock.now >= end:
                break
        return bool(self.left)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def turns(clock):
    return ThreadTurns(clock)


def test_all_models_together_leave_the_thread_to_the_reader(turns, clock):
    models = [InlineModel(turns, clock, 0.001) for _ in range(100)]
    for model in models:
        run = model.submit(10)
    rounds = 0
    more = True
    while more:
        started = clock.now
        more = run()
        rounds += 1
        assert clock.now - started < MAX_INLINE_SECONDS + 0.0011
    assert rounds >= 1000 * 0.001 / (MAX_INLINE_SECONDS + 0.001)
    assert not any(model.left for model in models)


def test_a_model_alone_runs_on_without_a_turn_for_each_batch(turns, clock):
    model = InlineModel(turns, clock, 0.001)
    assert model.submit(3)() is False
    assert model.left == 0
    assert model.limits == [math.inf] * 3


@pytest.mark.parametrize("others", [1, 9, 99])
def test_a_modest_model_waits_for_no_more_than_a_round(turns, clock, others):
    """However many others always have batches waiting."""
    pressed = [InlineModel(turns, clock, 0.004) for _ in range(others)]
    modest = InlineModel(turns, clock, 0.0005, objective=0.02)
    for model in pressed:
        run = model.submit(1 << 30)
    interval = 0.0005 * (others + 1) / 0.8  # so it takes 0.8 of its share, if it runs each alone
    arrived, waits, next_at = [], [], clock.now + interval
    while len(waits) < 50:
        while next_at <= clock.now:
            arrived.append(next_at)
            next_at += interval
        if arrived and not modest.left:
            modest.submit()  # all that have arrived are one batch
        run()
        if arrived and not modest.left:
            waits += [modest.ran_at[-1] - one for one in arrived]
            arrived = []
    assert max(waits) < 0.02
    assert max(pressed[-1].limits[-3:]) < 0.02  # as the objective requires
    seconds = sum(len(model.ran_at) for model in pressed) * 0.004 + len(modest.ran_at) * 0.0005
    assert seconds == pytest.approx(clock.now - 100.0)  # the thread was never idle


def test_predicts_the_turns_of_others_that_go_first(turns, clock):
    tight = InlineModel(turns, clock, 0.001, objective=0.02)
    loose = InlineModel(turns, clock, 0.001)
    for model in (tight, loose, tight):
        model.submit()()
    assert turns.predict_turn(loose, clock.now) == 0.0
    tight.submit()
    assert turns.predict_turn(loose, clock.now) == pytest.approx(0.001)
    assert turns.predict_turn(tight, clock.now) == 0.0


def test_the_fault_of_a_model_does_not_keep_the_others_from_running(turns, clock):
    def fail(end, max_seconds):
        raise KeyError("a bug")

    turns.request(ModelShare(), fail)
    model = InlineModel(turns, clock, 0.001)
    assert model.submit()() is False
    assert model.left == 0


def test_a_model_that_is_unloaded_is_dropped(turns, clock):
    model = InlineModel(turns, clock, 0.001)
    model.submit()()
    turns.forget(model)
    assert model.submit()() is False
    assert model.left == 0


def test_requests_that_come_while_a_model_runs_are_not_forgotten(turns, clock):
    first, second = InlineModel(turns, clock, 0.001), InlineModel(turns, clock, 0.001)

    def serve(end, max_seconds):
        first.submit(2)  # as a stream does that goes on with its answer
        second.submit()
        return False

    run = turns.request(first, serve)
    turns._accounts[first].serve = serve
    assert run() is True
    turns._accounts[first].serve = first.serve
    assert run() is False
    assert (first.left, second.left) == (0, 0)
