"""A caller who makes a model fail again and again cannot fill the log."""

import logging

import pytest
from support.fakes import Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.errors import ModelFailedError
from neurona_server.telemetry import failure_log, rate_limit
from neurona_server.telemetry.failure_log import RateLimitedFailureLog


class FakeSchedule:
    """Runs scheduled callbacks when the test says that the minute has passed."""

    def __init__(self):
        self.callbacks = []

    def __call__(self, seconds, callback):
        assert seconds == rate_limit.QUIET_SECONDS
        self.callbacks.append(callback)

    def pass_minute(self):
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


@pytest.fixture
def schedule(monkeypatch):
    monkeypatch.setattr(rate_limit, "QUIET_SECONDS", 60.0)
    return FakeSchedule()


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_the_first_failure_is_logged_in_full_and_similar_ones_in_one_line(schedule, logged):
    failures = RateLimitedFailureLog("m/1", schedule)
    for index in range(41):
        try:
            raise RuntimeError(f"index {index} is\nbeyond 3")
        except RuntimeError as error:
            failures.record("it failed", error)
    assert [record.getMessage() for record in logged.records] == ["m/1: it failed"]
    assert "index 0" in str(logged.records[0].exc_info[1])
    schedule.pass_minute()
    assert len(logged.records) == 2
    assert (
        "m/1: suppressed 40 similar errors in the last 60 s: it failed: RuntimeError: "
        in logged.records[1].getMessage()
    )
    assert "index # is\\nbeyond #" in logged.records[1].getMessage()  # one line
    assert logged.records[1].exc_info is None
    failures.record("it failed", RuntimeError("index 1 is\nbeyond 3"))  # and from the start
    assert logged.records[2].exc_info
    schedule.pass_minute()
    assert len(logged.records) == 3  # there were no more


def test_another_kind_is_logged_too_up_to_a_maximum(schedule, logged):
    failures = RateLimitedFailureLog("m/1", schedule)
    for kind in range(100):
        failures.record("it failed", RuntimeError("x" * kind))
    assert len(logged.records) == failure_log.MAX_KINDS + 1
    schedule.pass_minute()
    (line,) = logged.records[failure_log.MAX_KINDS + 1 :]
    assert f"suppressed {100 - failure_log.MAX_KINDS - 1} similar errors" in line.getMessage()


def test_poisoned_requests_are_logged_once(logged):
    def fail(_):
        raise RuntimeError("poisoned")

    batcher = PuppetBatcher()
    requests = [SubmittedRequest(batcher, [n]) for n in range(8)]
    batcher.step(Puppet(before=fail))
    assert [one.answer for one in requests] == [ModelFailedError] * 8
    assert len([record for record in logged.records if record.exc_info]) == 1
