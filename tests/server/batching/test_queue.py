import threading
import time

import numpy as np
import pytest
from support.fakes import Clock, FakeRequest

from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.queue import Queue
from neurona_server.errors import (
    CancelledError,
    InvalidArgumentError,
    QueueFullError,
    UnavailableError,
)


def request(rows=1, group="a", **options):
    return FakeRequest({"x": np.zeros((rows, 2))}, rows, group, **options)


def put(queue, *requests):
    for one in requests:
        queue.put([one])


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return Queue(BatchPolicy(max_rows=4, max_queue_rows=10), clock)


def test_waiting_requests_are_taken_together_in_order(queue):
    first, second = request(), request(2)
    put(queue, first, second)
    assert repr(queue) == "<Queue open: 2 requests, 3 rows, 48 bytes>"
    assert queue.take_batch().requests == [first, second]
    assert repr(queue) == "<Queue open: 0 requests, 0 rows, 0 bytes>"


def test_a_batch_has_max_rows_at_the_most(queue):
    requests = [request(2), request(1), request(2)]
    put(queue, *requests)
    assert queue.take_batch().requests == requests[:2]
    assert queue.take_batch().requests == requests[2:]


def test_a_request_with_more_than_max_rows_is_a_batch_of_its_own(queue):
    small, large, other = request(1), request(7), request(1)
    put(queue, small, large, other)
    assert [queue.take_batch().requests for _ in range(3)] == [[small], [large], [other]]


def test_another_shape_does_not_close_a_batch_and_the_oldest_leads(queue, clock):
    requests = []
    for group in "abab":
        clock.now += 1
        requests.append(request(group=group))
        put(queue, requests[-1])
    assert queue.take_batch().requests == [requests[0], requests[2]]
    assert queue.take_batch().requests == [requests[1], requests[3]]


def test_a_full_queue_rejects_immediately(queue):
    put(queue, request(8))
    with pytest.raises(QueueFullError, match="8 of 10 rows .* taken, no room for 3 rows"):
        queue.put([request(3)])
    put(queue, request(2))


def test_a_request_that_never_fits_is_invalid(queue):
    with pytest.raises(InvalidArgumentError, match=r"11 rows \(expected at most 10"):
        put(queue, request(11))


def test_cancelled_requests_leave_at_once_and_expired_ones_when_a_batch_is_taken(queue, clock):
    expired, cancelled, alive = request(deadline=clock.now + 1), request(), request()
    put(queue, expired, cancelled, alive)
    cancelled.cancel(CancelledError())
    assert queue.rows == 2
    clock.now += 1
    batch = queue.take_batch()
    assert (batch.requests, batch.expired) == ([alive], [expired])
    assert queue.rows == 0


def test_age_is_that_of_the_oldest(queue, clock):
    assert queue.oldest_age() == 0.0
    put(queue, request(group="a"))
    clock.now += 2
    put(queue, request(group="b"))
    clock.now += 3
    assert queue.oldest_age() == 5.0


def test_a_closed_queue_rejects_but_can_be_drained(queue):
    waiting = request()
    put(queue, waiting)
    queue.close()
    with pytest.raises(UnavailableError):
        put(queue, request())
    assert queue.take_batch().requests == [waiting]
    assert queue.take_batch() is None


def test_wait_waits_for_work_and_close_ends_the_wait(queue):
    taken = []

    def wait():
        while queue.wait():
            taken.append(len(queue.take_batch().requests))

    thread = threading.Thread(target=wait)
    thread.start()
    put(queue, request())
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert taken == [1]


def test_clear_takes_all_out(queue):
    requests = [request(group="a"), request(group="b")]
    put(queue, *requests)
    assert queue.clear() == requests
    assert queue.rows == 0


@pytest.mark.parametrize("wrong", [{"max_rows": 0}, {"max_queue_rows": 0}])
def test_a_policy_without_room_is_rejected(wrong):
    with pytest.raises(ValueError, match=r"max_\w+ is 0 \(expected at least 1"):
        BatchPolicy(**wrong)


