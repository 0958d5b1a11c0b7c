"""What the queue does costs the same with a hundred groups and with a thousand.

Executed bytecode is counted, not time: a busy machine changes nothing.
"""

import itertools
import sys

import numpy as np
import pytest
from support.fakes import Clock, FakeRequest

from neurona_server.batching.policy import (
    BatchPolicy,
    Priority,
    QueuePolicies,
    QueuePolicy,
    QueueTimeout,
)
from neurona_server.batching.queue import Queue
from neurona_server.batching.request_heap import RequestHeap
from neurona_server.sequences.cellular import MergeOfAllLengths
from neurona_server.sequences.merging import LengthMerger
from neurona_server.sequences.ragged import LengthGroup

FEW, MANY = 100, 1000
INPUTS = {"x": np.zeros((1, 1))}
ROUNDS = 5


def count_opcodes(function):
    """Return the number of instructions that Python executes in a call."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(previous)
    return count


def cost(rows, group):
    steps = group.steps if isinstance(group, LengthGroup) else 1
    return 50e-6 + steps * (5e-6 + 0.5e-6 * rows)


class Scenario:
    """A queue in which as many requests wait as there are groups, each with its own."""

    def __init__(self, groups, merge=None, *, timeouts=None, is_rejected=False, **policy):
        if timeouts is not None:
            policy["queue_policies"] = QueuePolicies(QueuePolicy(1e6, timeouts))
        self.timeouts = timeouts
        self.accept = (lambda *_: False) if is_rejected else None
        self.clock = Clock()
        self.queue = Queue(BatchPolicy(max_rows=8, **policy), self.clock, cost)
        if merge is not None:
            self.queue.merge = merge()
        self.numbers = itertools.count(MANY - groups + 1)
        for _ in range(groups):
            self.put()
        self.round()  # what is looked at for the first time costs more

    def put(self, priority=Priority.NORMAL):
        number = next(self.numbers)
        request = FakeRequest(
            INPUTS, 1, LengthGroup((), 100 + number), self.clock.now + 1e9, priority
        )
        if self.timeouts is not None:
            seconds = 15.0 if number % 4 and number > MANY else 1e6
            request.queue_timeout = QueueTimeout(seconds, self.timeouts)
        self.clock.now += 1e-3
        self.queue.put([request])
        return request

    def round(self):
        queue = self.queue
        queue.max_batch_rows = 12 - queue.max_batch_rows  # 8 and 4 in turns
        requests = [self.put(priority) for priority in (*Priority, Priority.LOW)]
        queue.work_ahead(Priority.NORMAL, requests[0].group, 1)
        queue.backlog_seconds()
        queue.oldest_age()
        queue.discard(requests[1])
        queue.take_batch(self.accept)
        queue.remove_rejectable()
        self.clock.now += 10.0  # no batch waits any longer
        batch = queue.take_batch()
        for _ in range(len(batch.requests) + len(batch.expired) - 3):
            self.put()


SCENARIOS = {
    "plain": {},
    "delay": {"max_delay": 5.0},
    "preferred sizes": {"preferred_rows": (2, 4)},
    "delay and preferred sizes": {"preferred_rows": (2, 4), "max_delay": 5.0},
    "rejected after a time": {"timeouts": False},
    "delayed after a time": {"timeouts": True, "max_delay": 5.0},
    "no group runs on the transport's thread": {"is_rejected": True},
    "lengths share batches": {"merge": lambda: LengthMerger(cost)},
    "lengths share batches that wait": {"merge": lambda: LengthMerger(cost), "max_delay": 5.0},
    "lengths share no batch": {"merge": lambda: LengthMerger(lambda *_: 1.0, batch_seconds=-1.0)},
    "all lengths share batches": {"merge": MergeOfAllLengths},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_operation_costs_more_with_more_groups(name):
    counts = []
    for groups in (FEW, MANY):
        scenario = Scenario(groups, **SCENARIOS[name])
        counts.append(
            count_opcodes(lambda one=scenario: [one.round() for _ in range(ROUNDS)]) / ROUNDS
        )
    few, many = counts
    assert many < 1.1 * few, counts


def test_a_heap_gives_the_next_request_and_keeps_none_that_has_left():
    random = np.random.default_rng(1)
    heap, times = RequestHeap(), {}
    for _ in range(2000):
        if times and random.random() < 0.45:
            request = list(times)[random.integers(len(times))]
            heap.discard(request)
            del times[request]
        else:
            request = FakeRequest(INPUTS, 1, "a")
            times[request] = float(random.integers(100))
            heap.add(request, times[request])
        assert heap.first == min(times.values(), default=np.inf)
        assert len(heap._entries) <= 2 * len(heap) + 65
    due = list(heap.pop_until(50.0))
    assert [times[one] for one in due] == sorted(time for time in times.values() if time <= 50.0)
    assert len(heap) == len(times) - len(due)
