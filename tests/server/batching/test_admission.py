import numpy as np
import pytest
from support.fakes import FakeRequest, Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching.cost_model import RELIABLE_SECONDS
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.errors import DeadlineExceededError, QueueFullError


def make(objective=None, seconds=lambda rows: 1.0, runs=1, **options):
    """A batcher of which every run takes a second, and that has just run."""
    policy = BatchPolicy(max_rows=8, max_queue_rows=640, latency_objective=objective)
    batcher = PuppetBatcher(policy, **options)
    batcher.cost_model.measure(seconds, (1,), budget=1e9)
    batcher.tune()
    for _ in range(runs):
        run(batcher, seconds, within=1e9)
    return batcher


def run(batcher, seconds=lambda rows: 1.0, **options):
    """One request, answered after so many seconds."""

    def pass_time(inputs):
        batcher.clock.now += seconds(len(inputs["x"]))

    request = ask(batcher, **options)
    batcher.step(Puppet(before=pass_time))
    return request.answer


def ask(batcher, rows=1, within=np.inf, **options):
    return SubmittedRequest(batcher, [1] * rows, deadline=batcher.clock.now + within, **options)


def test_the_predicted_wait_is_that_of_running_and_waiting_batches():
    batcher = make()
    assert batcher.admission.predict_wait() == 0.0
    batcher.admission.start_batch(1)
    batcher.clock.now += 0.25
    assert batcher.admission.predict_wait() == 0.75
    ask(batcher, rows=8)
    ask(batcher, rows=8)
    assert batcher.admission.predict_wait() == 2.75
    batcher.admission.instances = 2  # one of them idles
    assert batcher.admission.predict_wait() == 1.0


def test_a_deadline_that_a_run_cannot_meet_is_rejected_immediately():
    batcher = make()
    message = r"500.0 ms remain \(expected at least the predicted run time of 1000.0 ms\)"
    with pytest.raises(DeadlineExceededError, match=message):
        ask(batcher, within=0.5)
    assert batcher.queue.rows == 0
    ask(batcher, within=1.5)


def test_a_deadline_that_the_wait_will_miss_is_rejected_immediately_with_the_wait():
    batcher = make(runs=100)
    ask(batcher, rows=80)
    message = r"10000.0 ms in the queue, 1000.0 ms to run"
    with pytest.raises(QueueFullError, match=message) as caught:
        ask(batcher, within=5.0)
    assert caught.value.retry_after == pytest.approx(10.0)  # until its batch would start
    ask(batcher, within=12.0)
    ask(batcher)  # without a deadline it may wait


def test_the_error_of_a_full_queue_has_a_retry_delay():
    batcher = make()
    ask(batcher, rows=640)
    with pytest.raises(QueueFullError, match="640 of 640 rows") as caught:
        ask(batcher)
    assert caught.value.retry_after == 10.0  # not 80: much changes meanwhile


def test_a_busy_instance_does_not_reject_requests_that_meet_their_deadline():
    """A run shared with few is short: only what waits counts, not what a batch could hold."""
    batcher = make(seconds=lambda rows: 0.1 * rows, runs=100)
    batcher.admission.start_batch(1)
    for _ in range(3):
        ask(batcher, within=0.65)
    with pytest.raises(QueueFullError):
        ask(batcher, within=0.45)


def test_a_deadline_in_the_past_is_rejected():
    with pytest.raises(DeadlineExceededError, match="already exceeded on arrival"):
        ask(make(), within=0.0)


def test_less_urgent_requests_do_not_delay_more_urgent_ones():
    batcher = make()
    ask(batcher, rows=320, priority=Priority.LOW)  # 40 runs
    ask(batcher, within=1.5, priority=Priority.HIGH)
    with pytest.raises(QueueFullError):
        ask(batcher, within=1.5, priority=Priority.LOW)


def test_estimates_that_are_not_recent_reject_no_request():
    """Otherwise a wrong estimate that rejects all requests would never be corrected."""
    batcher = make()
    batcher.clock.now += RELIABLE_SECONDS + 1
    assert run(batcher, within=0.5) == [2]


def test_a_new_shape_is_admitted_while_others_run():
    batcher = make()
    for _ in range(3):
        assert run(batcher, lambda rows: 0.01, columns=1000, within=0.5) == [2]
        run(batcher)