def test_bytes_are_bounded_too(clock):
    queue = Queue(BatchPolicy(max_queue_bytes=100), clock)
    put(queue, request(2), request(2))  # 32 bytes each
    with pytest.raises(QueueFullError, match="64 of 100 bytes are taken, no room for 3 rows of 48"):
        put(queue, request(3))
    with pytest.raises(InvalidArgumentError, match=r"112 bytes \(expected at most 100"):
        put(queue, request(7))


def test_several_are_admitted_together_or_not_at_all(queue):
    put(queue, request(8))
    with pytest.raises(QueueFullError):
        queue.put([request(1), request(2)])
    assert queue.rows == 8


def test_each_level_gets_its_share_and_the_lowest_moves(clock):
    queue = Queue(BatchPolicy(max_rows=1), clock)
    for level in Priority:
        put(queue, *[request(group=level, priority=level) for _ in range(100)])
    taken = [queue.take_batch().requests[0].priority for _ in range(84)]
    counts = [taken.count(level) for level in Priority]
    assert counts == [64, 16, 4]


def test_an_empty_priority_accumulates_no_turns(clock):
    queue = Queue(BatchPolicy(max_rows=1), clock)
    put(queue, *[request(group=1, priority=Priority.HIGH) for _ in range(200)])
    for _ in range(160):
        queue.take_batch()
    put(queue, *[request(group=2, priority=Priority.LOW) for _ in range(40)])
    taken = [queue.take_batch().requests[0].priority for _ in range(34)]
    assert taken.count(Priority.LOW) == 2


@pytest.mark.parametrize("alone", list(Priority))
def test_a_level_that_was_alone_for_long_owes_nothing(clock, alone):
    queue = Queue(BatchPolicy(max_rows=1), clock)
    for _ in range(10_000):
        put(queue, request(priority=alone))
        queue.take_batch()
    for level in Priority:
        put(queue, *[request(group=level, priority=level) for _ in range(100)])
    taken = [queue.take_batch().requests[0].priority for _ in range(84)]
    counts = [taken.count(level) for level in Priority]
    assert abs(counts[0] - 64) <= 2
    assert abs(counts[1] - 16) <= 2
    assert abs(counts[2] - 4) <= 2


def test_room_in_a_batch_is_filled_from_other_levels(queue):
    low, high = request(priority=Priority.LOW), request(priority=Priority.HIGH)
    other = request(group="b", priority=Priority.HIGH)
    put(queue, low, high, other)
    assert queue.take_batch().requests == [high, low]
    assert queue.take_batch().requests == [other]


def test_a_batch_may_wait_to_fill_counted_from_the_oldest(clock):
    queue = Queue(BatchPolicy(max_rows=4, max_delay=1.0), clock)
    put(queue, request())
    clock.now += 0.6
    put(queue, request())
    assert queue.take_batch() is None
    clock.now += 0.4
    assert len(queue.take_batch().requests) == 2
    put(queue, request())
    queue.close()
    assert len(queue.take_batch().requests) == 1  # nothing more can come


def test_a_full_batch_does_not_wait_and_other_shapes_do_not_fill_it(clock):
    queue = Queue(BatchPolicy(max_rows=4, max_delay=1.0), clock)
    lone, full = request(group="a"), [request(group="b") for _ in range(4)]
    put(queue, lone, *full[:3])
    assert queue.take_batch() is None  # four rows wait, but not of one shape
    put(queue, full[3])
    assert queue.take_batch().requests == full
    assert queue.take_batch() is None
    clock.now += 1
    assert queue.take_batch().requests == [lone]


def test_a_batch_does_not_wait_past_the_deadlines_of_its_requests(clock):
    queue = Queue(BatchPolicy(max_rows=4, max_delay=1.0), clock, lambda rows, group: 0.2)
    put(queue, request(deadline=clock.now + 0.5))
    assert queue.take_batch() is None
    clock.now += 0.3
    assert len(queue.take_batch().requests) == 1


