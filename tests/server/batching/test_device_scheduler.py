import gc
import threading
import time
import weakref
from collections import Counter
from contextlib import ExitStack

import pytest
from support.fakes import Clock

from neurona_server.batching.device_scheduler import DeviceScheduler, ModelRuns


def on_cpu(model, count=10):
    return ModelRuns(model, [("cpu", None)] * count)


def use(scheduler, clock, runs, times, seconds):
    for _ in range(times):
        with scheduler.turn(runs, clock):
            clock.now += seconds


def order_of_turns(scheduler, clock, blocker, entries):
    """Queue turns of models, with their seconds, while a device is busy; return their order."""
    order, threads = [], []

    def run(runs, seconds):
        with scheduler.turn(runs, clock):
            order.append(runs.model)
            clock.now += seconds

    with scheduler.turn(blocker, clock):
        for number, (runs, seconds) in enumerate(entries, 1):
            threads.append(threading.Thread(target=run, args=(runs, seconds)))
            threads[-1].start()
            while scheduler.waiting_threads < number:  # until it stands in line
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    return order


def test_the_model_that_had_least_of_the_device_goes_next():
    greedy, modest = on_cpu("greedy"), on_cpu("modest")
    entries = [(greedy, 3.0)] * 3 + [(modest, 1.0)] * 3
    order = order_of_turns(DeviceScheduler(1), Clock(), on_cpu("blocker"), entries)
    assert order == ["greedy", "modest", "modest", "modest", "greedy", "greedy"]


def test_a_new_model_has_no_claim_on_what_others_have_used():
    """Though none of them runs or waits at the moment when it comes."""
    scheduler, clock, old, new = DeviceScheduler(1), Clock(), on_cpu("old"), on_cpu("new")
    use(scheduler, clock, old, 100, 1.0)
    order = order_of_turns(scheduler, clock, new, [(new, 1.0)] * 5 + [(old, 1.0)] * 2)
    assert "old" in order[:4]


def test_what_a_model_used_while_no_other_wanted_it_is_no_debt():
    scheduler, clock, long, short = DeviceScheduler(1), Clock(), on_cpu("long"), on_cpu("short")
    use(scheduler, clock, long, 1000, 0.06)
    order = order_of_turns(scheduler, clock, short, [(short, 0.06)] * 9 + [(long, 0.06)] * 9)
    assert 7 <= order[:16].count("long") <= 9


def test_with_enough_slots_no_run_waits():
    share = DeviceScheduler(2)
    with share.turn(on_cpu("a"), Clock()), share.turn(on_cpu("b"), Clock()):
        pass


def test_a_failing_run_gives_its_slot_back():
    share = DeviceScheduler(1)
    for _ in range(3):
        with pytest.raises(RuntimeError), share.turn(on_cpu("a"), Clock()):
            raise RuntimeError("run failed")
    with share.turn(on_cpu("a"), Clock()):
        pass


def test_a_device_without_slots_is_rejected():
    with pytest.raises(ValueError, match="slots is 0"):
        DeviceScheduler(0)


def test_turn_that_gave_its_slot_up_leaves_the_accounts_right():
    share, clock, endless, other = DeviceScheduler(1), Clock(), on_cpu("endless"), on_cpu("other")
    with share.turn(endless, clock) as turn:
        clock.now += 10
        share.give_up_slot(turn, clock.now)
        share.give_up_slot(turn, clock.now)  # a second time does nothing
        with share.turn(other, clock):
            clock.now += 1
            assert share.use("cpu").free_slots == 0
        assert share.use("cpu").free_slots == 1
        clock.now += 4
    assert share.use("cpu").free_slots == 1
    assert (endless.used_seconds, other.used_seconds) == (15.0, 1.0)


def on_gpus(model, *numbers, count=2):
    return ModelRuns(model, [(f"cuda:{n}", f"{model}{n}") for n in numbers for _ in range(count)])


