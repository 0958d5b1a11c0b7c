"""A full queue: more urgent requests take the places of less urgent ones."""

import time

import numpy as np
import pytest
from support.fakes import Clock, FakeRequest, Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching.policy import ALL_WEIGHTS, WEIGHTS, BatchPolicy, Priority
from neurona_server.batching.queue import Queue
from neurona_server.errors import CancelledError, QueueFullError

HIGH, NORMAL, LOW = Priority


def request(rows=1, priority=LOW, group="a"):
    return FakeRequest({"x": np.zeros((rows, 2))}, rows, group, priority=priority)


def batcher_of(max_queue_rows):
    return PuppetBatcher(BatchPolicy(max_rows=8, max_queue_rows=max_queue_rows))


def ask(batcher, rows, priority):
    return SubmittedRequest(batcher, [1.0] * rows, priority=priority)


@pytest.fixture
def queue():
    return Queue(BatchPolicy(max_rows=4, max_queue_rows=10), Clock())


def fill(queue, *requests):
    for one in requests:
        queue.put([one])
    return requests


def test_the_newest_of_the_lowest_level_give_place_whatever_their_shape(queue):
    low = fill(queue, *[request(group=group) for group in "abcab"])
    normal = fill(queue, *[request(priority=NORMAL) for _ in range(5)])
    urgent = request(3, HIGH)
    assert queue.put([urgent]) == [low[4], low[3], low[2]]
    assert queue.put([request(4, HIGH)]) == [low[1], low[0], normal[4], normal[3]]
    assert queue.rows == 10
    assert queue.take_batch().requests[0] is urgent


@pytest.mark.parametrize(("waiting", "arriving"), [(LOW, LOW), (NORMAL, NORMAL), (HIGH, HIGH)])
def test_requests_of_the_same_level_displace_nothing(queue, waiting, arriving):
    fill(queue, request(10, waiting))
    with pytest.raises(QueueFullError, match="queue full: 10 of 10 rows"):
        queue.put([request(1, arriving)])
    assert queue.rows == 10


def test_less_urgent_requests_displace_nothing(queue):
    fill(queue, request(10, NORMAL))
    with pytest.raises(QueueFullError):
        queue.put([request(1, LOW)])


def test_nothing_is_displaced_if_that_makes_too_little_room(queue):
    fill(queue, request(6, HIGH), request(4, LOW))
    with pytest.raises(QueueFullError):
        queue.put([request(5, HIGH)])
    assert queue.rows == 10


def test_bytes_are_made_room_for_as_rows_are():
    queue = Queue(BatchPolicy(max_queue_bytes=100), Clock())
    first, second = fill(queue, request(3), request(3))  # 48 bytes each
    assert queue.put([request(2, NORMAL)]) == [second]
    assert queue.nbytes == 48 + 32
    assert queue.put([request(4, HIGH)]) == [first]


