"""Preferred sizes, queue policies by priority and the order of responses, as Triton defines them.

The scenarios are those that the tests of Triton's dynamic batcher and of its queues look at.
"""

import contextlib
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.fakes import Clock, FakeRequest, Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching.batcher import Batcher
from neurona_server.batching.policy import (
    BatchPolicy,
    Priority,
    QueuePolicies,
    QueuePolicy,
    QueueTimeout,
    priority_of,
)
from neurona_server.batching.queue import Queue
from neurona_server.errors import CancelledError, DeadlineExceededError, QueueFullError
from neurona_server.telemetry.metrics import Metrics

DELAY = 10.0
LENIENT = QueuePolicies(QueuePolicy(100.0))


def request(rows=1, priority=Priority.NORMAL, timeout=None, **options):
    one = FakeRequest({"x": np.zeros((rows, 2))}, rows, "group", priority=priority, **options)
    one.queue_timeout = timeout
    return one


def put(queue, *requests):
    for one in requests:
        queue.put([one])


def make_queue(clock, preferred=(), *, delay=DELAY, max_rows=8, policies=LENIENT):
    policy = BatchPolicy(
        max_rows=max_rows, max_delay=delay, preferred_rows=preferred, queue_policies=policies
    )
    return Queue(policy, clock)


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize(
    ("preferred", "rows", "batch"),
    [
        ((4,), [2, 2], 4),  # a preferred size
        ((2, 6), [1, 1, 1], 2),  # the last one may still get company
        ((2, 6), [1, 1, 1, 1, 1, 1], 6),  # the largest that can be formed
        ((2, 6), [3, 4], 3),  # with the next request it would exceed all preferred sizes
        ((2, 6), [7], 7),  # it is larger than all
        ((2, 6), [3, 1, 1], 0),  # 6 is still possible
        ((2, 6), [1], 0),
        ((2, 6), [3, 2, 1, 5], 6),
        ((), [5, 3], 8),
        ((), [5, 4], 5),  # none that waits fits
        ((), [5, 2], 0),
        ((16,), [8], 8),  # larger than a batch may be: of no use
    ],
)
def test_a_batch_that_gains_nothing_by_waiting_goes_at_once(clock, preferred, rows, batch):
    queue = make_queue(clock, preferred)
    put(queue, *[request(count) for count in rows])
    taken = queue.take_batch()
    assert (0 if taken is None else taken.rows) == batch
    rest = sum(rows) - batch
    assert queue.rows == rest
    clock.now += DELAY
    if rest:
        assert queue.take_batch().rows == rest  # whatever its size


@pytest.mark.parametrize(
    ("rows", "batches"), [([1] * 7, [4, 3]), ([1] * 9, [8, 1]), ([3], [3]), ([3, 3], [6])]
)
def test_without_a_delay_preferred_sizes_are_cut_from_what_waits(clock, rows, batches):
    queue = make_queue(clock, (4, 8), delay=0.0, max_rows=32)
    put(queue, *[request(count) for count in rows])
    assert [queue.take_batch().rows for _ in batches] == batches
    assert not queue.rows


def test_a_more_urgent_request_completes_a_preferred_size(clock):
    queue = make_queue(clock, (4, 8))
    first, second, urgent = request(2), request(1), request(2, Priority.HIGH)
    put(queue, first, second)
    assert queue.take_batch() is None
    put(queue, urgent)
    assert queue.take_batch().requests == [urgent, first]
    assert queue.take_batch() is None
    clock.now += DELAY
    assert queue.take_batch().requests == [second]


def test_a_request_that_has_waited_too_long_is_rejected_before_its_batch_is_full(clock):
    queue = make_queue(clock, (4, 8))
    late = request(1, timeout=QueueTimeout(0.1, delays=False))
    put(queue, late)
    assert queue.take_batch() is None
    clock.now += 0.2
    batch = queue.take_batch()
    assert (batch.expired, batch.requests) == ([late], [])
    put(queue, request(2), request(2))
    assert queue.take_batch().rows == 4


def test_a_request_is_not_rejected_once_it_has_left_the_queue(clock):
    batcher = PuppetBatcher(BatchPolicy(queue_policies=QueuePolicies(QueuePolicy(0.1))))
    batcher.clock.now = 5.0
    one = SubmittedRequest(batcher, [1])

    def wait(_):
        batcher.clock.now += 1.0
        batcher.check_runs()

    batcher.step(Puppet(before=wait))
    assert one.answer == [2]