class TestSeveralDevices:
    @pytest.fixture
    def scheduler(self):
        return DeviceScheduler(2, {"cpu": 1})

    def test_the_least_loaded_device_is_chosen(self, scheduler):
        clock, runs, devices = Clock(), on_gpus("a", 0, 1, 2), []
        with ExitStack() as stack:
            for _ in range(6):
                turn = stack.enter_context(scheduler.turn(runs, clock))
                assert turn.new_run == f"a{turn.device[-1]}"
                devices.append(turn.device)
            assert scheduler.try_turn(runs, clock) is None
        assert devices == ["cuda:0", "cuda:1", "cuda:2"] * 2

    def test_of_equally_loaded_devices_the_least_used_is_chosen(self, scheduler):
        clock, runs, devices = Clock(), on_gpus("a", 0, 1), []
        for seconds in (3, 1, 1, 1, 1):
            with scheduler.turn(runs, clock) as turn:
                devices.append(turn.device)
                clock.now += seconds
        assert devices == ["cuda:0", "cuda:1", "cuda:1", "cuda:1", "cuda:0"]

    def test_each_device_has_slots_of_its_own(self, scheduler):
        clock = Clock()
        with scheduler.turn(on_cpu("a"), clock):
            assert scheduler.try_turn(on_cpu("b"), clock) is None
            with scheduler.turn(on_gpus("b", 0), clock), scheduler.turn(on_gpus("c", 0), clock):
                assert scheduler.use("cuda:0").free_slots == 0

    def test_a_model_has_no_more_turns_than_runs(self, scheduler):
        clock, runs = Clock(), on_gpus("a", 0, count=1)
        turn = scheduler.try_turn(runs, clock)
        assert scheduler.try_turn(runs, clock) is None
        scheduler.give_up_slot(turn, clock.now)  # its run goes on
        assert scheduler.use("cuda:0").free_slots == 2
        assert scheduler.try_turn(runs, clock) is None
        scheduler.end(turn, clock.now)
        assert scheduler.try_turn(runs, clock) is not None

    def test_two_versions_of_a_name_have_runs_of_their_own(self, scheduler):
        """As while a file is replaced: the new version must not wait for the old one's runs."""
        clock, old, new = Clock(), on_cpu("a", 1), on_gpus("a", 0, count=1)
        with scheduler.turn(old, clock), scheduler.turn(new, clock) as turn:
            assert turn.device == "cuda:0"

    def test_who_waits_for_another_device_holds_nobody_up(self, scheduler):
        clock, order = Clock(), []
        busy, free = on_gpus("busy", 0), on_gpus("free", 0, 1)

        def wait_for_the_first_device():
            with scheduler.turn(on_gpus("waiting", 0), clock):
                order.append("waiting")

        thread = threading.Thread(target=wait_for_the_first_device)
        with scheduler.turn(busy, clock), scheduler.turn(busy, clock):
            thread.start()
            while not scheduler.waiting_threads:
                time.sleep(0.001)
            clock.now += 1
            with scheduler.turn(free, clock) as turn:  # has used more than who waits
                order.append(turn.device)
        thread.join(10)
        assert order == ["cuda:1", "waiting"]

    def test_a_model_on_another_device_gives_nobody_a_claim_on_this_one(self):
        """A new model gets as much of a device as the one that has used it, not all of it."""
        scheduler, clock = DeviceScheduler(1), Clock()
        old, new, elsewhere = on_gpus("old", 0), on_gpus("new", 0), on_gpus("elsewhere", 1)
        use(scheduler, clock, old, 100, 1.0)
        with scheduler.turn(elsewhere, clock):
            entries = [(new, 1.0)] * 5 + [(old, 1.0)] * 2
            order = order_of_turns(scheduler, clock, on_gpus("blocker", 0), entries)
        assert "old" in order[:4]

    @pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
    def test_nor_does_the_other_device_of_a_new_model(self, numbers):
        scheduler, clock = DeviceScheduler(1), Clock()
        old, new, little = on_gpus("old", 0), on_gpus("new", *numbers), on_gpus("little", 1)
        use(scheduler, clock, old, 100, 1.0)
        use(scheduler, clock, little, 5, 1.0)
        with scheduler.turn(little, clock):
            entries = [(new, 1.0)] * 5 + [(old, 1.0)] * 2
            order = order_of_turns(scheduler, clock, on_gpus("blocker", 0), entries)
        assert "old" in order[:4]

    def test_no_waiting_model_is_forgotten(self, scheduler):
        """Many threads of models on overlapping devices all get turns, each with its own run."""
        in_use = Counter()
        models = [on_gpus("a", 0, 1), on_gpus("b", 1, 2), on_gpus("c", 0, 2, count=1)]
        models += [on_cpu("d", 2), on_gpus("e", 2)]
        runs_left = Counter(dict.fromkeys(range(len(models)), 300))
        lock, problems = threading.Lock(), []

        def serve(number):
            while True:
                with lock:
                    if not runs_left[number]:
                        return
                    runs_left[number] -= 1
                with scheduler.turn(models[number], time.monotonic) as turn:
                    in_use[turn.device] += 1
                    if in_use[turn.device] > 2:
                        problems.append(turn.device)
                    if runs_left[number] % 50 == 0:
                        scheduler.give_up_slot(turn, time.monotonic())
                        in_use[turn.device] -= 1
                    else:
                        time.sleep(0.0001)
                        in_use[turn.device] -= 1

        threads = [threading.Thread(target=serve, args=(n % len(models),)) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert problems == []
        assert [runs.total for runs in models] == [
            sum(map(len, runs.idle.values())) for runs in models
        ]
        assert scheduler.use("cuda:0").free_slots == 2


class TestPredictedTurn:
    """Seconds by which turns of others delay those of a model."""

    @pytest.fixture
    def scheduler(self):
        return DeviceScheduler(1)

    def test_is_none_on_a_device_with_a_free_slot(self, scheduler):
        clock, runs = Clock(), on_cpu("a")
        assert scheduler.predict_turn(runs, clock.now) == 0.0

    def test_is_the_rest_of_the_turn_that_goes_on(self, scheduler):
        clock, runs = Clock(), on_cpu("a")
        with scheduler.turn(on_cpu("other"), clock) as turn:
            turn.expect(3.0)
            clock.now += 1.0
            assert scheduler.predict_turn(runs, clock.now) == pytest.approx(2.0)
            clock.now += 9.0  # it takes longer than expected
            assert 0.0 < scheduler.predict_turn(runs, clock.now) < 2.0

    def test_has_the_turns_of_those_who_go_first(self, scheduler):
        clock, runs, other = Clock(), on_cpu("a", 1), on_cpu("other", 1)
        use(scheduler, clock, other, 1, 0.5)
        use(scheduler, clock, runs, 1, 0.2)
        thread = threading.Thread(target=use, args=(scheduler, clock, other, 1, 0.5))
        with scheduler.turn(runs, clock) as turn:
            turn.expect(0.2)
            thread.start()
            while not scheduler.waiting_threads:
                time.sleep(0.001)
            clock.now += 0.2  # its own time is not counted, and then it is the other one's turn
            assert scheduler.predict_turn(runs, clock.now) == pytest.approx(0.5)
        thread.join(10)


def test_a_model_beyond_its_share_is_predicted_to_wait_as_usual():
    scheduler, clock, runs = DeviceScheduler(1), Clock(), on_cpu("a", 1)
    use(scheduler, clock, runs, 1, 0.01)
    use(scheduler, clock, on_cpu("other"), 1, 0.01)  # so the share of each is a half
    for _ in range(100):
        runs.observe_wait(0.05)
        runs.observe_turn(1.0)  # much more than its credit
    with scheduler.turn(runs, clock):
        assert scheduler.predict_turn(runs, clock.now) == pytest.approx(0.05, rel=0.1)


def test_a_model_that_asks_for_the_next_turn_at_the_end_of_one_keeps_its_place():
    scheduler, clock, pressed, modest = DeviceScheduler(1), Clock(), on_cpu("p"), on_cpu("m", 1)
    modest.objective = 0.02
    thread = threading.Thread(target=use, args=(scheduler, clock, pressed, 1, 1.0))
    with scheduler.turn(modest, clock) as first:
        thread.start()
        while not scheduler.waiting_threads:
            time.sleep(0.001)
        clock.now += 0.01
        with scheduler.turn_after(first, clock) as second:
            assert pressed.used_seconds == 0.0
            assert second.new_run is first.new_run
            clock.now += 0.01
    thread.join(10)
    assert (modest.used_seconds, pressed.used_seconds) == (pytest.approx(0.02), 1.0)


def test_one_thread_is_woken_for_a_slot():
    woken = []

    class Condition(threading.Condition):
        def notify(self, n=1):
            woken.append(self)
            super().notify(n)

    scheduler, clock = DeviceScheduler(1, new_condition=Condition), Clock()
    models = [on_cpu(f"m{number}", 1) for number in range(20)]
    threads = [threading.Thread(target=use, args=(scheduler, clock, one, 1, 1)) for one in models]
    with scheduler.turn(on_cpu("blocker"), clock):
        for thread in threads:
            thread.start()
        while scheduler.waiting_threads < 20:
            time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert len(woken) == len(set(woken)) == 20
    assert sorted(one.used_seconds for one in models) == [1.0] * 20


def test_what_is_unloaded_is_forgotten():
    scheduler, clock, runs = DeviceScheduler(1), Clock(), on_cpu("gone")
    use(scheduler, clock, runs, 3, 1.0)
    reference = weakref.ref(runs)
    scheduler.forget(runs)
    del runs
    gc.collect()
    assert reference() is None
