import threading
import time

import pytest

from neurona_server.batching.watchdog import AWAKE_PERIODS, INLINE_PERIOD, RunWatchdog


class FakeTurn:
    runner = None

    def __init__(self, interrupted=None):
        self.interrupted = interrupted or threading.Event()

    def interrupt(self):
        self.interrupted.set()


class FakeModel:
    def __init__(self, error=None):
        self.checked = threading.Event()
        self.error = error

    def check_runs(self):
        self.checked.set()
        if self.error:
            raise self.error
        return False


@pytest.fixture
def watchdog():
    watchdog = RunWatchdog()
    watchdog.start()
    yield watchdog
    watchdog.stop()


def test_turn_that_lasts_is_interrupted(watchdog):
    turn = FakeTurn()
    watchdog.inline[1] = turn
    assert turn.interrupted.wait(20)


def test_turns_that_follow_each_other_are_not_interrupted(watchdog):
    interrupted = threading.Event()
    end = time.monotonic() + 20 * INLINE_PERIOD
    longest = 0.0
    while (started := time.monotonic()) < end:
        watchdog.inline[1] = FakeTurn(interrupted)
        time.sleep(INLINE_PERIOD / 20)
        del watchdog.inline[1]
        longest = max(longest, time.monotonic() - started)
    # On a busy machine, a turn may have lasted indeed.
    assert not interrupted.is_set() or longest > watchdog.inline_seconds


def test_watchdog_sleeps_without_runs_and_is_woken_by_one(watchdog, wait_until):
    wait_until(lambda: watchdog.asleep)
    turn = FakeTurn()
    watchdog.inline[1] = turn
    watchdog.wake()
    assert not watchdog.asleep
    assert turn.interrupted.wait(20)
    del watchdog.inline[1]
    time.sleep(AWAKE_PERIODS * INLINE_PERIOD / 4)
    assert not watchdog.asleep  # the next run needs no system call


def test_run_that_forgot_to_wake_it_is_noticed(watchdog, wait_until):
    wait_until(lambda: watchdog.asleep)
    turn = FakeTurn()
    watchdog.inline[1] = turn
    assert turn.interrupted.wait(20)


def test_models_are_checked_until_they_are_removed(watchdog):
    broken, model = FakeModel(RuntimeError("a bug")), FakeModel()
    watchdog.add(broken)
    watchdog.add(model)
    for _ in range(2):
        model.checked.clear()
        assert model.checked.wait(20)
    watchdog.remove(model)
    time.sleep(0.05)
    model.checked.clear()
    broken.checked.clear()
    watchdog.wake()
    assert broken.checked.wait(20)
    assert not model.checked.is_set()


def test_thread_that_gets_no_cpu_is_not_interrupted(watchdog, monkeypatch):
    """Nor one that waited at one of two looks only; one that waits or works is."""
    results = []
    monkeypatch.setattr("neurona_server.batching.watchdog._cpu_seconds", lambda _: results.pop())
    turn = FakeTurn()
    watchdog.stop()
    for first, second, interrupted in (
        (1.0, 1.001, False),
        (1.0, 1.02, True),
        (None, None, True),
        (None, 1.0, False),
        (1.0, None, False),
    ):
        watchdog.inline[1] = turn
        turn.interrupted.clear()
        results = [second, first]
        looks = {}
        for _ in range(3):
            looks = watchdog._interrupt_long_turns(looks)
        assert turn.interrupted.is_set() is interrupted
