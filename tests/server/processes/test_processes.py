"""What holds several processes together, without the server that they are."""

import os
import socket
import threading

import pytest

from neurona_server.config.options import Config
from neurona_server.config.sources import check_processes
from neurona_server.errors import ConfigError
from neurona_server.processes import supervisor
from neurona_server.processes.channel import Channel
from neurona_server.processes.ports import ReservedPorts
from neurona_server.processes.supervisor import Supervisor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "127.0.0.1:1,unix:/s"}, "expected HOST:PORT as address"),
        ({"model_control": "explicit"}, "expected model_control poll or none"),
        ({"shared_memory": True}, "expected shared_memory false"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(options, message):
    with pytest.raises(ConfigError, match=f"processes is 2: {message}"):
        check_processes(Config(processes=2, **options))
    check_processes(Config(processes=2))


def test_a_port_is_chosen_once_and_shared():
    held = ReservedPorts("127.0.0.1:0,127.0.0.1:0")
    first, second = held.addresses.split(",")
    assert first != second
    port = int(first.rpartition(":")[2])
    with listening(port, shared=True), listening(port, shared=True):
        pass
    held.close()


def test_a_port_is_held_while_nobody_listens():
    held = ReservedPorts("127.0.0.1:0")
    port = int(held.addresses.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        listening(port)
    held.close()
    listening(port).close()


@pytest.mark.parametrize("shared", [True, False])
def test_another_server_s_port_is_not_taken(shared):
    with listening(0, shared=shared) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"cannot listen on {address}: .*in use"):
            ReservedPorts(address)
        if shared:  # wanted, if an option says so
            ReservedPorts(address, shared=True).close()


def test_an_address_of_another_machine_is_an_error():
    address = "192.0.2.1:0"
    with pytest.raises(ConfigError, match=f"cannot listen on {address}"):
        ReservedPorts(address)


def test_a_name_with_addresses_of_both_kinds_has_one_port():
    held = ReservedPorts("localhost:0")
    assert int(held.addresses.removeprefix("localhost:")) > 0
    held.close()


def listening(port, *, shared=False):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    try:
        one.bind(("127.0.0.1", port))
        one.listen()
    except OSError:
        one.close()
        raise
    return one


def test_messages_of_any_size_arrive_and_the_end_is_seen():
    ours, theirs = socket.socketpair()
    sender, receiver = Channel(ours), Channel(theirs)
    page = os.urandom(1 << 20)
    thread = threading.Thread(target=sender.send, args=["page", page])
    thread.start()
    assert receiver.receive() == ("page", page)
    thread.join()
    sender.send("stop")
    ours.sendall(b"\x04")  # and dies in the middle of a message
    sender.close()
    assert receiver.receive() == ("stop", b"")
    assert receiver.receive() is None
    receiver.send("page")  # to nobody
    receiver.close()


class Worker:
    """A process that does as the test says."""

    def __init__(self, number, happened):
        self.number, self.pid, self.happened = number, 0, happened
        self.ready_since, self.status, self.end = 0.0, 0, "ended"
        self.told, self.killed = False, False

    def ready(self):
        self.ready_since = 1e-9 + supervisor.time.monotonic()
        self.happened("ready", self)

    def dies(self, status=-9):
        self.status = status
        self.happened("gone", self)

    def stop(self):
        self.told = True

    def kill(self):
        self.killed = True
        self.dies()


class Supervised:
    """A supervisor, its thread, and all the workers that it has started, in their order."""

    def __init__(self, processes, wait_until, drain=60.0):
        self.workers, self.restarts, self._wait_until = [], 0, wait_until
        self.supervisor = Supervisor(processes, self._start, self._restarted, drain)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def worker(self, number):
        """The one that was started as the so many-th."""
        self._wait_until(lambda: len(self.workers) > number)
        return self.workers[number]

    def status(self):
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self._status

    def stop(self):
        self.supervisor.stop()
        for worker in [w for w in self.workers if not w.status]:
            self._wait_until(lambda worker=worker: worker.told)
            worker.dies(0)
        return self.status()

    def _start(self, number, happened):
        self.workers.append(Worker(number, happened))
        return self.workers[-1]

    def _restarted(self):
        self.restarts += 1

    def _run(self):
        self._status = self.supervisor.run()


@pytest.fixture
def supervise(wait_until, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.002)
    return lambda processes, **options: Supervised(processes, wait_until, **options)


def test_the_first_starts_alone_and_the_others_after_it(supervise):
    one = supervise(3)
    one.worker(0).ready()
    assert [one.worker(n).number for n in range(3)] == [0, 1, 2]
    for worker in one.workers[1:]:
        worker.ready()
    assert one.stop() == 0
    assert one.restarts == 0


def test_one_that_says_why_it_cannot_serve_ends_a_start(supervise):
    one = supervise(2)
    one.worker(0).dies(1)
    assert one.status() == 1
    assert len(one.workers) == 1


def test_one_that_never_comes_to_serve_ends_the_whole_and_the_others_drain(supervise, wait_until):
    one = supervise(2)
    one.worker(0).ready()
    one.worker(1).ready()
    one.worker(1).dies()
    for attempt in range(supervisor.ATTEMPTS):
        assert not one.workers[0].told
        one.worker(2 + attempt).dies(1)
    wait_until(lambda: one.workers[0].told)
    one.workers[0].dies(0)
    assert one.status() == 1
    assert one.restarts == supervisor.ATTEMPTS


def test_one_that_dies_while_it_serves_is_started_again_for_ever(supervise):
    one = supervise(1)
    for attempt in range(3 * supervisor.ATTEMPTS):
        one.worker(attempt).ready()
        one.worker(attempt).dies()
    one.worker(3 * supervisor.ATTEMPTS).ready()
    assert one.stop() == 0


def test_a_reload_has_one_more_at_a_time_and_stops_the_old_after_the_new_serves(
    supervise, wait_until
):
    one = supervise(2)
    one.worker(0).ready()
    one.worker(1).ready()
    one.supervisor.reload()
    for old, new in ((0, 2), (1, 3)):
        assert one.worker(new).number == one.workers[old].number
        assert not one.workers[old].told
        one.workers[new].ready()
        wait_until(lambda old=old: one.workers[old].told)
        assert len(one.workers) == new + 1
        one.workers[old].dies(0)
    wait_until(lambda: not one.supervisor._leaving)
    assert len(one.workers) == 4
    one.supervisor.stop()
    for worker in one.workers[2:]:
        wait_until(lambda worker=worker: worker.told)
        worker.dies(0)
    assert one.status() == 0


def test_a_reload_that_fails_leaves_what_serves(supervise):
    one = supervise(2)
    one.worker(0).ready()
    one.worker(1).ready()
    one.supervisor.reload()
    one.worker(2).dies(1)
    one.supervisor.reload()
    one.worker(3)
    assert not any(worker.told for worker in one.workers)
    assert one.stop() == 0


def test_one_that_dies_during_a_reload_is_started_again_too(supervise):
    one = supervise(2)
    one.worker(0).ready()
    one.worker(1).ready()
    one.supervisor.reload()
    one.worker(2)
    one.workers[1].dies()
    assert one.worker(3).number == 1
    assert one.stop() == 0


def test_what_does_not_stop_is_killed(supervise):
    one = supervise(1, drain=0.01)
    one.worker(0).ready()
    one.supervisor.stop()
    assert one.status() == 1
    assert one.workers[0].killed
