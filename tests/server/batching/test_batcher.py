"""What dynamic batchers get wrong, each as a test: no thread, no sleep."""

import time

import numpy as np
import pytest
from support.fakes import FakeRequest, Puppet, PuppetBatcher, PuppetRun, SubmittedRequest

from neurona_server.batching.batch import join_inputs
from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.inline_scheduler import MAX_INLINE_SECONDS
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.request import ExclusiveGroup
from neurona_server.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    ModelFailedError,
    NeuronaError,
    QueueFullError,
    RunTooLongError,
    UnavailableError,
)
from neurona_server.telemetry.metrics import OUTCOMES


def raise_for_nan(inputs):
    if np.isnan(inputs["x"]).any():
        raise RuntimeError("poisoned at 0xdeadbeef")


@pytest.fixture
def batcher():
    return PuppetBatcher()


def test_outputs_reach_their_callers_with_mixed_row_counts(batcher):
    submitted = [
        SubmittedRequest(batcher, [1]),
        SubmittedRequest(batcher, [2, 3, 4]),
        SubmittedRequest(batcher, [5, 6]),
    ]
    puppet = Puppet()
    batcher.step(puppet)
    assert puppet.batches == [6]
    assert [one.answer for one in submitted] == [[2], [4, 6, 8], [10, 12]]


def test_cancelling_one_of_three_does_not_disturb_the_others(batcher):
    submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2, 3)]
    submitted[1].cancel(CancelledError())
    assert batcher.queue.rows == 2  # it left at once
    puppet = Puppet()
    batcher.step(puppet)
    assert puppet.batches == [2]
    assert [one.answer for one in submitted] == [[2], CancelledError, [6]]


def test_cancelling_one_of_three_while_they_run_does_not_disturb_the_others(batcher):
    submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2, 3)]
    batcher.step(Puppet(before=lambda _: submitted[1].cancel(CancelledError())))
    assert [one.answer for one in submitted] == [[2], CancelledError, [6]]
    assert batcher.value("terminated_runs_total") == 0


def test_a_run_whose_requests_are_all_cancelled_is_terminated(batcher):
    def all_leave(_):
        for one in submitted:
            one.cancel(CancelledError())

    submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2, 3)]
    puppet = Puppet(before=all_leave)
    batcher.step(puppet)
    assert [one.answer for one in submitted] == [CancelledError] * 3
    assert puppet.batches == [3]  # and not tried again by halves
    assert batcher.value("terminated_runs_total") == 1


def test_a_request_cancelled_before_its_batch_runs_does_not_run(batcher):
    submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2)]
    batch = batcher.queue.take_batch()
    for one in submitted:
        one.cancel(CancelledError())
    puppet = Puppet()
    batcher.process(batch, puppet)
    assert puppet.batches == []


def test_a_batch_that_fails_is_tried_by_halves_until_only_the_guilty_fail(batcher):
    values = [1, 2, np.nan, 4, 5, np.nan, 7, 8]
    submitted = [SubmittedRequest(batcher, [value]) for value in values]
    puppet = Puppet(before=raise_for_nan)
    batcher.step(puppet)
    assert [one.answer for one in submitted] == [
        ModelFailedError if np.isnan(value) else [2 * value] for value in values
    ]
    assert "deadbeef" not in str(submitted[2].results[0][1])
    assert puppet.batches == [8, 4, 2, 2, 1, 1, 4, 2, 1, 1, 2]
    alive = SubmittedRequest(batcher, [3])
    batcher.step(puppet)
    assert alive.answer == [6]


def test_a_request_cancelled_during_a_failing_run_is_not_run_again(batcher):
    def fail_and_cancel(inputs):
        submitted[1].cancel(CancelledError())
        raise_for_nan(inputs)

    submitted = [SubmittedRequest(batcher, [np.nan]), SubmittedRequest(batcher, [2])]
    puppet = Puppet(before=fail_and_cancel)
    batcher.step(puppet)
    assert puppet.batches == [2, 1]
    assert [one.answer for one in submitted] == [ModelFailedError, CancelledError]


