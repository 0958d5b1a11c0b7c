import threading

import numpy as np
import pytest

from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Request
from neurona_server.errors import CancelledError, InvalidError, QueueFullError, StoppingError


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def request(rows=1, group="a", **options):
    return Request({"x": np.zeros((rows, 2))}, rows, group, lambda *_: None, **options)


def put(queue, *requests):
    for one in requests:
        queue.put(one, retry_after=0.0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return Queue(BatchPolicy(max_rows=4, max_queue_rows=10), clock)


def test_what_waits_is_taken_together_in_order(queue):
    first, second = request(), request(2)
    put(queue, first, second)
    assert repr(queue) == "<Queue open: 2 requests, 3 rows>"
    assert queue.take().batch == [first, second]
    assert repr(queue) == "<Queue open: 0 requests, 0 rows>"


def test_a_batch_has_max_rows_at_the_most(queue):
    requests = [request(2), request(1), request(2)]
    put(queue, *requests)
    assert queue.take().batch == requests[:2]
    assert queue.take().batch == requests[2:]


def test_a_request_with_more_than_max_rows_goes_alone(queue):
    small, large, other = request(1), request(7), request(1)
    put(queue, small, large, other)
    assert [queue.take().batch for _ in range(3)] == [[small], [large], [other]]


def test_another_shape_does_not_close_a_batch_and_the_oldest_leads(queue, clock):
    requests = []
    for group in "abab":
        clock.now += 1
        requests.append(request(group=group))
        put(queue, requests[-1])
    assert queue.take().batch == [requests[0], requests[2]]
    assert queue.take().batch == [requests[1], requests[3]]


def test_a_full_queue_refuses_at_once_with_a_hint(queue):
    put(queue, request(8))
    with pytest.raises(QueueFullError, match="8 of 10 rows wait, no room for 3") as caught:
        queue.put(request(3), retry_after=0.25)
    assert caught.value.retry_after == 0.25
    put(queue, request(2))


def test_a_request_that_never_fits_is_invalid(queue):
    with pytest.raises(InvalidError, match="11 rows; expected at most 10"):
        put(queue, request(11))


def test_expired_and_cancelled_requests_fall_out_when_the_batch_is_cut(queue, clock):
    expired, cancelled, alive = request(deadline=clock.now + 1), request(), request()
    put(queue, expired, cancelled, alive)
    cancelled.fail(CancelledError())
    clock.now += 1
    cut = queue.take()
    assert (cut.batch, cut.expired, cut.cancelled) == ([alive], [expired], [cancelled])
    assert queue.rows == 0


def test_age_is_that_of_the_oldest(queue, clock):
    assert queue.oldest_age() == 0.0
    put(queue, request(group="a"))
    clock.now += 2
    put(queue, request(group="b"))
    clock.now += 3
    assert queue.oldest_age() == 5.0


def test_a_closed_queue_refuses_but_gives_what_it_has(queue):
    waiting = request()
    put(queue, waiting)
    queue.close()
    with pytest.raises(StoppingError):
        put(queue, request())
    assert queue.take().batch == [waiting]
    assert queue.take() is None


def test_take_waits_for_work_and_close_ends_the_wait(queue):
    taken = []
    thread = threading.Thread(target=lambda: taken.extend([queue.take(), queue.take()]))
    thread.start()
    put(queue, request())
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(taken[0].batch) == 1
    assert taken[1] is None


def test_clear_takes_all_out(queue):
    requests = [request(group="a"), request(group="b")]
    put(queue, *requests)
    assert queue.clear() == requests
    assert queue.rows == 0


@pytest.mark.parametrize("wrong", [{"max_rows": 0}, {"max_queue_rows": 0}])
def test_a_policy_without_room_is_refused(wrong):
    with pytest.raises(ValueError, match=r"max_\w+ is 0; expected at least 1"):
        BatchPolicy(**wrong)