def test_the_work_ahead_has_more_urgent_rows_and_the_turns_of_others(clock):
    queue = Queue(BatchPolicy(max_rows=1), clock, lambda rows, group: 1.0)

    def ahead(level):
        work = queue.work_ahead(level, "a", 1)
        return work.seconds + sum(min(one.seconds, one.max_rows) for one in work.others)

    put(queue, *[request(priority=Priority.LOW) for _ in range(100)])
    assert [ahead(level) for level in Priority] == [0.0, 0.0, 100.0]
    put(queue, *[request(priority=Priority.NORMAL) for _ in range(8)])
    assert [ahead(level) for level in Priority] == [0.0, 8.0 + 2.0, 108.0]
    assert queue.backlog_seconds() == 108.0


def test_requests_put_without_notification_wait_for_the_next_take(queue):
    woken = threading.Event()
    thread = threading.Thread(target=lambda: queue.wait() and woken.set())
    thread.start()
    time.sleep(0.05)  # it waits
    queue.put([request()], notify=False)
    assert not woken.wait(0.2)
    queue.notify()
    assert woken.wait(10)
    thread.join()


def test_discarding_a_request_again_or_after_its_batch_is_taken_does_nothing(queue):
    first, second = request(), request()
    put(queue, first, second)
    queue.discard(first)
    queue.discard(first)
    assert queue.rows == 1
    queue.take_batch()
    queue.discard(second)
    assert queue.rows == 0


class TestChoiceOfRows:
    """The rows of a batch are decided by what the model's costs say."""

    @pytest.fixture
    def queue(self, clock):
        queue = Queue(BatchPolicy(max_rows=8), clock)
        queue.choose_rows = lambda group, rows, oldest: {1: 0, 5: 3}.get(rows, rows)
        queue.choice_wait = 0.5
        return queue

    def test_a_batch_has_the_rows_that_are_chosen(self, queue):
        put(queue, *[request() for _ in range(5)])
        assert [queue.take_batch().rows for _ in range(2)] == [3, 2]

    def test_a_batch_waits_for_more_but_not_for_long(self, queue, clock):
        put(queue, request())
        assert queue.take_batch() is None
        clock.now += 0.3
        assert queue.take_batch() is None
        put(queue, request())
        assert queue.take_batch().rows == 2
        put(queue, request())
        clock.now += 0.3
        assert queue.take_batch() is None  # it counts from the first time after a batch
        clock.now += 0.5
        assert queue.take_batch().rows == 1

    def test_nothing_waits_in_a_closed_queue_or_on_the_transport_s_thread(self, queue):
        put(queue, request())
        assert queue.take_batch(lambda *_: True).rows == 1
        put(queue, request())
        queue.close()
        assert queue.wait()
        assert queue.take_batch().rows == 1

    def test_a_waiting_thread_takes_the_batch_when_the_wait_is_over(self):
        queue = Queue(BatchPolicy(max_rows=8))
        queue.choose_rows, queue.choice_wait = lambda *_: 0, 0.001
        put(queue, request())
        assert queue.wait()
        assert queue.take_batch().rows == 1

    def test_what_the_operator_has_decided_counts_more(self, clock):
        queue = Queue(BatchPolicy(max_rows=8, max_delay=1.0), clock)
        queue.choose_rows = lambda *_: 1
        put(queue, request(), request())
        clock.now += 1.0
        assert queue.take_batch().rows == 2

    def test_the_choice_knows_the_request_that_leads(self, queue, clock):
        asked = []
        queue.choose_rows = lambda *question: asked.append(question) or 1
        oldest, urgent = request(group="b"), request(priority=Priority.HIGH)
        put(queue, oldest, urgent, request())
        assert [queue.take_batch().requests for _ in range(2)] == [[urgent], [oldest]]
        assert asked == [("a", 2, urgent)] * 2 + [("b", 1, oldest)] * 2