def test_nan_in_ones_rows_stays_in_its_rows(batcher):
    submitted = [
        SubmittedRequest(batcher, [1]),
        SubmittedRequest(batcher, [np.nan, np.inf]),
        SubmittedRequest(batcher, [3]),
    ]
    batcher.step(Puppet())
    assert [submitted[0].answer, submitted[2].answer] == [[2], [6]]
    np.testing.assert_array_equal(submitted[1].answer, [np.nan, np.inf])


def test_an_expired_request_never_reaches_the_model(batcher):
    expired = SubmittedRequest(batcher, [1], deadline=batcher.clock.now + 1)
    alive = SubmittedRequest(batcher, [2])
    batcher.clock.now += 1
    puppet = Puppet()
    batcher.step(puppet)
    assert (expired.answer, alive.answer) == (DeadlineExceededError, [4])
    assert puppet.batches == [1]


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize(
    "wrong", [lambda inputs: [np.zeros((len(inputs["x"]) + 1, 1))], lambda inputs: [np.float32(1)]]
)
def test_wrong_output_rows_are_a_failure_not_a_mix_up(batcher, requests, wrong):
    submitted = [SubmittedRequest(batcher, [value]) for value in range(requests)]
    batcher.step(Puppet(answer=wrong))
    assert [one.answer for one in submitted] == [ModelFailedError] * requests


def test_a_result_that_cannot_be_delivered_does_not_affect_the_others(batcher):
    class UndeliverableRequest(FakeRequest):
        def finish(self, outputs, error):
            raise OSError("the connection is closed")

    array = np.ones((1, 1), np.float32)
    batcher.submit(UndeliverableRequest({"x": array}, 1, array.shape[1:]))
    submitted = SubmittedRequest(batcher, [3])
    batcher.step(Puppet())
    assert submitted.answer == [6]


def test_a_model_without_a_batch_axis_runs_one_by_one_and_gives_its_outputs_whole():
    batcher = PuppetBatcher(batched=False)
    submitted = [SubmittedRequest(batcher, [1, 2]), SubmittedRequest(batcher, [3])]
    puppet = Puppet(answer=lambda inputs: [inputs["x"].sum() * 2])
    batcher.step(puppet)
    batcher.step(puppet)
    assert puppet.batches == [2, 1]
    assert [one.answer for one in submitted] == [[6], [6]]


def interrupt_turns(batcher):
    for turn in list(batcher._watchdog.inline.values()):
        turn.interrupt()


class TestARequestWithMoreThanMaxRows:
    def test_is_run_in_parts_and_answered_as_one(self, batcher):
        submitted = SubmittedRequest(batcher, range(20))
        puppet = Puppet()
        while batcher.step(puppet):
            pass
        assert puppet.batches == [8, 8, 4]
        assert submitted.answer == [2.0 * value for value in range(20)]

    def test_is_admitted_completely_or_not_at_all(self, batcher):
        SubmittedRequest(batcher, range(60))
        with pytest.raises(QueueFullError):
            SubmittedRequest(batcher, range(10))
        assert batcher.queue.rows == 60
        with pytest.raises(InvalidArgumentError, match=r"65 rows \(expected at most 64"):
            SubmittedRequest(batcher, range(65))

    def test_fails_once_when_a_part_fails_and_the_other_parts_leave(self, batcher):
        submitted = SubmittedRequest(batcher, [np.nan] + [1] * 19)
        neighbour = SubmittedRequest(batcher, [5])
        puppet = Puppet(before=raise_for_nan)
        batcher.step(puppet)
        assert submitted.answer is ModelFailedError
        assert batcher.queue.rows == 1
        batcher.step(puppet)
        assert neighbour.answer == [10]

    def test_passes_its_deadline_and_its_level_on(self, batcher):
        submitted = SubmittedRequest(
            batcher, range(20), deadline=batcher.clock.now + 5, priority=Priority.LOW
        )
        parts = batcher.queue.take_batch().requests
        assert [(part.deadline, part.priority) for part in parts] == [
            (submitted.deadline, Priority.LOW)
        ]

    def test_fails_when_its_parts_do_not_fit_together(self, batcher):
        submitted = SubmittedRequest(batcher, range(10))
        widths = iter([1, 2])
        puppet = Puppet(answer=lambda inputs: [np.zeros((len(inputs["x"]), next(widths)))])
        while batcher.step(puppet):
            pass
        assert submitted.answer is ModelFailedError

    def test_that_ended_before_it_came_leaves_nothing_behind(self, batcher):
        array = np.zeros((20, 1), np.float32)
        request = FakeRequest({"x": array}, 20, (1,))
        request.fail(CancelledError())
        batcher.submit(request)
        assert batcher.queue.rows == 0

    def test_leaves_with_all_its_parts_when_it_is_cancelled(self, batcher):
        submitted = SubmittedRequest(batcher, range(20))
        submitted.cancel(CancelledError())
        assert submitted.answer is CancelledError
        assert batcher.queue.rows == 0