def test_a_shape_with_a_slow_first_run_is_admitted():
    batcher = make()
    run(batcher, lambda rows: 100.0, columns=3)  # prepares the device
    for _ in range(20):
        assert run(batcher, lambda rows: 0.01, columns=3, within=0.5) == [2]
        run(batcher)


def test_a_shape_that_is_known_to_be_slow_is_rejected():
    batcher = make()
    for _ in range(4):
        run(batcher, lambda rows: 10.0, columns=3)
    with pytest.raises(DeadlineExceededError, match=r"predicted run time of 10000.0 ms"):
        ask(batcher, columns=3, within=5.0)
    ask(batcher, within=5.0)


def test_a_batch_takes_longer_than_its_run_and_that_is_learned():
    batcher = make()

    def answer(inputs):
        batcher.clock.now += 1.0
        return SlowToAnswer(batcher.clock)

    class SlowToAnswer(list):
        """Outputs that take a second to split, as answers do to write."""

        def __init__(self, clock):
            super().__init__([np.zeros((8, 1))])
            self.clock = clock

        def __iter__(self):
            self.clock.now += 1.0
            return super().__iter__()

    for _ in range(30):
        ask(batcher, rows=8)
        batcher.step(Puppet(answer=answer))
    ask(batcher, rows=8)
    batcher.admission.start_batch(8)
    assert batcher.admission.predict_wait() == pytest.approx(4.0, rel=0.1)


def test_an_objective_bounds_the_queue_and_the_batch():
    batcher = make(objective=4.5, seconds=lambda rows: rows * 1.0, runs=100)
    assert batcher.queue.max_batch_rows in (
        1,
        2,
    )  # two runs of it fit, and no batch_size is quicker by row
    batcher.queue.max_batch_rows = 1
    batcher.admission.start_batch(1)
    for _ in range(2):  # with a third one there would be no reserve
        ask(batcher)
    with pytest.raises(QueueFullError, match=r"expected at most 4500.0 ms in total"):
        ask(batcher)


def test_an_objective_that_no_run_meets_does_not_reject_all_requests():
    batcher = make(objective=0.001)
    for _ in range(5):
        assert run(batcher) == [2]
    batcher.admission.start_batch(1)
    ask(batcher)


def test_only_a_batch_estimate_of_every_instance_makes_wait():
    batcher = make()
    batcher.admission.instances = 2
    first = batcher.admission.start_batch(1)
    assert batcher.admission.predict_wait() == 0.0
    second = batcher.admission.start_batch(3)
    assert batcher.admission.predict_wait() == 1.0
    batcher.admission.finish_batch(first)
    batcher.admission.finish_batch(second)
    batcher.admission.finish_batch(second)  # in any order, by any thread, and never an error
    assert batcher.admission.predict_wait() == 0.0


def test_a_jump_that_comes_now_and_then_is_reserved():
    batcher = make(objective=10.0, runs=200)
    batcher.admission.start_batch(8)

    def room():
        """How many full batches may wait."""
        batches = 0
        while True:
            try:
                ask(batcher, rows=8)
            except QueueFullError:
                batcher.queue.clear()
                return batches
            batches += 1

    without_jumps = room()
    for _ in range(20):
        batcher.admission._reserve.observe(1.0)
    batcher.admission._reserve.observe(7.0)
    assert without_jumps == 7
    assert room() == 3  # one of the cycles may take six seconds more


def test_what_can_no_longer_make_it_is_dropped_before_its_run():
    batcher = make(objective=4.5, runs=100)
    first, second = ask(batcher), ask(batcher)
    batcher.clock.now += 4.0
    third = ask(batcher)
    runs = Puppet()
    batcher.step(runs)
    assert (first.answer, second.answer, third.answer) == (
        *(DeadlineExceededError, DeadlineExceededError),
        [2.0],
    )
    assert "dropped before its run" in str(first.results[0][1])
    assert runs.batches == [1]
    assert batcher.value("dropped_requests_total") == 2
    # The newest runs in any case: its cost would never be learned again otherwise.
    late = ask(batcher)
    batcher.clock.now += 4.0
    batcher.step(runs)
    assert late.answer == [2.0]


def test_what_waited_unread_counts_for_the_objective():
    batcher = make(objective=4.5, runs=100)
    request = FakeRequest({"x": np.zeros((1, 1), np.float32)}, 1, (1,))
    request.arrival_lag = 3.6
    with pytest.raises(QueueFullError, match="3600.0 ms in the queue"):
        batcher.submit(request)
    request.arrival_lag = 3.4
    batcher.submit(request)
