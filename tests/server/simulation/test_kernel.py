import threading

import pytest

from neurona_server.simulation.kernel import Kernel


@pytest.fixture
def kernel():
    with Kernel(now=0.0) as kernel:
        yield kernel


def test_processes_and_actions_take_turns_in_virtual_time(kernel):
    events = []

    def walk(name, step):
        for _ in range(3):
            kernel.sleep(step)
            events.append((name, kernel.now))

    kernel.spawn(lambda: walk("slow", 3.0), "slow")
    kernel.spawn(lambda: walk("fast", 2.0), "fast")
    kernel.at(3.5, lambda: events.append(("action", kernel.now)))
    kernel.run()
    assert events == [
        *[("fast", 2.0), ("slow", 3.0), ("action", 3.5), ("fast", 4.0)],
        *[("slow", 6.0), ("fast", 6.0), ("slow", 9.0)],
    ]


def test_run_stops_at_a_time_and_goes_on_later(kernel):
    times = []
    for time in (1.0, 2.0, 3.0):
        kernel.at(time, lambda: times.append(kernel.now))
    kernel.run(until=2.5)
    assert (times, kernel.now) == ([1.0, 2.0], 2.5)
    kernel.run()
    assert times == [1.0, 2.0, 3.0]


def test_a_condition_wakes_as_many_as_are_notified_and_others_by_their_timeouts(kernel):
    condition = kernel.new_condition(threading.Lock())
    woken = []

    def wait(name, timeout):
        with condition:
            woken.append((name, condition.wait(timeout), kernel.now))

    def notify(number):
        with condition:
            condition.notify(number)

    for name, timeout in (("first", None), ("second", 5.0), ("third", 1.0), ("fourth", None)):
        kernel.spawn(lambda name=name, timeout=timeout: wait(name, timeout), name)
    kernel.at(2.0, lambda: notify(1))
    kernel.run(until=10.0)
    assert woken == [("third", False, 1.0), ("first", True, 2.0), ("second", False, 5.0)]
    kernel.at(11.0, lambda: notify(7))
    kernel.run()
    assert woken[3:] == [("fourth", True, 11.0)]


def test_an_error_ends_the_simulation_wherever_it_came_from(kernel):
    def fail():
        raise ValueError("in a process")

    def fail_later():
        raise ValueError("in an action")

    kernel.spawn(lambda: kernel.sleep(9.0), "sleeper")  # in whose thread events are handled
    kernel.spawn(fail, "failing")
    with pytest.raises(ValueError, match="in a process"):
        kernel.run()
    kernel.at(1.0, fail_later)
    with pytest.raises(ValueError, match="in an action"):
        kernel.run()
    kernel.at(2.0, lambda: kernel.sleep(1.0))
    with pytest.raises(RuntimeError, match="an action blocks in virtual time"):
        kernel.run()


def test_closing_ends_processes_in_whatever_they_wait():
    left = []

    def work(wait):
        try:
            wait()
        except Exception:
            left.append("caught")
        finally:
            left.append("left")

    with Kernel() as kernel:
        condition = kernel.new_condition(threading.Lock())

        def wait():
            with condition:
                condition.wait()

        before = threading.active_count()
        kernel.spawn(lambda: work(wait), "waits")
        kernel.spawn(lambda: work(lambda: kernel.sleep(1e9)), "sleeps")
        kernel.run(until=5.0)
    assert left == ["left", "left"]
    for thread in threading.enumerate():
        if thread.name in {"waits", "sleeps"}:
            thread.join(5.0)
    assert threading.active_count() <= before