def test_drain_finishes_all_admitted_requests(batcher):
    submitted = [SubmittedRequest(batcher, [value]) for value in range(20)]
    batcher.close()
    with pytest.raises(UnavailableError):
        SubmittedRequest(batcher, [1])
    batcher.serve(Puppet())
    assert [one.answer for one in submitted] == [[2 * value] for value in range(20)]


def test_cancel_all_fails_waiting_requests(batcher):
    submitted = [SubmittedRequest(batcher, [value]) for value in range(3)]
    assert batcher.cancel_all(UnavailableError("stopped")) == 3
    assert [one.answer for one in submitted] == [UnavailableError] * 3


def test_cancel_all_terminates_runs_too(batcher):
    submitted = [SubmittedRequest(batcher, [1]), SubmittedRequest(batcher, [2], columns=2)]
    puppet = Puppet(before=lambda _: batcher.cancel_all(UnavailableError("stopped")))
    batcher.step(puppet)
    assert [one.answer for one in submitted] == [UnavailableError] * 2
    assert puppet.batches == [1]
    assert batcher.value("terminated_runs_total") == 1
    assert batcher.queue.rows == 0


def measure(batcher, *columns):
    """Make runs of these groups known to be short."""
    batcher.cost_model.measure(lambda rows: 1e-6, (columns[0],))
    for group in columns[1:]:
        for _ in range(2):
            batcher.cost_model.observe(8, 1e-6, (group,), batcher.clock.now)


def test_an_inline_run_empties_the_queue(batcher):
    measure(batcher, 1, 2)
    submitted = [SubmittedRequest(batcher, [value], columns=1 + value % 2) for value in range(4)]
    puppet = Puppet()
    assert not batcher.run_inline(puppet)
    assert puppet.batches == [2, 2]
    assert [one.answer for one in submitted] == [[2 * value] for value in range(4)]


def test_an_inline_run_stops_at_its_time_limit_and_continues_later(batcher):
    def take_a_while(_):
        batcher.clock.now += 0.6 * MAX_INLINE_SECONDS

    measure(batcher, 1, 2, 3)
    submitted = [SubmittedRequest(batcher, [value], columns=1 + value) for value in range(3)]
    puppet = Puppet(before=take_a_while)
    assert batcher.run_inline(puppet)
    assert [one.answer for one in submitted[:2]] == [[0], [2]]
    assert not submitted[2].finished
    assert not batcher.run_inline(puppet)
    assert submitted[2].answer == [4]