def test_a_request_behind_a_long_run_is_rejected_at_its_time():
    batcher = PuppetBatcher(BatchPolicy(max_rows=1, queue_policies=QueuePolicies(QueuePolicy(0.1))))
    first, second = SubmittedRequest(batcher, [1]), SubmittedRequest(batcher, [2])
    rejected = []

    def wait(_):
        batcher.clock.now += 0.2
        batcher.check_runs()
        rejected.append(second.answer)

    batcher.step(Puppet(before=wait))
    assert (first.answer, rejected) == ([2], [DeadlineExceededError])


def test_a_rejected_request_is_returned_even_if_no_group_is_accepted(clock):
    queue = make_queue(clock, delay=0.0)
    late = request(1, timeout=QueueTimeout(0.1, delays=False))
    put(queue, late)
    clock.now += 0.2
    put(queue, request(1))
    assert queue.take_batch(lambda rows, group: False).expired == [late]
    assert queue.take_batch(lambda rows, group: False) is None
    assert queue.take_batch().rows == 1


def test_a_request_that_has_waited_too_long_is_delayed(clock):
    queue = make_queue(clock, (4, 8))
    delayed = request(1, timeout=QueueTimeout(0.1, delays=True))
    put(queue, delayed)
    clock.now += 0.2
    assert not queue.take_batch().requests
    others = [request(2), request(2)]
    put(queue, *others)
    assert queue.take_batch().requests == others
    assert queue.take_batch() is None
    clock.now += DELAY
    assert queue.take_batch().requests == [delayed]


def test_policies_of_two_priorities(clock):
    """Batches: both of priority 1 in time, then the delayed one with one of priority 2."""
    queue = make_queue(clock, (4, 8, 32), max_rows=32)
    long = QueueTimeout(11.0, delays=True)
    one = [
        request(2, Priority.HIGH, long),
        request(1, Priority.HIGH, QueueTimeout(1.0, delays=True)),
        request(2, Priority.HIGH, long),
    ]
    two = [
        request(2, timeout=QueueTimeout(2.0, delays=False)),
        request(3, timeout=QueueTimeout(11.0, delays=False)),
        request(6, timeout=QueueTimeout(11.0, delays=False)),
    ]
    for waiting in (*one, *two):
        put(queue, waiting)
        assert queue.take_batch() is None
        clock.now += 0.2
    assert queue.take_batch().requests == [one[0], one[2]]
    assert queue.take_batch() is None
    clock.now += 1.5  # 2.7
    batch = queue.take_batch()
    assert (batch.expired, batch.requests) == ([two[0]], [one[1], two[1]])
    assert queue.take_batch() is None
    clock.now += 8.5  # 11.2
    assert queue.take_batch().requests == [two[2]]


def test_the_requests_of_each_priority_are_limited(clock):
    policies = QueuePolicies(
        QueuePolicy(max_requests=2), {1: QueuePolicy(max_requests=1)}, count=3, default_number=2
    )
    queue = make_queue(clock, policies=policies)
    put(queue, request(4), request(4), request(3, Priority.HIGH), request(1, Priority.LOW))
    for priority, limit in ((Priority.NORMAL, 2), (Priority.HIGH, 1)):
        with pytest.raises(QueueFullError, match=f"maximum queue size: {limit} requests"):
            put(queue, request(1, priority))
    put(queue, request(1, Priority.LOW))


def test_the_limit_counts_what_callers_have_sent():
    """Not the parts of a large request, but each of those that were coalesced."""
    policies = QueuePolicies(QueuePolicy(max_requests=3))
    batcher = PuppetBatcher(BatchPolicy(max_rows=2, queue_policies=policies))
    large = SubmittedRequest(batcher, range(10))
    assert batcher.queue.request_count == 1
    two = CoalescedPair(batcher, [20, 21])
    assert batcher.queue.request_count == 3
    with pytest.raises(QueueFullError, match="maximum queue size: 3 requests"):
        SubmittedRequest(batcher, [30])
    large.cancel(CancelledError("gone"))
    assert batcher.queue.request_count == 2
    with pytest.raises(QueueFullError, match="maximum queue size: 2 requests"):
        CoalescedPair(batcher, [22, 23])
    last = SubmittedRequest(batcher, [31])
    batcher.step(Puppet())
    batcher.step(Puppet())
    assert (two.answer, last.answer, batcher.queue.request_count) == ([40, 42], [62], 0)


