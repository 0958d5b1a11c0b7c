"""A worker process as its supervisor sees it, when it ends in unusual ways."""

import sys
import threading

import pytest

from neurona_server.processes import worker_handle
from neurona_server.processes.channel import StartOptions
from neurona_server.processes.worker_handle import WorkerEvent, WorkerHandle
from neurona_server.resources import MemoryKills


@pytest.fixture
def start(monkeypatch):
    """Start a program instead of a worker."""

    def start(code, on_event):
        command = [sys.executable, "-c", code]
        monkeypatch.setattr(worker_handle, "python_command", lambda module: command)
        return WorkerHandle(0, [], StartOptions({}), MemoryKills(), on_event, lambda *_: None)

    return start


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_real_time_signal_is_a_reason_too(start):
    ended = threading.Event()
    handle = start("import os; os.kill(os.getpid(), 40)", lambda *_: ended.set())
    assert ended.wait(20)
    assert handle.exit_reason == "killed by signal 40"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_signal_to_a_worker_that_has_just_ended_does_not_hide_its_end(start, monkeypatch):
    """`Popen.kill` reads the status of a process that has ended, for which another thread waits."""
    events = []
    ended = threading.Event()

    def on_event(event, worker):
        events.append(event)
        ended.set()

    wait_for_exit = worker_handle.WorkerHandle._wait_for_exit

    def kill_first(self):
        while self._process.poll() is None:
            pass
        self.kill()
        wait_for_exit(self)

    monkeypatch.setattr(worker_handle.WorkerHandle, "_wait_for_exit", kill_first)
    handle = start("", on_event)
    assert ended.wait(20)
    assert events == [WorkerEvent.EXITED]
    assert handle.status == 0
