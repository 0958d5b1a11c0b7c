import threading

import pytest
from support.fakes import Clock

from neurona_server.batching.device_scheduler import DeviceScheduler, ModelRuns


def on_cpu(model, count=10):
    return ModelRuns(model, [("cpu", None)] * count)


def test_the_model_that_had_least_of_the_device_goes_next():
    share, clock, order = DeviceScheduler(1), Clock(), []
    waiting = threading.Semaphore(0)
    runs = {model: on_cpu(model) for model in ("greedy", "modest")}

    def run(model, seconds):
        with share.turn(runs[model], clock):
            order.append(model)
            clock.now += seconds

    def enter(model, seconds):
        thread = threading.Thread(target=run, args=(model, seconds))
        thread.start()
        while share._waiting.count(runs[model]) == before:  # until it stands in line
            waiting.acquire(timeout=0.001)
        return thread

    threads = []
    with share.turn(on_cpu("blocker"), clock):
        for model, seconds in [("greedy", 3.0)] * 3 + [("modest", 1.0)] * 3:
            before = share._waiting.count(runs[model])
            threads.append(enter(model, seconds))
    for thread in threads:
        thread.join(10)
    assert order == ["greedy", "modest", "modest", "modest", "greedy", "greedy"]


def test_with_enough_slots_no_run_waits():
    share = DeviceScheduler(2)
    with share.turn(on_cpu("a"), Clock()), share.turn(on_cpu("b"), Clock()):
        pass


def test_a_failing_run_gives_its_slot_back():
    share = DeviceScheduler(1)
    for _ in range(3):
        with pytest.raises(RuntimeError), share.turn(on_cpu("a"), Clock()):
            raise RuntimeError("run failed")
    share.remove("a")
    with share.turn(on_cpu("a"), Clock()):
        pass


def test_a_device_without_slots_is_rejected():
    with pytest.raises(ValueError, match="slots is 0"):
        DeviceScheduler(0)


def test_turn_that_gave_its_slot_up_leaves_the_accounts_right():
    share, clock = DeviceScheduler(1), Clock()
    with share.turn(on_cpu("endless"), clock) as turn:
        clock.now += 10
        share.give_up_slot(turn, clock.now)
        share.give_up_slot(turn, clock.now)  # a second time does nothing
        with share.turn(on_cpu("other"), clock):
            clock.now += 1
            assert share.use("cpu").free_slots == 0
        assert share.use("cpu").free_slots == 1
        clock.now += 4
    assert share.use("cpu").free_slots == 1
    assert share.used_seconds() == {"endless": 15.0, "other": 1.0}