@pytest.mark.parametrize(
    ("policy", "seconds", "inline"),
    [
        (BatchPolicy(), 1e-7, True),
        (BatchPolicy(), 0.01, False),
        (BatchPolicy(inline=False), 1e-7, False),
        (BatchPolicy(inline=True), 0.01, True),
        (BatchPolicy(max_delay=0.1), 1e-7, False),  # the transport does not wait
    ],
)
def test_short_runs_are_inline_unless_the_policy_decides(policy, seconds, inline):
    batcher = PuppetBatcher(policy)
    batcher.cost_model.measure(lambda rows: seconds, (1,))
    batcher.tune()
    assert batcher.inline is inline


def test_runs_that_became_long_are_not_inline():
    batcher = PuppetBatcher(BatchPolicy())
    batcher.cost_model.measure(lambda rows: 1e-7, (1,))
    batcher.tune()

    def take_long(_):
        batcher.clock.now += 1

    for value in range(3):
        SubmittedRequest(
            batcher, [value], columns=500
        )  # another group: the curve's own stays short
        batcher.step(Puppet(before=take_long))
    assert batcher.inline is False


def test_padding_fills_up_to_the_batch_size_and_changes_no_outputs(batcher):
    # Other sizes cost ten times as much, as on a device that prepares for each new shape.
    batcher.cost_model.measure(lambda rows: 0.001, (1,))
    batcher.padding.measure(
        lambda rows: 0.001 if rows in (1, 2, 4, 8) else 0.01, {4: 0.001, 8: 0.001}
    )
    submitted = [
        SubmittedRequest(batcher, [1]),
        SubmittedRequest(batcher, [2, 3, 4]),
        SubmittedRequest(batcher, [np.nan]),
    ]
    puppet = Puppet()
    batcher.step(puppet)
    assert puppet.batches == [8]
    assert [one.answer for one in submitted[:2]] == [[2], [4, 6, 8]]
    assert batcher.value("padding_rows_total") == 3
    assert batcher.value("rows_total") == 5
    assert batcher.value("batch_rows_sum") == 5


def test_runs_and_waits_are_counted(batcher):
    def take_a_second(_):
        batcher.clock.now += 1

    batcher.cost_model.measure(lambda rows: 2.0, (1,), budget=1e9)
    for values in ([1], [2, 3], [4]):
        SubmittedRequest(batcher, values)
        batcher.clock.now += 1
    batcher.step(Puppet(before=take_a_second))
    assert batcher.value("batch_rows_count") == 1
    assert batcher.value("batch_rows_sum") == 4
    assert batcher.value("batch_requests_sum") == 3
    assert batcher.value("queue_duration_seconds_sum") == 3 + 2 + 1
    assert batcher.value("run_duration_seconds_sum") == 1
    assert batcher.value("run_predicted_ratio_sum") == 0.5
    assert batcher.value("queue_rows") == 0
    assert batcher.value("batch_limit_rows") == 8
    assert batcher.value("run_predicted_seconds", rows="1") == 2.0


def test_every_run_updates_the_cost_model(batcher):
    def take_two_seconds(_):
        batcher.clock.now += 2

    SubmittedRequest(batcher, [1])
    batcher.step(Puppet(before=take_two_seconds))
    assert batcher.cost_model.predict(1, (1,)) == 2.0


def test_a_fault_of_ours_ends_the_requests_and_not_the_thread(batcher, monkeypatch):
    def fail(_):
        raise KeyError("a bug")

    monkeypatch.setattr(batcher.admission, "start_batch", fail)
    submitted = SubmittedRequest(batcher, [1])
    batcher.close()
    batcher.serve(Puppet())
    assert submitted.answer is ModelFailedError


def test_instances_take_their_turn_on_the_device():
    scheduler = DeviceScheduler(1)
    batcher = PuppetBatcher(scheduler=scheduler)
    submitted = SubmittedRequest(batcher, [1])
    batcher.close()
    running = []
    batcher.serve(Puppet(before=lambda _: running.append(scheduler.use("cpu").free_slots)))
    assert submitted.answer == [2]
    assert (running, scheduler.use("cpu").free_slots) == ([0], 1)


