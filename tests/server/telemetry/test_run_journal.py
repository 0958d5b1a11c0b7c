"""The journal of runs, which is read after the process that wrote it has crashed."""

import faulthandler
import os
import re
import subprocess
import sys
import threading

import pytest

from neurona_server.telemetry.run_journal import (
    DUMP_SIGNAL,
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
    entry = journal.load(ModelKey(name, 1, "x"), lambda entry: entry)
    entry.run(len, ())
    entries.append(entry)
started = threading.Barrier(3)
if {loading}:
    journal.load(ModelKey("c", 1, "x"), lambda entry: os.abort())

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


def run_worker(journal, crash="os.abort()", main="", *, loading=False):
    code = WORKER.replace("{crash}", crash).replace("{main}", main)
    command = [sys.executable, "-c", code.replace("{loading}", str(loading))]
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
    assert re.search(r" in crash < .* in journal_entry_2 < ", journal.stack_at_crash())


def test_a_crash_of_a_load_blames_the_version(journal):
    assert run_worker(journal, loading=True) == -6
    assert journal.models_at_crash() == [(ModelKey("c", 1, "x"), 0, True)]


def test_the_stacks_of_all_threads_are_written_at_a_signal(journal):
    journal.write_stacks_at_crash()
    try:
        load(journal, A).run(lambda _: os.kill(os.getpid(), DUMP_SIGNAL), None)
        (stack,) = [one for one in journal.stacks() if "stacks_of_all_threads" in one]
        assert [model.key for model in journal.models_in_stack(stack)] == [A]
        assert journal.stack_at_crash() == ""
    finally:
        faulthandler.unregister(DUMP_SIGNAL)
        faulthandler.enable()


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


def load(journal, key):
    return journal.load(key, lambda entry: entry)


def test_loads_and_runs_are_marked_while_they_last(journal):

    def check(entry):
        assert journal.is_loading
        assert journal.running_models() == [(A, 0, True)]
        assert entry.run(lambda _: journal.running_models(), None) == [(A, 1, False)]
        assert journal.is_loading
        return entry

    a = journal.load(A, check)
    b = load(journal, B)
    assert journal.running_models() == []
    assert not journal.is_loading
    assert b.run(lambda text: (text, journal.running_models()), "x") == ("x", [(B, 1, False)])
    with pytest.raises(ZeroDivisionError):
        a.run(lambda _: 1 / 0, None)
    assert journal.running_models() == []


def test_cells_of_ended_threads_and_numbers_of_unloaded_versions_are_used_again(journal):
    running = []

    def run():
        entry.run(lambda _: running.extend(journal.running_models()), None)

    for number in range(VERSIONS + 10):
        entry = load(journal, ModelKey("a", number, ""))
        if number < THREADS + 10:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            assert running.pop().key.version == number
        entry.close()
        entry.close()


def test_more_versions_and_threads_than_fit_do_no_harm(journal):
    entries = [load(journal, ModelKey("a", n, "")) for n in range(1, VERSIONS + 2)]
    assert entries[-1] is None
    assert entries[-3].run(str, 1) == "1"
    with pytest.raises(ZeroDivisionError):
        journal.load(A, lambda _: 1 / 0)


def test_heartbeats(journal):
    assert (journal.heartbeats, journal.stalled_seconds) == (0, 0.0)
    journal.beat()
    journal.beat(1.5)
    assert (journal.heartbeats, journal.stalled_seconds) == (2, 1.5)


def test_a_journal_that_a_crash_has_overwritten_names_no_model(journal):
    a = load(journal, A)

    def overwrite(_):
        half = len(journal._memory) // 2
        journal._memory[-half:] = b"\xff" * half
        for value in (VERSIONS - 1, 2**63, 2**64 - 1):
            journal._words[2] = value
            assert journal.running_models() == []

    a.run(overwrite, None)
