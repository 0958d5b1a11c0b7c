"""The supervisor, with fakes instead of worker processes."""

import subprocess
import sys
import threading

import pytest

from neurona_server.processes import supervisor
from neurona_server.processes.quarantine import Crash, Quarantine
from neurona_server.processes.supervisor import Supervisor
from neurona_server.processes.worker_handle import WorkerEvent
from neurona_server.telemetry.run_journal import ModelKey, RunningModel


class FakeWorker:
    """A worker whose events the test triggers."""

    def __init__(self, number, on_event):
        self.number, self.pid, self.on_event = number, 0, on_event
        self.ready_since, self.status, self.exit_reason = 0.0, 0, "exited"
        self.stopped, self.killed, self.ended = False, False, False
        self.crash, self.hang_reason = None, ""

    def become_ready(self):
        self.ready_since = 1e-9 + supervisor.time.monotonic()
        self.on_event(WorkerEvent.READY, self)

    def exit(self, status=-9):
        self.status, self.ended = status, True
        self.on_event(WorkerEvent.EXITED, self)

    def lose_devices(self):
        self.on_event(WorkerEvent.DEVICES_LOST, self)

    def stop(self):
        self.stopped = True

    def kill(self):
        self.killed = True
        self.exit()

    def check_heartbeat(self):
        return self.hang_reason

    def kill_hanging(self):
        self.hang_reason = ""
        self.kill()

    def crash_in(self, name):
        model = RunningModel(ModelKey(name, 1, ""), 1, loading=False)
        self.crash = Crash("killed by SIGFPE", [model], 0.0)
        self.exit(-8)


