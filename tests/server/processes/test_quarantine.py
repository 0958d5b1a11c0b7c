"""Which model is quarantined after which crashes."""

import pytest

from neurona_server.processes.quarantine import OUT_OF_MEMORY_SECONDS, Crash, Quarantine
from neurona_server.telemetry.run_journal import ModelKey, RunningModel


def model(name, runs=1, *, loading=False, files="x"):
    return RunningModel(ModelKey(name, 1, files), runs, loading)


@pytest.fixture
def quarantine():
    return Quarantine()


@pytest.fixture
def crash(quarantine):

    def crash(*suspects, reason="killed by SIGFPE", time=0.0, **options):
        key = quarantine.record(Crash(reason, suspects, time, **options))
        return key and key.name

    return crash


def test_the_second_crash_counts(quarantine, crash):
    assert crash(model("a")) is None
    assert crash(model("b")) is None
    assert crash() is None
    assert quarantine.reasons == {}
    assert crash(model("a")) == "a"
    assert quarantine.reasons == {
        ModelKey("a", 1, "x"): "quarantined: the server process was killed by SIGFPE twice while "
        "it ran (replace its files or restart the server to try again)"
    }
    assert crash(model("a")) is None  # of a worker that still had it


def test_reasons(quarantine, crash):
    crash(model("a"))
    crash(model("a"), reason="killed by SIGSEGV")
    crash(model("b", 0, loading=True))
    crash(model("b", 0, loading=True))
    a, b = quarantine.reasons.values()
    assert "was killed by SIGFPE and killed by SIGSEGV while it ran (" in a
    assert "was killed by SIGFPE twice while it was loaded (" in b


def test_other_files_are_another_model(crash):
    assert crash(model("a", files="x")) is None
    assert crash(model("a", files="y")) is None
    assert crash(model("a", files="y")) == "a"


def test_of_several_suspects_the_one_that_was_suspected_more_often_is_blamed(crash):
    assert crash(model("rare", 2), model("culprit", 500)) is None
    assert crash(model("other", 1), model("culprit", 300)) == "culprit"
    # What these crashes said about the others is forgotten.
    assert crash(model("rare", 1)) is None
    assert crash(model("other", 1)) is None


def test_a_model_that_always_runs_is_not_blamed_for_one_that_ran_twice(crash):
    assert crash(model("busy", 100_000), model("culprit", 1)) is None
    assert crash(model("busy", 200_000), model("culprit", 3)) == "culprit"
    assert crash(model("busy", 100_000), model("next", 1)) is None
    assert crash(model("busy", 100_000), model("next", 1)) == "next"


def test_kills_for_memory_are_forgotten_after_some_time(crash):
    late = OUT_OF_MEMORY_SECONDS
    assert crash(model("a"), time=1.0, out_of_memory=True) is None
    assert crash(model("a"), time=1.0 + late, out_of_memory=True) is None
    assert crash(model("a"), time=1.9 * late, out_of_memory=True) == "a"
    assert crash(model("b"), time=0.0) is None
    assert crash(model("b"), time=100 * late) == "b"
