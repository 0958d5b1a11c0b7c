"""A caller who makes a model fail again and again does not fill the log."""

import logging

import pytest
from support.fakes import Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.errors import ModelFailedError
from neurona_server.telemetry import failure_log
from neurona_server.telemetry.failure_log import RateLimitedFailureLog


class Minute:
    """What is to be done later, done when the test says so."""

    def __init__(self):
        self.waiting = []

    def __call__(self, seconds, callback):
        assert seconds == failure_log.QUIET
        self.waiting.append(callback)

    def pass_(self):
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


@pytest.fixture
def minute(monkeypatch):
    monkeypatch.setattr(failure_log, "QUIET", 60.0)
    return Minute()


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def test_the_first_is_told_in_full_and_the_others_in_a_line(minute, told):
    one = RateLimitedFailureLog("m/1", minute)
    for index in range(41):
        try:
            raise RuntimeError(f"index {index} is\nbeyond 3")
        except RuntimeError as error:
            one.record("it failed", error)
    assert [record.getMessage() for record in told.records] == ["m/1: it failed"]
    assert "index 0" in str(told.records[0].exc_info[1])
    minute.pass_()
    assert len(told.records) == 2
    assert "m/1: 40 more like it within 60 s" in told.records[1].getMessage()
    assert "index # is\\nbeyond #" in told.records[1].getMessage()  # one line
    assert told.records[1].exc_info is None
    one.record("it failed", RuntimeError("index 1 is\nbeyond 3"))  # and from the start
    assert told.records[2].exc_info
    minute.pass_()
    assert len(told.records) == 3  # there were no more


def test_another_kind_is_told_too_until_there_are_many(minute, told):
    one = RateLimitedFailureLog("m/1", minute)
    for kind in range(100):
        one.record("it failed", RuntimeError("x" * kind))
    assert len(told.records) == failure_log.MOST_KINDS + 1
    minute.pass_()
    (line,) = told.records[failure_log.MOST_KINDS + 1 :]
    assert f"{100 - failure_log.MOST_KINDS - 1} more like it" in line.getMessage()


def test_poisoned_requests_are_logged_once(told):
    def fail(_):
        raise RuntimeError("poisoned")

    batcher = PuppetBatcher()
    asked = [SubmittedRequest(batcher, [n]) for n in range(8)]
    batcher.step(Puppet(before=fail))
    assert [one.answer for one in asked] == [ModelFailedError] * 8
    assert len([record for record in told.records if record.exc_info]) == 1
