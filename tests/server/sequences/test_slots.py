"""The slots of cellular batching in virtual time: which rows run, how many, and who is admitted."""

import contextlib
import math
import random
from collections import Counter

import numpy as np
import pytest
from support.fakes import Clock, FakeRequest, Puppet, PuppetBatcher

from neurona_server.batching.batch import Batch
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import DeadlineExceededError, QueueFullError
from neurona_server.sequences.cellular import (
    INITIAL_OVERHEAD,
    MergeOfAllLengths,
    OverheadEstimate,
    SequenceSlots,
)
from neurona_server.sequences.cost import SequenceCostModel
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm
from neurona_server.sequences.ragged import LengthGroup, bucket_end

FORM = SequenceForm({"x": 1}, state_size=1)
SIZES = (1, 2, 4, 8, 16, 32, 64)


def cost(rows, group, step=1e-6):
    """Of a model whose arrays fit into the cache with up to 16 rows."""
    return 20e-6 + group.steps * rows * (step if rows <= 16 else 2 * step)


def request(steps, rows=1, **options):
    array = np.zeros((rows, steps, 1), np.float32)
    return FakeRequest({"x": array}, rows, LengthGroup((), bucket_end(steps)), **options)


def run(inputs):
    return [inputs["x"][:, 0], inputs[STATE]]


def take_turn(slots, max_rows=64):
    """Run the slots once; return the requests of the run and its inputs."""
    requests = slots.next_requests(max_rows)
    inputs = slots.join(requests, 0, None)
    slots.split(run(inputs), requests, 0)
    return requests, inputs


def test_a_run_has_as_many_rows_as_pay_and_the_others_wait():
    slots = SequenceSlots(FORM, cost, 64, batch_sizes=SIZES)
    slots.add([request(40) for _ in range(64)])
    ended = []
    counts = Counter()
    while slots.requests:
        requests, _ = take_turn(slots)
        ended.extend(slots.pop_ended())
        counts[len(requests)] += 1
    assert counts.most_common(1)[0][0] == 16
    assert len(ended) == 64
    every = SequenceSlots(
        FORM, lambda rows, group: 1e-4 + group.steps * 1e-6, 64, batch_sizes=SIZES
    )
    every.add([request(40) for _ in range(64)])
    assert len(every.next_requests(64)) == 64


def test_a_run_takes_those_with_similar_lengths_from_the_slots():
    clock = Clock()
    slots = SequenceSlots(FORM, lambda rows, group: 1e-3, 8, clock=clock)
    lengths = [100, 5, 5, 101, 5, 99, 5, 102, 5, 98, 103, 5, 97, 5, 104]
    requests = [request(steps) for steps in lengths]
    for one in requests:  # the cost is the same for all: the first one is due first
        one.queued_at = clock.now = clock.now + 1e-6
    slots.add(requests)
    first = slots.next_requests(8)
    assert first[0] is requests[0]
    assert sorted(one.inputs["x"].shape[1] for one in first) == [
        97,
        98,
        99,
        100,
        101,
        102,
        103,
        104,
    ]
    clock.now += 60.0
    urgent = request(3, deadline=clock.now + 1e-4)
    slots.add([urgent])
    assert urgent in slots.next_requests(8)


