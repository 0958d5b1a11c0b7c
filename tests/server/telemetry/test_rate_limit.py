"""The summaries of all limits share one thread, and one limit has bounded memory."""

import threading

import pytest

from neurona_server.batching.batcher import RateLimitedFailureLog
from neurona_server.telemetry import rate_limit
from neurona_server.telemetry.rate_limit import RateLimit, TimerThread


def test_callbacks_are_called_in_the_order_of_their_times():
    timers, calls, ended = TimerThread(), [], threading.Event()
    timers.schedule(0.2, ended.set)
    for seconds in (0.1, 0.0, 0.05):
        timers.schedule(seconds, lambda seconds=seconds: calls.append(seconds))
    assert ended.wait(30)
    assert calls == [0.0, 0.05, 0.1]


def test_a_callback_that_fails_ends_no_other(caplog):
    timers, ended = TimerThread(), threading.Event()
    timers.schedule(0.0, lambda: 1 / 0)
    timers.schedule(0.01, ended.set)
    assert ended.wait(30)
    assert "uncaught exception in a scheduled callback" in caplog.text


def test_many_kinds_of_failures_need_one_thread():
    failure_logs = [RateLimitedFailureLog(f"m/{number}") for number in range(50)]
    failure_logs[0].record("it failed", RuntimeError("first"))  # starts the thread
    threads = threading.active_count()
    for failures in failure_logs:
        for kind in range(20):
            failures.record("it failed", RuntimeError("x" * kind))
    assert threading.active_count() <= threads


def test_a_limit_counts_what_it_does_not_admit(monkeypatch):
    monkeypatch.setattr(rate_limit, "QUIET_SECONDS", 7.0)
    scheduled, reports = [], []
    limit = RateLimit(
        2, lambda *report: reports.append(report), lambda *call: scheduled.append(call)
    )
    assert [limit.admit(kind) for kind in "aababcdcd"] == [
        *(True, False, True, False, False, True, False, False, False)
    ]
    assert [seconds for seconds, _ in scheduled] == [7.0] * 3
    for _, callback in scheduled:
        callback()
    assert reports == [("a", 2), ("b", 1), ("various", 3)]
    assert limit.admit("a")


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_callback_may_schedule_another(seconds):
    timers, ended = TimerThread(), threading.Event()
    timers.schedule(seconds, lambda: timers.schedule(seconds, ended.set))
    assert ended.wait(30)