def test_long_batches_are_left_to_the_instances(batcher):
    batcher.cost_model.measure(lambda rows: 1.0, (1,), budget=1e9)
    SubmittedRequest(batcher, [1])
    puppet = Puppet()
    assert not batcher.run_inline(puppet)
    assert puppet.batches == []
    batcher.close()
    batcher.serve(puppet)
    assert puppet.batches == [1]


def test_an_expired_request_does_not_run_again_in_a_half(batcher):
    def fail_late(inputs):
        batcher.clock.now += 10
        raise_for_nan(inputs)

    expiring = SubmittedRequest(batcher, [1], deadline=batcher.clock.now + 5)
    poisoned, alive = SubmittedRequest(batcher, [np.nan]), SubmittedRequest(batcher, [3])
    puppet = Puppet(before=fail_late)
    batcher.step(puppet)
    assert (expiring.answer, poisoned.answer) == (DeadlineExceededError, ModelFailedError)
    assert alive.answer == [6]


class TestInlineRun:
    """A run on the transport's thread, whose turn the watchdog interrupts when it takes long."""

    @pytest.fixture
    def batcher(self):
        batcher = PuppetBatcher(BatchPolicy(inline=True, max_rows=8, max_queue_rows=64))
        measure(batcher, 1)
        batcher.tune()
        return batcher

    @staticmethod
    def interrupted(batcher):
        """Return a model whose runs the watchdog interrupts."""
        return Puppet(before=lambda _: interrupt_turns(batcher))

    def test_is_not_of_a_group_that_was_not_measured(self, batcher):
        known = SubmittedRequest(batcher, [1])
        unknown = SubmittedRequest(batcher, [2], columns=9)
        puppet = Puppet()
        assert not batcher.run_inline(puppet)
        assert known.answer == [2]
        assert not unknown.finished
        for _ in range(2):  # the first run of a group may include preparation of the device
            batcher.step(puppet)
            unknown = SubmittedRequest(batcher, [2], columns=9)
        batcher.run_inline(puppet)
        assert unknown.answer == [4]

    def test_is_not_larger_than_what_was_measured(self):
        batcher = PuppetBatcher(BatchPolicy(inline=True, max_rows=8, max_queue_rows=64))
        puppet = Puppet()
        submitted = SubmittedRequest(batcher, [1, 2])
        batcher.run_inline(puppet)
        assert not submitted.finished
        batcher.step(puppet)
        for rows, runs in ((2, True), (1, True), (3, False)):
            submitted = SubmittedRequest(batcher, range(rows))
            batcher.run_inline(puppet)
            assert submitted.finished is runs

    def test_that_takes_long_is_run_again_by_an_instance(self, batcher):
        submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2)]
        batcher.run_inline(self.interrupted(batcher))
        assert not any(one.finished for one in submitted)
        assert batcher.value("terminated_runs_total") == 1
        puppet = Puppet()
        assert not batcher.run_inline(puppet)  # an instance does
        assert puppet.batches == []
        batcher.step(puppet)
        assert [one.answer for one in submitted] == [[2], [4]]
        assert batcher.value("queue_duration_seconds_count") == 2

    def test_that_is_interrupted_while_it_fails_runs_its_halves_elsewhere(self, batcher):
        def fail_and_interrupt(inputs):
            if len(inputs["x"]) < 4:
                interrupt_turns(batcher)
            raise_for_nan(inputs)

        submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2, np.nan, 4)]
        puppet = Puppet(before=fail_and_interrupt)
        batcher.run_inline(puppet)
        assert puppet.batches == [4, 2]
        puppet = Puppet(before=raise_for_nan)
        while batcher.step(puppet):
            pass
        assert [one.answer for one in submitted] == [[2], [4], ModelFailedError, [8]]

    def test_that_is_interrupted_answers_neither_cancelled_nor_expired_requests(self, batcher):
        cancelled, alive = SubmittedRequest(batcher, [1]), SubmittedRequest(batcher, [2])
        expired = SubmittedRequest(batcher, [3], deadline=batcher.clock.now + 5)
        batcher.run_inline(self.interrupted(batcher))
        cancelled.cancel(CancelledError())
        batcher.clock.now += 5
        puppet = Puppet()
        batcher.step(puppet)
        assert puppet.batches == [1]
        assert (cancelled.answer, expired.answer) == (CancelledError, DeadlineExceededError)
        assert alive.answer == [4]

    def test_that_is_interrupted_is_cancelled_with_the_waiting_requests(self, batcher):
        submitted = SubmittedRequest(batcher, [1])
        batcher.run_inline(self.interrupted(batcher))
        assert batcher.cancel_all(UnavailableError("stopped")) == 1
        assert submitted.answer is UnavailableError
        assert batcher.step(Puppet()) is None

    def test_that_is_interrupted_while_the_model_drains_is_still_answered(self, batcher):
        batcher.start()
        for thread in batcher._threads:  # without them, nobody takes the next batch
            batcher.close()
            thread.join(10)
        batcher.queue._closed = False
        submitted = SubmittedRequest(batcher, [1])
        batcher.queue.close()
        batcher.run_inline(self.interrupted(batcher))
        assert batcher.join(time.monotonic() + 20)
        assert submitted.finished

    def test_that_took_long_suspends_the_model_for_longer_each_time(self, batcher):
        seconds = []
        for _ in range(16):
            SubmittedRequest(batcher, [1])
            batcher.run_inline(self.interrupted(batcher))
            batcher.step(Puppet())
            started = batcher.clock.now
            while not batcher.inline:
                batcher.clock.now += 5
                batcher.tune()
            seconds.append(batcher.clock.now - started)
        assert seconds[:4] == [10, 20, 40, 80]
        assert seconds[-1] == 86_400  # a day
        batcher.clock.now += 10 * 86_400
        SubmittedRequest(batcher, [1])
        batcher.run_inline(self.interrupted(batcher))
        batcher.clock.now += 10
        batcher.tune()
        assert batcher.inline