@pytest.mark.parametrize(
    ("number", "seconds", "expected"),
    [
        (0, np.inf, QueueTimeout(3.0, delays=True)),  # the policy of the default
        (9, np.inf, QueueTimeout(3.0, delays=True)),  # and of a number that does not exist
        (1, 0.5, QueueTimeout(2.0, delays=False)),  # may not be overridden
        (2, 0.5, QueueTimeout(0.5, delays=False)),
        (2, 5.0, QueueTimeout(1.0, delays=False)),  # never to more
        (3, np.inf, QueueTimeout(3.0, delays=True)),
        (4, 0.5, None),
    ],
)
def test_the_timeout_of_a_request_depends_on_its_priority(number, seconds, expected):
    policies = QueuePolicies(
        QueuePolicy(3.0, delays=True),
        {1: QueuePolicy(2.0), 2: QueuePolicy(1.0, allow_shorter=True), 4: QueuePolicy()},
        count=4,
        default_number=3,
    )
    assert policies.timeout(policies.number(number), seconds) == expected


def test_levels_stand_for_numbers():
    assert [priority_of(number) for number in (0, 1, 2, 3, 2**32)] == [
        Priority.NORMAL,
        Priority.HIGH,
        Priority.NORMAL,
        Priority.LOW,
        Priority.LOW,
    ]
    policies = QueuePolicies(QueuePolicy(1.0), {5: QueuePolicy(5.0)}, count=6, default_number=5)
    assert policies.level_policy(Priority.LOW) == QueuePolicy(5.0)
    assert policies.level_policy(Priority.HIGH) == QueuePolicy(1.0)


class TestPreservedOrder:
    @pytest.fixture
    def batcher(self):
        return PuppetBatcher(BatchPolicy(max_rows=8, preserve_order=True, inline=True))

    def submit_mixed(self, batcher):
        """Submit requests of which the first and the last run together."""
        return [
            SubmittedRequest(batcher, [1]),
            SubmittedRequest(batcher, [2], columns=2),
            SubmittedRequest(batcher, [3]),
        ]

    def test_responses_wait_for_those_before(self, batcher):
        first, second, third = self.submit_mixed(batcher)
        batcher.step(Puppet())
        assert (first.answer, second.results, third.results) == ([2], [], [])
        batcher.step(Puppet())
        assert (second.answer, third.answer) == ([4], [6])

    def test_errors_keep_the_order_too(self, batcher):
        first, second, third = self.submit_mixed(batcher)

        def fail(_):
            raise RuntimeError

        batcher.step(Puppet())
        batcher.step(Puppet(before=fail))
        assert third.answer == [6]
        assert first.answer == [2]
        assert issubclass(second.answer, Exception)

    def test_nobody_waits_for_a_cancelled_request(self, batcher):
        _, second, third = self.submit_mixed(batcher)
        batcher.step(Puppet())
        second.cancel(CancelledError("gone"))
        assert (second.answer, third.answer) == (CancelledError, [6])

    def test_nobody_waits_for_a_rejected_request(self):
        batcher = PuppetBatcher(BatchPolicy(max_queue_rows=1, preserve_order=True))
        first = SubmittedRequest(batcher, [1])
        with pytest.raises(QueueFullError):
            SubmittedRequest(batcher, [2])
        batcher.step(Puppet())
        third = SubmittedRequest(batcher, [3])
        batcher.step(Puppet())
        assert (first.answer, third.answer) == ([2], [6])

    def test_a_request_may_finish_before_its_submission_returns(self, batcher):
        put, instance = batcher.queue.put, Puppet()

        def put_and_run(requests, **options):
            displaced = put(requests, **options)
            batcher.process(batcher.queue.take_batch(), instance)
            return displaced

        first = SubmittedRequest(batcher, [1], priority=Priority.LOW)
        batcher.queue.put = put_and_run  # as an instance does that is faster than the caller
        second = SubmittedRequest(batcher, [2], columns=2, priority=Priority.HIGH)
        batcher.queue.put = put
        assert (first.results, second.results) == ([], [])
        batcher.step(Puppet())
        assert (first.answer, second.answer) == ([2], [4])

    def test_what_replaces_a_request_keeps_its_turn(self, batcher):
        """Halves of coalesced requests, after a run that failed."""

        def fail(inputs):
            if 3.0 in inputs["x"]:
                raise RuntimeError

        first = SubmittedRequest(batcher, [1], columns=2)
        both = CoalescedPair(batcher, [2, 3], priority=Priority.HIGH)
        last = SubmittedRequest(batcher, [4], columns=2)
        batcher.step(Puppet(before=fail))
        assert [one.results for one in (first, *both.halves, last)] == [[], [], [], []]
        batcher.step(Puppet())
        assert (first.answer, both.halves[0].answer, last.answer) == ([2], [4], [8])
        assert issubclass(both.halves[1].answer, Exception)
        assert both.results == []

    def test_nobody_waits_for_half_a_request_that_is_cancelled(self, batcher):
        both = CoalescedPair(batcher, [2, 3], cancels_second_half=True)
        last = SubmittedRequest(batcher, [4], columns=2)

        def fail(inputs):
            if len(inputs["x"]) == 2:
                raise RuntimeError

        batcher.step(Puppet(before=fail))
        batcher.step(Puppet())
        assert [one.answer for one in both.halves] == [[4], CancelledError]
        assert last.answer == [8]

    def test_a_large_request_keeps_its_turn(self, batcher):
        large, small = SubmittedRequest(batcher, range(12)), SubmittedRequest(batcher, [1])
        batcher.step(Puppet())
        assert (large.results, small.results) == ([], [])
        batcher.step(Puppet())
        assert (large.answer, small.answer) == ([2 * i for i in range(12)], [2])