def test_every_sequence_leads_at_some_time_however_many_similar_ones_come():
    clock = Clock()
    slots = SequenceSlots(FORM, cost, 4, clock=clock)
    other = request(300)
    slots.add([other])
    for _ in range(400):
        clock.now += 1e-3
        arriving = [request(7) for _ in range(slots.room // 2)]
        for one in arriving:
            one.queued_at = clock.now
        if arriving:
            slots.add(arriving)
        take_turn(slots, 4)
        if other in slots.pop_ended():
            break
    else:
        pytest.fail("the long sequence never ended")


def test_what_requests_take_does_not_make_runs_longer():
    """The choice of steps counts what a turn takes whatever requests join or end."""
    estimate = OverheadEstimate()
    choose = random.Random(2)  # noqa: S311  a test
    for _ in range(400):
        number = choose.randrange(30)
        estimate.record(80e-6 + 20e-6 * number + choose.gauss(0, 20e-6), number)
    assert 40e-6 < estimate.fixed_seconds < 120e-6
    assert 250e-6 < estimate.seconds < 500e-6
    for _ in range(400):
        estimate.record(200e-6, 3)  # the same number each time: nothing says what each takes
    assert estimate.fixed_seconds == pytest.approx(200e-6, rel=0.05)


def test_waiting_for_requests_is_no_work_between_two_runs():
    clock = Clock()
    slots = SequenceSlots(FORM, cost, 8, clock=clock)
    for _ in range(20):
        slots.add([request(3)])
        while slots.requests:
            take_turn(slots)
        clock.now += 5.0
    assert slots.overhead == INITIAL_OVERHEAD


class ScarceArray(np.ndarray):
    """An array of which one copy fails for lack of memory."""

    copies = 1

    def __getitem__(self, index):
        if isinstance(index, np.ndarray) and ScarceArray.copies:
            ScarceArray.copies -= 1
            raise MemoryError
        return super().__getitem__(index)


def test_steps_run_again_if_there_was_no_memory_for_the_answers():
    slots = SequenceSlots(FORM, cost, 8)
    slots.add([request(5), request(90)])
    requests = slots.next_requests(8)
    inputs = slots.join(requests, 0, None)
    states = np.full((2, 1), 7, np.float32)
    with pytest.raises(MemoryError):
        slots.split([np.zeros((2, 1), np.float32).view(ScarceArray), states], requests, 0)
    again = slots.join(requests[:1], 0, None)
    np.testing.assert_array_equal(again[LENGTHS], inputs[LENGTHS][:1])
    np.testing.assert_array_equal(again[STATE], [[0.0]])
    slots.split(run(again), requests[:1], 0)
    assert len(slots.requests) + len(slots.pop_ended()) == 2


def served_batcher(**policy):
    """A batcher with slots in virtual time, and a function that runs them once."""
    batcher = PuppetBatcher(
        BatchPolicy(max_rows=64, max_queue_rows=10_000, **policy),
        new_cost_model=SequenceCostModel,
    )
    costs = batcher.cost_model
    costs.measure(lambda rows: cost(rows, LengthGroup((), 8)), LengthGroup((), 8), budget=1e9)
    costs.measure_steps(lambda rows, steps: cost(rows, LengthGroup((), steps)), (8, 64))
    slots = SequenceSlots(FORM, costs.predict, 64, batch_sizes=SIZES, clock=batcher.clock)
    batcher.use_slots(lambda: slots)
    batcher.queue.merge = MergeOfAllLengths()
    batcher._slots.append(slots)

    def pass_time(inputs):
        rows, steps = inputs["x"].shape[:2]
        batcher.clock.now += cost(rows, LengthGroup((), steps)) + 50e-6

    puppet = Puppet(before=pass_time, answer=run)

    def turn():
        for batch in batcher._fill_slots(slots):
            batcher.process(batch, puppet)

    return batcher, slots, turn


def test_a_request_that_would_expire_behind_those_in_the_slots_is_refused():
    batcher, slots, turn = served_batcher()
    for _ in range(200):
        batcher.submit(request(400))
    for _ in range(5):
        turn()
    assert slots.rows == 200
    assert not batcher.queue.rows
    now = batcher.clock.now
    assert batcher.admission.predict_wait() > 0.05
    with pytest.raises(QueueFullError, match="predicted wait too long"):
        batcher.submit(request(450, deadline=now + 0.03))
    short = request(5, deadline=now + 0.03)  # its turn comes before those of long ones
    batcher.submit(short)
    while not short.finished:
        turn()
    assert short.results[0][0] is not None


@pytest.mark.parametrize(("interval", "most"), [(100e-6, 0.001), (60e-6, 0.03), (30e-6, 0.04)])
def test_few_admitted_requests_expire(interval, most):
    """At 0.6, 1.06 and 2.1 times what the model can do."""
    choose = random.Random(1)  # noqa: S311  a test
    batcher, slots, turn = served_batcher()
    clock = batcher.clock
    requests, arrival = [], clock.now
    for _ in range(3000):
        while arrival > clock.now:
            if batcher.queue.rows or slots.rows:
                turn()
            else:
                clock.now = arrival
        steps = min(500, 1 + int(math.exp(choose.gauss(3.7, 1.0))))
        one = request(steps, deadline=arrival + 0.02)
        arrival += choose.expovariate(1 / interval)
        with contextlib.suppress(QueueFullError, DeadlineExceededError):
            batcher.submit(one)
            requests.append(one)
    while slots.rows or batcher.queue.rows:
        turn()
    expired = [one for one in requests if one.results[0][1] is not None]
    assert len(expired) <= most * len(requests)
    assert len(requests) > 1500


def test_requests_from_the_slots_that_begin_again_share_batches_of_the_usual_size():
    batcher, slots, _ = served_batcher()
    requests = [request(9, rows=3) for _ in range(50)]
    slots.add(requests)
    batcher._run_again(Batch(requests[:1], is_rerun=True, slots=slots), slots.requests)
    assert not slots.rows
    again = []
    while (batch := batcher.queue.take_batch()) is not None:
        assert batch.rows <= 64
        assert batch.is_rerun
        again.extend(batch.requests)
    assert again == requests