class TestLongRun:
    """A run of an instance, which the watchdog looks at."""

    @pytest.fixture
    def scheduler(self):
        return DeviceScheduler(1)

    @pytest.fixture
    def batcher(self, scheduler):
        batcher = PuppetBatcher(
            BatchPolicy(max_rows=8, max_queue_rows=64, max_run_seconds=100), scheduler=scheduler
        )
        batcher.cost_model.measure(lambda rows: 0.5, (1,), budget=1e9)
        return batcher

    @staticmethod
    def run(batcher, *seconds, after=lambda _: None):
        """Run what waits; the watchdog looks after each time, and `after` is called then."""

        def look(_):
            for one in seconds:
                batcher.clock.now += one
                assert batcher.check_runs()
                after(one)

        batcher.queue.close()
        batcher.serve(Puppet(before=look))

    def test_gives_its_slot_up_when_it_takes_ten_times_its_prediction(self, batcher, scheduler):
        submitted = SubmittedRequest(batcher, [1])
        free = []
        self.run(
            batcher, 4.9, 0.2, 60, after=lambda _: free.append(scheduler.use("cpu").free_slots)
        )
        assert free == [0, 1, 1]
        assert scheduler.use("cpu").free_slots == 1
        assert scheduler.use("cpu").seconds == pytest.approx(65.1)
        assert submitted.answer == [2]

    def test_is_reported_as_long_as_it_is_overdue(self, batcher):
        SubmittedRequest(batcher, [1])
        overdue = []
        self.run(batcher, 4.9, 0.2, 1, after=lambda _: overdue.append(batcher.overdue_runs))
        assert overdue == [0, 1, 1]
        assert batcher.overdue_runs == 0
        assert not batcher.check_runs()

    def test_is_terminated_when_all_its_deadlines_have_passed(self, batcher):
        now = batcher.clock.now
        submitted = [SubmittedRequest(batcher, [1], deadline=now + end) for end in (1, 3)]
        batches = []
        self.run(batcher, 2, 2, after=lambda _: batches.extend(batcher._active_batches))
        assert [one.answer for one in submitted] == [DeadlineExceededError] * 2
        assert batcher.value("terminated_runs_total") == 1

    def test_longer_than_allowed_fails_all_of_its_requests_at_once(self, batcher):
        submitted = [SubmittedRequest(batcher, [value]) for value in (1, 2)]
        finished = []
        self.run(batcher, 99, 2, 60, after=lambda _: finished.append(submitted[0].finished))
        assert finished == [False, True, True]
        assert [one.answer for one in submitted] == [RunTooLongError] * 2
        assert batcher.value("terminated_runs_total") == 1
        assert batcher.value("run_duration_seconds_count") == 0

    def test_has_no_limit_if_the_policy_says_so(self, batcher):
        batcher.policy = BatchPolicy(max_run_seconds=0)
        submitted = SubmittedRequest(batcher, [1])
        self.run(batcher, 1e6)
        assert submitted.answer == [2]