class CoalescedPair(SubmittedRequest):
    """Two requests of one row that run as one, or each for itself if that fails."""

    def __init__(self, batcher, values, *, cancels_second_half=False, **options):
        self.halves = []
        self.cancels_second_half = cancels_second_half
        self.count = 2
        super().__init__(batcher, values, **options)

    def halve(self):
        if self.rows == 1 or not self.withdraw():
            return []
        self.halves = [
            Half({"x": self.inputs["x"][row : row + 1]}, 1, self.group) for row in (0, 1)
        ]
        if self.cancels_second_half:
            self.halves[1].cancel(CancelledError("gone"))
        return self.halves


class Half(FakeRequest):
    answer = SubmittedRequest.answer


class NumberedRequest(FakeRequest):
    """Writes its number to a log when it is finished."""

    def __init__(self, log, number, columns, **options):
        super().__init__({"x": np.full((1, columns), number, float)}, 1, (columns,), **options)
        self.log = log
        self.number = number

    def finish(self, outputs, error):
        super().finish(outputs, error)
        if not isinstance(error, CancelledError):
            self.log.append(self.number)


def test_under_load_every_request_is_finished_once_and_in_order():
    policies = QueuePolicies(
        QueuePolicy(0.004, max_requests=40), {1: QueuePolicy(0.002, True)}, 3, 2
    )
    policy = BatchPolicy(
        8, 200, max_delay=0.002, preferred_rows=(4,), queue_policies=policies, preserve_order=True
    )
    metrics = Metrics(CollectorRegistry()).for_version("puppet", 1)
    batcher = Batcher("puppet/1", policy, metrics, [("cpu", Puppet())] * 3)
    batcher.start()
    random, log, admitted = np.random.default_rng(1), [], []
    for number in range(600):
        priority, columns = Priority(random.integers(3)), int(random.integers(1, 4))
        one = NumberedRequest(log, number, columns, priority=priority)
        with contextlib.suppress(QueueFullError):
            batcher.submit(one)
            admitted.append(one)
        if number % 20 == 0:
            one.cancel(CancelledError("gone"))
        if number % 50 == 0:
            batcher.check_runs()
    batcher.close()
    assert batcher.join(time.monotonic() + 30)
    assert log == sorted(log)
    for one in admitted:
        ((outputs, error),) = one.results
        assert isinstance(error, (CancelledError, DeadlineExceededError)) or (
            outputs[0][0, 0] == 2 * one.number
        )
