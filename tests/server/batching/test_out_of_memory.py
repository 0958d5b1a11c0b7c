"""Runs that find too little memory, on a puppet whose device has room for a number of rows."""

import numpy as np
import pytest
from support.fakes import Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching.memory_limit import LIMIT_SECONDS, MAX_LIMIT_SECONDS, MemoryLimit
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import CancelledError, DeviceMemoryError


class SmallDevice(Puppet):
    def __init__(self, room, error=lambda: DeviceMemoryError("cuda:0")):
        super().__init__(before=self.check)
        self.room = room
        self.error = error

    def check(self, inputs):
        if len(inputs["x"]) > self.room:
            raise self.error()


@pytest.fixture
def batcher():
    return PuppetBatcher()


def values(batcher, *rows):
    return [SubmittedRequest(batcher, [*range(count)]) for count in rows]


def answers(requests):
    return [one.answer for one in requests]


def doubled(*rows):
    return [[2 * value for value in range(count)] for count in rows]


@pytest.mark.parametrize("error", [lambda: DeviceMemoryError("cuda:0"), MemoryError])
def test_a_batch_is_halved_until_it_fits_and_no_caller_notices(batcher, error):
    submitted = values(batcher, 1, 2, 3, 1, 1)
    device = SmallDevice(2, error)
    batcher.step(device)
    assert answers(submitted) == doubled(1, 2, 3, 1, 1)
    assert max(device.batches[1:]) < 8
    assert batcher.value("out_of_memory_runs_total") == len([n for n in device.batches if n > 2])
    assert batcher.value("requests_total", outcome="failed") in (None, 0)


def test_the_rows_of_one_large_request_are_divided(batcher):
    (request,) = values(batcher, 7)
    device = SmallDevice(2)
    batcher.step(device)
    assert request.answer == doubled(7)[0]
    assert device.batches == [7, 4, 2, 2, 3, 2, 1]


def test_only_a_row_that_does_not_fit_alone_gets_the_error(batcher):
    submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2, 3, 4)]

    def check(inputs):
        if (inputs["x"] == 3).any():
            raise DeviceMemoryError("cuda:0")

    device = Puppet(before=check)
    batcher.step(device)
    assert answers(submitted) == [[2], [4], DeviceMemoryError, [8]]
    assert device.batches == [4, 2, 2, 1, 1, 1]  # the row alone is tried twice
    ((_, error),) = submitted[2].results
    assert error.code == 8
    assert str(error).startswith("out of memory: cuda:0 has no room for a run of this request")


def test_memory_is_freed_before_the_next_try(batcher):
    device = SmallDevice(0)

    def free():
        device.room = 1

    batcher.free_memory = free
    (request,) = values(batcher, 1)
    batcher.step(device)
    assert request.answer == [0]
    assert device.batches == [1, 1]


def test_a_request_without_a_batch_axis_is_tried_twice():
    batcher = PuppetBatcher(batched=False)
    (request,) = values(batcher, 4)
    device = SmallDevice(2)
    batcher.step(device)
    assert request.answer is DeviceMemoryError
    assert device.batches == [4, 4]


def test_a_request_that_is_cancelled_meanwhile_is_not_divided(batcher):
    (request,) = values(batcher, 4)

    def cancel_and_fail(_):
        request.cancel(CancelledError())
        raise DeviceMemoryError("cuda:0")

    device = Puppet(before=cancel_and_fail)
    batcher.step(device)
    assert request.answer is CancelledError
    assert device.batches == [4]


def test_a_part_that_is_cancelled_with_its_request_does_not_run(batcher):
    (request,) = values(batcher, 4)

    def check(inputs):
        if len(inputs["x"]) == 4:
            raise DeviceMemoryError("cuda:0")
        request.cancel(CancelledError())

    device = Puppet(before=check)
    batcher.step(device)
    assert request.answer is CancelledError
    assert device.batches == [4, 2]


def test_responses_keep_their_order(batcher):
    order = []

    class Ordered(SubmittedRequest):
        def finish(self, outputs, error):
            order.append(self)
            super().finish(outputs, error)

    batcher = PuppetBatcher(BatchPolicy(max_rows=8, preserve_order=True))
    submitted = [Ordered(batcher, [*range(count)]) for count in (3, 1, 4)]
    batcher.step(SmallDevice(1))
    assert answers(submitted) == doubled(3, 1, 4)
    assert order == submitted


class TestLaterBatches:
    def test_are_smaller_for_a_while_and_then_grow_again(self, batcher):
        device = SmallDevice(3)
        values(batcher, *[1] * 8)
        batcher.step(device)
        assert batcher.queue.max_batch_rows == 2
        device.batches.clear()
        submitted = values(batcher, *[1] * 6)
        for _ in range(3):
            batcher.step(device)
        assert device.batches == [2, 2, 2]
        assert answers(submitted) == doubled(*[1] * 6)

        device.room = 8
        for expected in (4, 8):
            batcher.clock.now += LIMIT_SECONDS
            values(batcher, 1)
            batcher.step(device)
            assert batcher.queue.max_batch_rows == expected

    def test_split_larger_requests_meanwhile(self, batcher):
        device = SmallDevice(4)
        values(batcher, 8)
        batcher.step(device)
        device.batches.clear()
        (request,) = values(batcher, 8)
        while batcher.queue.rows:
            batcher.step(device)
        assert device.batches == [4, 4]
        assert request.answer == doubled(8)[0]

    def test_stay_within_the_latency_objective(self):
        batcher = PuppetBatcher(BatchPolicy(max_rows=8, latency_objective=0.05))
        batcher.cost_model.measure(lambda rows: 0.01 * rows, (1,))
        batcher.tune()
        within_objective = batcher.queue.max_batch_rows
        assert within_objective < 4
        batcher.record_out_of_memory(8)
        assert batcher.queue.max_batch_rows == within_objective


class TestMemoryLimit:
    def test_falls_to_the_batch_size_below_and_never_rises_by_a_failure(self):
        limit = MemoryLimit((1, 2, 4, 8))
        assert limit.lower(7, 0.0)
        assert limit.rows == 4
        assert not limit.lower(8, 0.0)
        assert limit.rows == 4
        assert limit.lower(1, 0.0)
        assert not limit.lower(1, 0.0)
        assert limit.rows == 1

    def test_waits_longer_after_each_try_that_fails(self):
        limit = MemoryLimit((1, 2))
        limit.lower(2, 0.0)
        now, waits = 0.0, []
        for _ in range(9):
            begun = now
            while limit.update(now) == 1:
                now += 10.0
            waits.append(now - begun)
            limit.lower(2, now)
        assert waits[:4] == [60, 120, 240, 480]
        assert waits[-1] == MAX_LIMIT_SECONDS

    def test_forgets_that_once_the_larger_size_has_fit_for_long(self):
        limit = MemoryLimit((1, 2))
        limit.lower(2, 0.0)
        assert limit.update(LIMIT_SECONDS) == 2
        limit.lower(2, 3 * LIMIT_SECONDS)
        assert limit.update(4 * LIMIT_SECONDS - 1) == 1
        assert limit.update(4 * LIMIT_SECONDS) == 2


def test_inputs_without_rows_reach_each_half():
    batcher = PuppetBatcher()
    device = SmallDevice(1)
    request = SubmittedRequest(batcher, [1, 2, 3], columns=2)
    batcher.step(device)
    assert np.array_equal(request.results[0][0][0], [[2, 2], [4, 4], [6, 6]])