def test_every_error_has_an_outcome_that_metrics_know():
    for error in NeuronaError.__subclasses__():
        assert error.outcome in OUTCOMES


def test_a_request_that_runs_alone_lies_in_memory_as_its_dtype_wants():
    message = b"x" + np.arange(4, dtype=np.float32).tobytes()
    view = np.frombuffer(message, np.float32, 4, 1)
    assert not view.flags.aligned
    (array,) = join_inputs([FakeRequest({"x": view}, 4, ())]).values()
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3]


class RunWithMemory:
    """A run with memory of its own for inputs, of which it is asked for some shapes."""

    def __init__(self, *, has_memory=True):
        self.has_memory = has_memory
        self.shapes = None

    def reserve_inputs(self, shapes):
        self.shapes = shapes
        if not self.has_memory:
            return None
        dtypes = {"x": np.float32, "n": np.int64}
        return {name: np.full(shape, 99, dtypes[name]) for name, shape in shapes.items()}


@pytest.mark.parametrize("padded", [0, 3, 5])
@pytest.mark.parametrize("counts", [[3], [1, 2], [2, 0, 1]])
def test_inputs_are_joined_in_the_memory_of_the_run(counts, padded):
    values = iter(range(100))
    requests = [
        FakeRequest(
            {"x": np.array([[next(values)] for _ in range(n)], np.float32).reshape(n, 1)}, n, ()
        )
        for n in counts
    ]
    run = RunWithMemory()
    expected = join_inputs(requests, padded)["x"]
    joined = join_inputs(requests, padded, run)["x"]
    assert run.shapes == {"x": expected.shape}
    assert joined.tolist() == expected.tolist()
    assert join_inputs(requests, padded, RunWithMemory(has_memory=False))["x"].tolist() == (
        expected.tolist()
    )
    assert join_inputs(requests, padded, PuppetRun(Puppet()))["x"].tolist() == expected.tolist()


def test_inputs_without_rows_are_written_as_they_are():
    group = ExclusiveGroup({"n"})
    inputs = {"x": np.ones((2, 1), np.float32), "n": np.array([7])}
    run = RunWithMemory()
    joined = join_inputs([FakeRequest(inputs, 2, group)], 4, run)
    assert run.shapes == {"x": (4, 1), "n": (1,)}
    assert (joined["x"].tolist(), joined["n"].tolist()) == ([[1]] * 4, [7])


def test_inputs_of_another_type_than_the_runs_memory_are_not_converted():
    request = FakeRequest({"x": np.ones((2, 1), np.float64)}, 2, ())
    with pytest.raises(TypeError):
        join_inputs([request], 2, RunWithMemory())
