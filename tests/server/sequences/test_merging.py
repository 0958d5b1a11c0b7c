"""Which lengths share a batch: the decision, and the queue that follows it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fakes import Clock, FakeRequest

from neurona_server.batching.backlog import MergedBacklog
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.queue import Queue
from neurona_server.sequences.merging import EXPLORED_RUNS, LIMIT_READS, LengthMerger, RowLimits
from neurona_server.sequences.ragged import LengthGroup, bucket_end

BASE = ((3,),)


def cost(rows, group, *, fixed=50e-6, step=5e-6, row=0.5e-6):
    return fixed + group.steps * (step + row * rows)


def group(steps):
    return LengthGroup(BASE, steps)


def merge(leader, rows, limit=64, **costs):
    merger = LengthMerger(lambda count, one: cost(count, one, **costs), batch_seconds=0.0)
    return choose(merger, group(leader), {group(one): count for one, count in rows.items()}, limit)


def choose(merger, leader, rows, limit=64):
    waiting = MergedBacklog(merger._predict, limit, merger)
    for one, count in rows.items():
        waiting.add(one, count)
    return merger.choose(leader, waiting, limit)


def request(steps, rows=1, **options):
    return FakeRequest(
        {"x": np.zeros((rows, steps, 3), np.float32)}, rows, group(bucket_end(steps)), **options
    )


def merged_queue(clock, **policy):
    queue = Queue(BatchPolicy(**{"max_rows": 8, "max_queue_rows": 100, **policy}), clock, cost)
    queue.merge = LengthMerger(cost)
    return queue


def put(queue, *requests):
    for one in requests:
        queue.put([one])


def test_similar_lengths_share_a_batch():
    assert merge(10, {8: 3, 10: 2, 11: 3}) == [group(10), group(11), group(8)]


def test_a_group_that_fills_the_batch_has_no_padding():
    assert merge(10, {8: 30, 10: 64, 11: 30}) == (group(10),)


def test_groups_are_added_until_the_batch_is_full():
    groups = merge(10, {10: 2, 11: 30, 13: 30, 16: 30, 19: 30}, limit=64, row=0.01e-6)
    assert groups == [group(10), group(11), group(13)]


def test_a_short_sequence_does_not_wait_for_a_long_one():
    assert merge(10, {10: 1, 400: 1}) == [group(10)]
    assert merge(10, {10: 4, 400: 8}) == [group(10)]


def test_lengths_do_not_matter_where_only_the_call_costs():
    groups = merge(10, {10: 1, 100: 1, 400: 1}, fixed=1.0, step=1e-9, row=1e-9)
    assert {one.steps for one in groups} == {10, 100, 400}


def test_nothing_is_padded_where_rows_cost_as_much_as_runs():
    assert merge(10, {8: 3, 10: 2, 11: 3}, fixed=0, step=0) == [group(10)]


def test_more_is_padded_when_more_waits():
    lengths = {20: 4, 38: 2}
    alone = merge(20, lengths)
    busy = merge(20, {**lengths, 400: 60})
    assert alone == [group(20)]
    assert busy[:2] == [group(20), group(38)]


def test_other_sizes_never_share_a_batch():
    merger = LengthMerger(cost)
    other = LengthGroup(((5,),), 10)
    odd = ((10, 3), (12, 3))
    assert choose(merger, group(10), {group(10): 1, other: 1, odd: 1}) == (group(10),)
    assert choose(merger, odd, {group(10): 1, odd: 1}) == (odd,)


def test_a_batch_costs_something_beside_its_run():
    def run_cost(rows, one):
        return cost(rows, one, fixed=0, step=0, row=1e-6)

    rows = {group(steps): 1 for steps in (9, 10)}
    assert choose(LengthMerger(run_cost, batch_seconds=0.0), group(9), rows) == [group(9)]
    assert choose(LengthMerger(run_cost), group(9), rows) == [group(9), group(10)]


def test_long_sequences_share_no_batch_that_is_slower_than_two():
    def with_cache(rows, one):
        return cost(rows, one) * (1.5 if rows * one.steps > 5000 else 1.0)

    merger = LengthMerger(with_cache, (1, 2, 4, 8, 16, 32, 64))
    assert merger.limit_rows(group(20), 64) == 64
    assert merger.limit_rows(group(150), 64) == 32
    queue = Queue(BatchPolicy(max_rows=64, max_queue_rows=100), Clock(), with_cache)
    queue.merge, queue.limit_rows = merger, merger.limit_rows
    put(queue, *[request(150) for _ in range(64)])
    assert [queue.take_batch().rows, queue.take_batch().rows] == [32, 32]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(1, 500).map(bucket_end), st.integers(1, 90), min_size=1),
    st.integers(1, 128),
    st.data(),
)
def test_a_merge_pays_for_all_that_wait(rows, limit, data):
    leader = data.draw(st.sampled_from(sorted(rows)))
    groups = merge(leader, rows, limit)
    assert groups[0] == group(leader)
    assert len(set(groups)) == len(groups)
    assert set(groups) <= {group(steps) for steps in rows}
    counts = []
    for one in groups:
        counts.append(min(rows[one.steps], limit - sum(counts)))
    assert all(count > 0 for count in counts[1:])
    if len(groups) > 1:  # the joint run takes less than what the others then do not take
        joint = cost(sum(counts), max(groups, key=lambda one: one.steps))
        saved = [
            cost(count, one) - (cost(count - taken, one) if count > taken else 0)
            if (count := rows[one.steps]) <= limit
            else taken * cost(limit, one) / limit
            for one, taken in zip(groups, counts, strict=True)
        ]
        assert joint < sum(saved)


class TestQueue:
    def test_fills_a_batch_with_other_lengths_and_the_oldest_leads(self):
        clock = Clock()
        queue = merged_queue(clock)
        requests = [request(steps) for steps in (20, 10, 21, 11, 19)]
        for one in requests:
            clock.now += 1
            put(queue, one)
        batch = queue.take_batch()
        assert batch.requests[0] is requests[0]
        assert {*batch.requests} >= {requests[0], requests[2], requests[4]}
        rest = queue.take_batch()
        taken = {*batch.requests} | ({*rest.requests} if rest else set())
        assert taken == {*requests}
        assert repr(queue) == "<Queue open: 0 requests, 0 rows, 0 bytes>"

    def test_never_exceeds_the_batch_size_by_merging(self):
        queue = merged_queue(Clock())
        requests = [request(10, 3), request(11, 4), request(12, 4), request(9, 2)]
        put(queue, *requests)
        taken = []
        while (batch := queue.take_batch()) is not None:
            assert batch.rows <= 8
            assert sum(batch.level_rows.values()) == batch.rows
            taken += batch.requests
        assert sorted(map(id, taken)) == sorted(map(id, requests))

    def test_a_less_urgent_request_makes_no_batch_longer(self):
        queue = merged_queue(Clock())
        urgent = request(10, priority=Priority.HIGH)
        longer, equal = request(16, priority=Priority.LOW), request(10, priority=Priority.LOW)
        put(queue, longer, equal, urgent)
        batch = queue.take_batch()
        assert batch.requests == [urgent, equal]
        assert (batch.level_rows[Priority.HIGH], batch.level_rows[Priority.LOW]) == (1, 1)
        assert queue.take_batch().requests == [longer]

    def test_inline_takes_no_batch_that_is_too_long_with_its_merged_groups(self):
        queue = merged_queue(Clock())
        put(queue, request(10), request(11), request(12))

        def accept(rows, one):
            return rows * one.steps <= 22

        assert [len(queue.take_batch(accept).requests) for _ in range(3)] == [1, 1, 1]

    def test_a_delayed_batch_runs_once_merged_groups_fill_it(self):
        clock = Clock()
        queue = merged_queue(clock, max_delay=1.0)
        put(queue, request(10, 3), request(11, 3))
        assert queue.take_batch() is None
        put(queue, request(12, 2))
        assert queue.take_batch().rows == 8

    def test_merged_groups_fill_a_preferred_size(self):
        queue = merged_queue(Clock(), preferred_rows=(4,))
        put(queue, *[request(steps) for steps in (10, 11, 12, 10, 11, 12)])
        assert queue.take_batch().rows == 4

    def test_expired_and_cancelled_requests_of_merged_groups_do_not_run(self):
        clock = Clock()
        queue = merged_queue(clock)
        alive, expired, cancelled = request(10), request(11, deadline=clock.now + 1), request(12)
        put(queue, alive, expired, cancelled)
        queue.discard(cancelled)
        clock.now += 2
        batch = queue.take_batch()
        assert (batch.requests, batch.expired) == ([alive], [expired])

    def test_waiting_lengths_are_predicted_to_run_together(self):
        queue = merged_queue(Clock())
        plain = Queue(BatchPolicy(max_rows=8, max_queue_rows=100), Clock(), cost)
        for steps in (8, 9, 10, 11, 12, 13):
            put(queue, request(steps))
            put(plain, request(steps))
        together = queue.backlog_seconds()
        assert cost(6, group(8)) < together < 0.5 * plain.backlog_seconds()
        put(queue, *[request(10) for _ in range(40)])
        while queue.take_batch():
            pass
        assert queue.backlog_seconds() == 0.0

    def test_one_length_is_predicted_as_without_merging(self):
        queue = merged_queue(Clock())
        plain = Queue(BatchPolicy(max_rows=8, max_queue_rows=100), Clock(), cost)
        for _ in range(21):
            put(queue, request(10))
            put(plain, request(10))
        assert queue.backlog_seconds() == pytest.approx(plain.backlog_seconds())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9), st.sampled_from(Priority))))
def test_every_request_leaves_the_queue_once_and_none_waits_for_ever(requests):
    clock = Clock()
    queue = merged_queue(clock, max_queue_rows=10_000)
    waiting = [request(steps, rows, priority=level) for steps, rows, level in requests]
    for one in waiting:
        clock.now += 1
        put(queue, one)
    taken = []
    for _ in itertools.takewhile(lambda _: queue.rows, itertools.count()):
        batch = queue.take_batch()
        oldest = {}
        for one in waiting:
            if one not in taken:
                oldest.setdefault(one.priority, one)
        assert batch.requests[0] in oldest.values()  # the oldest of the level whose turn it is
        taken += batch.requests
    assert sorted(map(id, taken)) == sorted(map(id, waiting))


def test_a_limit_of_rows_that_was_decided_by_a_wrong_cost_is_corrected():
    """What is never run has the cost of a phase in which the machine was busy for ever."""
    learned = {8: 1.0, 16: 3.0, 32: 3.0, 64: 3.0}
    limits = RowLimits([8, 16, 32, 64])
    used = []
    for _ in range(2 * LIMIT_READS):
        rows = limits.next(BASE, 64, lambda rows, _: learned[rows])
        learned[rows] = 0.8 if rows == 64 else 1.0
        used.append(rows)
    assert used[: EXPLORED_RUNS - 1] == [8] * (EXPLORED_RUNS - 1)
    assert {16, 32, 64} < set(used[:LIMIT_READS])
    assert used[-1] == 64