class Supervised:
    """A supervisor in a thread, and all workers that it has started, in their order."""

    def __init__(self, processes, wait_until, stop_seconds=60.0, **options):
        self.workers, self.restarts, self._wait_until = [], 0, wait_until
        self.quarantine = Quarantine()
        self.supervisor = Supervisor(
            *(processes, self._start, self._record_restart, stop_seconds, self.quarantine),
            **options,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def worker(self, index):
        """Wait until that many workers were started before this one, and return it."""
        self._wait_until(lambda: len(self.workers) > index)
        return self.workers[index]

    def status(self):
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self._status

    def stop(self):
        self.supervisor.stop()
        for worker in [w for w in self.workers if not w.ended]:
            self._wait_until(lambda worker=worker: worker.stopped)
            worker.exit(0)
        return self.status()

    def _start(self, number, on_event):
        self.workers.append(FakeWorker(number, on_event))
        return self.workers[-1]

    def _record_restart(self):
        self.restarts += 1

    def _run(self):
        self._status = self.supervisor.run()


@pytest.fixture
def supervise(wait_until, monkeypatch):
    monkeypatch.setattr(supervisor, "MIN_RESTART_PAUSE", 0.001)
    monkeypatch.setattr(supervisor, "MAX_RESTART_PAUSE", 0.002)
    monkeypatch.setattr(supervisor, "CHECK_SECONDS", 0.01)
    return lambda processes, **options: Supervised(processes, wait_until, **options)


def test_the_first_worker_starts_alone_and_the_others_after_it(supervise):
    supervised = supervise(3)
    supervised.worker(0).become_ready()
    assert [supervised.worker(n).number for n in range(3)] == [0, 1, 2]
    for worker in supervised.workers[1:]:
        worker.become_ready()
    assert supervised.stop() == 0
    assert supervised.restarts == 0


def test_a_first_worker_with_an_error_of_its_options_ends_the_server(supervise):
    supervised = supervise(2)
    supervised.worker(0).exit(1)
    assert supervised.status() == 1
    assert len(supervised.workers) == 1


def test_a_worker_that_always_fails_to_start_ends_the_server(supervise, wait_until):
    supervised = supervise(2)
    supervised.worker(0).become_ready()
    supervised.worker(1).become_ready()
    supervised.worker(1).exit()
    for attempt in range(supervisor.MAX_FAILED_STARTS):
        assert not supervised.workers[0].stopped
        supervised.worker(2 + attempt).exit(1)
    wait_until(lambda: supervised.workers[0].stopped)
    supervised.workers[0].exit(0)
    assert supervised.status() == 1
    assert supervised.restarts == supervisor.MAX_FAILED_STARTS


def test_a_worker_that_dies_while_serving_is_always_restarted(supervise):
    supervised = supervise(1)
    for attempt in range(3 * supervisor.MAX_FAILED_STARTS):
        supervised.worker(attempt).become_ready()
        supervised.worker(attempt).exit()
    supervised.worker(3 * supervisor.MAX_FAILED_STARTS).become_ready()
    assert supervised.stop() == 0


def test_a_reload_replaces_one_worker_at_a_time_once_its_successor_serves(supervise, wait_until):
    supervised = supervise(2)
    supervised.worker(0).become_ready()
    supervised.worker(1).become_ready()
    supervised.supervisor.reload()
    for old, new in ((0, 2), (1, 3)):
        assert supervised.worker(new).number == supervised.workers[old].number
        assert not supervised.workers[old].stopped
        supervised.workers[new].become_ready()
        wait_until(lambda old=old: supervised.workers[old].stopped)
        assert len(supervised.workers) == new + 1
        supervised.workers[old].exit(0)
    wait_until(lambda: not supervised.supervisor._stopping)
    assert len(supervised.workers) == 4
    supervised.supervisor.stop()
    for worker in supervised.workers[2:]:
        wait_until(lambda worker=worker: worker.stopped)
        worker.exit(0)
    assert supervised.status() == 0


def test_a_reload_that_fails_keeps_the_running_workers(supervise):
    supervised = supervise(2)
    supervised.worker(0).become_ready()
    supervised.worker(1).become_ready()
    supervised.supervisor.reload()
    supervised.worker(2).exit(1)
    supervised.supervisor.reload()
    supervised.worker(3)
    assert not any(worker.stopped for worker in supervised.workers)
    assert supervised.stop() == 0


class TestAWorkerThatHasLostItsGpus:
    def test_is_stopped_before_its_successor_starts(self, supervise, wait_until):
        supervised = supervise(2)
        supervised.worker(0).become_ready()
        supervised.worker(1).become_ready()
        supervised.workers[1].lose_devices()
        wait_until(lambda: supervised.workers[1].stopped)
        assert len(supervised.workers) == 2
        supervised.workers[1].exit(0)
        assert supervised.worker(2).number == 1
        supervised.workers[2].become_ready()
        assert not supervised.workers[0].stopped
        assert supervised.restarts == 0
        assert supervised.stop() == 0

    def test_is_replaced_once_a_minute_at_most(self, supervise, wait_until, monkeypatch):
        monkeypatch.setattr(supervisor, "REPLACE_SECONDS", 0.5)
        supervised = supervise(1)
        supervised.worker(0).become_ready()
        supervised.workers[0].lose_devices()
        wait_until(lambda: supervised.workers[0].stopped)
        replaced_at = supervisor.time.monotonic()
        supervised.workers[0].exit(0)
        supervised.worker(1).become_ready()
        supervised.workers[1].lose_devices()
        wait_until(lambda: supervised.workers[1].stopped)
        assert supervisor.time.monotonic() - replaced_at > 0.3
        supervised.workers[1].exit(0)
        supervised.worker(2).become_ready()
        assert supervised.stop() == 0

    def test_is_not_replaced_while_the_server_stops_or_once_it_has_died(self, supervise):
        supervised = supervise(1)
        supervised.worker(0).become_ready()
        supervised.workers[0].exit()
        supervised.worker(1).become_ready()
        supervised.workers[0].lose_devices()  # a late message
        assert supervised.stop() == 0
        assert len(supervised.workers) == 2


def test_a_worker_that_dies_during_a_reload_is_restarted_too(supervise):
    supervised = supervise(2)
    supervised.worker(0).become_ready()
    supervised.worker(1).become_ready()
    supervised.supervisor.reload()
    supervised.worker(2)
    supervised.workers[1].exit()
    assert supervised.worker(3).number == 1
    assert supervised.stop() == 0


def test_a_worker_that_does_not_stop_is_killed(supervise):
    supervised = supervise(1, stop_seconds=0.01)
    supervised.worker(0).become_ready()
    supervised.supervisor.stop()
    assert supervised.status() == 1
    assert supervised.workers[0].killed


def test_a_worker_that_hangs_is_killed_and_restarted(supervise):
    supervised = supervise(2)
    supervised.worker(0).become_ready()
    supervised.worker(1).become_ready()
    supervised.workers[1].hang_reason = "gave no sign of life for 10 s"
    assert supervised.worker(2).number == 1
    assert supervised.workers[1].killed
    assert not supervised.workers[0].killed
    assert supervised.stop() == 0


def test_a_worker_that_hangs_while_it_stops_is_killed(supervise, wait_until):
    supervised = supervise(1)
    supervised.worker(0).become_ready()
    supervised.supervisor.stop()
    wait_until(lambda: supervised.workers[0].stopped)
    supervised.workers[0].hang_reason = "gave no sign of life for 10 s"
    assert supervised.status() == 1
    assert len(supervised.workers) == 1


def test_a_quarantine_replaces_the_workers_that_serve_the_model(supervise, wait_until):
    supervised = supervise(2)
    supervised.worker(0).become_ready()
    supervised.worker(1).become_ready()
    supervised.workers[0].crash_in("a")
    supervised.worker(2).become_ready()
    supervised.workers[1].crash_in("a")
    wait_until(lambda: [key.name for key in supervised.quarantine.reasons] == ["a"])
    started = {supervised.worker(n).number: supervised.worker(n) for n in (3, 4)}
    assert not supervised.workers[2].stopped
    started[0].become_ready()
    wait_until(lambda: supervised.workers[2].stopped)
    supervised.workers[2].exit(0)
    started[1].become_ready()
    assert len(supervised.workers) == 5
    assert supervised.stop() == 0


def test_starts_that_fail_until_several_models_are_quarantined_do_not_end_the_server(supervise):
    supervised = supervise(1)
    supervised.worker(0).become_ready()
    crashes = [name for name in "abcd" for _ in range(2)]
    for attempt, name in enumerate(crashes):
        supervised.worker(attempt).crash_in(name)
    supervised.worker(len(crashes)).become_ready()
    assert {key.name for key in supervised.quarantine.reasons} == set("abcd")
    assert supervised.stop() == 0


def test_without_overlap_a_worker_ends_before_its_successor_starts(supervise, wait_until):
    supervised = supervise(1, overlap=False)
    supervised.worker(0).become_ready()
    supervised.supervisor.reload()
    wait_until(lambda: supervised.workers[0].stopped)
    assert len(supervised.workers) == 1
    supervised.workers[0].exit(0)
    supervised.worker(1).become_ready()
    assert supervised.restarts == 0
    assert supervised.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="orphans come to process 1")
def test_orphans_are_reaped_and_workers_are_not():
    code = """
import ctypes, os, time
from neurona_server.processes.supervisor import reap_orphans

PR_SET_CHILD_SUBREAPER = 36  # as process 1 is
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
if not (worker := os.fork()):
    if not os.fork():
        time.sleep(0.3)
    os._exit(0)
assert os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
reap_orphans({worker})
assert os.waitpid(worker, 0) == (worker, 0)
while True:
    reap_orphans({worker})
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        break
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
