"""The journal of runs, which is read after the process that wrote it has crashed."""

import re
import subprocess
import sys
import threading

import pytest

from neurona_server.telemetry.run_journal import (
    THREADS,
    VERSIONS,
    ModelKey,
    RunJournal,
    files_digest,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers inherit descriptors")

A, B = ModelKey("a", 1, "x"), ModelKey("b" * 128, 10**17, files_digest([("é/\udcff", 1)]))

WORKER = """
import os, sys, threading, time
from neurona_server.telemetry.run_journal import ModelKey, RunJournal

journal = RunJournal(int(sys.argv[1]), int(sys.argv[2]))
journal.write_stacks_at_crash()
entries = []
for name in "ab":
    with journal.load(ModelKey(name, 1, "x")) as entry:
        entry.run(len, ())
    entries.append(entry)
started = threading.Barrier(3)

def wait(_):
    started.wait()
    time.sleep(60)

def crash(_):
    started.wait()
    {crash}

for entry, function in zip(entries, (wait, crash)):
    threading.Thread(target=entry.run, args=(function, None), daemon=True).start()
started.wait()
{main}
time.sleep(60)
"""


@pytest.fixture
def journal():
    one = RunJournal.create()
    yield one
    one.close()


def run_worker(journal, crash="os.abort()", main=""):
    command = [sys.executable, "-c", WORKER.replace("{crash}", crash).replace("{main}", main)]
    command += map(str, journal.descriptors)
    done = subprocess.run(command, check=False, pass_fds=journal.descriptors, timeout=60)
    return done.returncode


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL"])
def test_what_the_crashed_thread_ran_is_to_blame(journal, signal):
    # The kernel gives such a signal to the thread that caused it.
    code = f"import signal; signal.pthread_kill(threading.get_ident(), signal.{signal})"
    assert run_worker(journal, code) < 0
    assert [model.key.name for model in journal.models_at_crash()] == ["b"]
    assert sorted(model.key.name for model in journal.running_models()) == ["a", "b"]
    assert re.search(r" in crash < .* in run < ", journal.stack_at_crash())
    assert "_bootstrap" in journal.stack_at_crash().rpartition(" < ")[2]
    assert journal.stack_at_crash() in journal.stacks()


def test_a_crash_outside_of_runs_blames_no_model(journal):
    assert run_worker(journal, "time.sleep(60)", main="os.abort()") == -6
    assert journal.models_at_crash() == []
    assert len(journal.running_models()) == 2


def test_of_a_thread_without_an_interpreter_all_that_ran_is_suspected(journal):
    # As ONNX Runtime's own threads: the C library aborts in one of its own.
    code = """import ctypes
    libc, number = ctypes.CDLL(None), ctypes.c_ulong()
    libc.pthread_create(ctypes.byref(number), None, libc.abort, None)
    time.sleep(60)"""
    assert run_worker(journal, code) == -6
    assert sorted(model.key.name for model in journal.models_at_crash()) == ["a", "b"]
    assert journal.stack_at_crash() == ""


def test_loads_and_runs_are_marked_while_they_last(journal):
    with journal.load(A) as a:
        assert journal.is_loading
        assert journal.running_models() == [(A, 0, True)]
        assert a.run(lambda _: journal.running_models(), None) == [(A, 1, False)]
        assert journal.is_loading
    with journal.load(B) as b:
        assert journal.running_models() == [(B, 0, True)]
    assert journal.running_models() == []
    assert not journal.is_loading

    def check(text):
        assert journal.running_models() == [(B, 1, False)]
        return text.upper()

    assert b.run(check, "done") == "DONE"
    with pytest.raises(ZeroDivisionError):
        a.run(lambda _: 1 / 0, None)
    assert journal.running_models() == []


def test_cells_of_ended_threads_and_numbers_of_unloaded_versions_are_used_again(journal):
    running = []

    def run():
        entry.run(lambda _: running.extend(journal.running_models()), None)

    for number in range(VERSIONS + 10):
        with journal.load(ModelKey("a", number, "")) as entry:
            pass
        if number < THREADS + 10:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            assert running.pop().key.version == number
        entry.close()
        entry.close()


def test_more_versions_and_threads_than_fit_do_no_harm(journal):
    entries = []
    for number in range(1, VERSIONS + 2):
        with journal.load(ModelKey("a", number, "")) as entry:
            entries.append(entry)
    assert entries[-1] is None
    assert entries[-3].run(str, 1) == "1"
    with pytest.raises(ZeroDivisionError), journal.load(A):
        1 / 0  # noqa: B018


def test_heartbeats(journal):
    assert (journal.heartbeats, journal.stalled_seconds) == (0, 0.0)
    journal.beat()
    journal.beat(1.5)
    assert (journal.heartbeats, journal.stalled_seconds) == (2, 1.5)


def test_a_journal_that_a_crash_has_overwritten_names_no_model(journal):
    with journal.load(A) as a:
        pass

    def overwrite(_):
        half = len(journal._memory) // 2
        journal._memory[-half:] = b"\xff" * half
        for value in (VERSIONS - 1, 2**63, 2**64 - 1):
            journal._words[3] = value
            assert journal.running_models() == []

    a.run(overwrite, None)