def test_a_level_keeps_its_share_of_the_queue():
    """Otherwise a flood of one level would shut the levels below it out."""
    queue = Queue(BatchPolicy(max_rows=4, max_queue_rows=210), Clock())
    fill(queue, *[request() for _ in range(210)])
    for _ in range(210 - 210 * WEIGHTS[LOW] // ALL_WEIGHTS):
        assert len(queue.put([request(priority=HIGH)])) == 1
    with pytest.raises(QueueFullError):
        queue.put([request(priority=HIGH)])


def test_the_newest_give_place_as_far_as_admission_says(queue):
    low = fill(queue, *[request() for _ in range(4)])
    normal = fill(queue, request(3, NORMAL))
    assert queue.put([request(1, HIGH)], displace={LOW: 2}) == [low[3], low[2]]
    assert queue.put([request(1, HIGH)], displace={LOW: 9, NORMAL: 1}) == [low[1], low[0], *normal]
    assert queue.rows == 2


def test_rows_within_a_level_s_share_are_not_displaced_because_its_bytes_exceed_theirs():
    queue = Queue(BatchPolicy(max_rows=4, max_queue_rows=21, max_queue_bytes=1000), Clock())
    wide = FakeRequest({"x": np.zeros((1, 20))}, 1, "a", priority=LOW)
    fill(queue, wide, *[request(1, HIGH) for _ in range(20)])
    with pytest.raises(QueueFullError):  # LOW has its share of one row, and three shares of bytes
        queue.put([request(1, HIGH)])


def test_a_flood_of_high_leaves_the_other_levels_their_shares():
    batcher = batcher_of(max_queue_rows=210)
    answered = dict.fromkeys(Priority, 0)
    puppet = Puppet()
    submitted = []
    for _ in range(500):
        for level in (LOW, NORMAL, *[HIGH] * 30):
            try:
                submitted.append(ask(batcher, 1, level))
            except QueueFullError:
                continue
        batcher.step(puppet)
    for one in submitted:
        if one.results and one.answer == [2.0]:
            answered[one.priority] += 1
    total = sum(answered.values())
    for level in Priority:
        offered_share = {HIGH: 30, NORMAL: 1, LOW: 1}[level] / 32
        assert answered[level] / total >= 0.7 * min(offered_share, WEIGHTS[level] / ALL_WEIGHTS)


def test_a_displaced_request_fails_as_rejected_with_the_time_of_its_retry():
    batcher = batcher_of(max_queue_rows=8)
    batcher.cost_model.measure(lambda rows: 1.0, (1,))
    low = ask(batcher, 8, LOW)
    batcher.admission.start_batch(8)
    high = ask(batcher, 1, HIGH)
    ((outputs, error),) = low.results
    assert outputs is None
    assert isinstance(error, QueueFullError)
    assert "displaced by a more urgent one" in str(error)
    assert error.retry_after >= 1.0
    assert error.outcome == "rejected"
    assert batcher.value("displaced_requests_total") == 1
    batcher.step(Puppet())
    assert high.answer == [2.0]


def test_all_parts_of_a_request_leave_together():
    batcher = batcher_of(max_queue_rows=64)
    rest = ask(batcher, 24, LOW)
    large = ask(batcher, 40, LOW)  # five parts
    high = ask(batcher, 1, HIGH)
    assert large.answer is QueueFullError
    assert not rest.results
    assert batcher.queue.rows == 24 + 1
    assert batcher.value("displaced_requests_total") == 1
    while batcher.step(Puppet()):
        pass
    assert high.answer == [2.0]
    assert rest.answer == [2.0] * 24


def test_a_request_whose_first_part_runs_can_be_displaced():
    batcher = batcher_of(max_queue_rows=24)
    large = ask(batcher, 24, LOW)
    urgent = []
    batcher.step(Puppet(before=lambda _: urgent.append(ask(batcher, 16, HIGH))))
    assert large.answer is QueueFullError
    while batcher.step(Puppet()):
        pass
    assert urgent[0].answer == [2.0] * 16


def test_a_callback_of_a_displaced_request_may_use_the_queue():
    batcher = batcher_of(max_queue_rows=8)
    seen = []

    class Asking(FakeRequest):
        def finish(self, outputs, error):
            super().finish(outputs, error)
            seen.append(batcher.queue.oldest_age())
            seen.append(ask(batcher, 1, LOW))

    batcher.submit(Asking({"x": np.zeros((8, 1), np.float32)}, 8, (1,), priority=LOW))
    ask(batcher, 4, HIGH)
    assert seen[0] == 0.0
    batcher.step(Puppet())
    assert seen[1].answer == [2.0]


class TestObjective:
    """A request that would be late because less urgent ones have a turn before it."""

    def make(self, objective):
        """A batcher whose batches of 8 rows take 0.8 s, and that runs one."""
        policy = BatchPolicy(max_rows=8, max_queue_rows=640, latency_objective=objective)
        batcher = PuppetBatcher(policy)
        batcher.cost_model.measure(lambda rows: 0.1 * rows, (1,), budget=1e9)

        def pass_time(inputs):
            batcher.clock.now += 0.1 * len(inputs["x"])

        for _ in range(8):
            ask(batcher, 8, NORMAL)
            batcher.step(Puppet(before=pass_time))
        batcher.admission.start_batch(8)
        return batcher

    def fill(self, batcher, priority):
        """Submit requests of a level until one is refused, and return the others."""
        admitted = []
        while True:
            try:
                admitted.append(ask(batcher, 1, priority))
            except QueueFullError:
                return admitted

    def test_the_newest_give_place_to_it_except_a_share_of_what_can_be_answered(self):
        count = 0
        for objective in range(4, 15):
            batcher = self.make(objective)
            levels = {level: self.fill(batcher, level) for level in (LOW, NORMAL)}
            self.fill(batcher, HIGH)
            for level, requests in levels.items():
                displaced = [one for one in requests if one.results]
                kept = [one for one in requests if not one.results]
                assert requests == [*kept, *displaced]
                share = int(objective / 0.1 * WEIGHTS[level] / ALL_WEIGHTS)
                assert len(kept) >= min(len(requests), share)
                for one in displaced:
                    error = one.results[0][1]
                    assert isinstance(error, QueueFullError)
                    assert "displaced by a more urgent one" in str(error)
                    assert error.retry_after > 0.0
                count += len(displaced)
        assert count

    def test_requests_that_are_not_in_the_way_keep_their_places(self):
        batcher = self.make(8.0)
        low = self.fill(batcher, LOW)
        ask(batcher, 1, HIGH)
        assert not any(one.results for one in low)


def test_displacing_takes_little_time_whatever_waits():
    """Every request has a shape of its own, and many were cancelled."""
    queue = Queue(BatchPolicy(max_rows=4), Clock())
    low = fill(queue, *[request(group=number) for number in range(4096)])
    for one in low[2048:4000:2]:
        one.cancel(CancelledError())
    fill(queue, *[request(group=number) for number in range(976)])
    started = time.perf_counter()
    for _ in range(1000):
        assert len(queue.put([request(priority=HIGH)])) == 1
    assert time.perf_counter() - started < 1.0  # about 10 us each; a search of all takes 600
