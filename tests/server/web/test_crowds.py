"""Readers who leave, crowds of them, and a process without file descriptors."""

import asyncio
import contextlib
import os
import resource
import socket
import sys
import threading
import time
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.registry import Collector

from neurona_server.web import acceptor, renders
from neurona_server.web.acceptor import DescriptorReserve
from neurona_server.web.metrics_server import MetricsServer
from neurona_server.web.renders import SharedRenders, TooManyRendersError

METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


class BlockingCollector(Collector):
    """Collects when the test allows it."""

    def __init__(self):
        self.started, self.resume, self.count = threading.Semaphore(0), threading.Event(), 0

    def describe(self):
        return []

    def collect(self):
        self.count += 1
        self.started.release()
        self.resume.wait(60)
        return []


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def server(registry):
    server = MetricsServer("127.0.0.1:0", registry, lambda: "SERVING")
    yield server
    server.close()


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def get(server, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=60) as response:
        return response.read()


def test_pages_of_readers_who_have_left_are_not_rendered(server, registry, wait_until):
    blocking = BlockingCollector()
    registry.register(blocking)
    with connect(server) as first:
        first.sendall(METRICS)
        assert blocking.started.acquire(timeout=30)
        for number in range(100):
            with connect(server) as one:
                accept = b"gzip" if number % 2 else b"identity"
                one.sendall(METRICS[:-2] + b"Accept-Encoding: " + accept + b"\r\n\r\n")
        wait_until(lambda: server.connection_count == 1)
        assert get(server, "/healthz") == b"SERVING\n"
        blocking.resume.set()
        assert first.recv(1 << 16)
    get(server, "/metrics")
    assert blocking.count == 2


def test_a_crowd_of_readers_who_leave_shuts_nobody_out(server, registry):
    gauge = Gauge("g", "Many.", ["of"], registry=registry)
    for number in range(20_000):
        gauge.labels(number).set(number)
    stopping = threading.Event()

    def come_and_go():
        while not stopping.is_set():
            with contextlib.suppress(OSError), connect(server) as one:
                one.sendall(METRICS)
                stopping.wait(0.1)

    threads = [threading.Thread(target=come_and_go) for _ in range(50)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert get(server, "/healthz") == b"SERVING\n"
            assert b'g{of="19999"}' in get(server, "/metrics")
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def test_slow_readers_make_room_for_others(server, registry, monkeypatch):
    monkeypatch.setattr(server.limits, "crowd_send_seconds", 0.1)
    gauge = Gauge("g", "Large.", ["of"], registry=registry)
    for number in range(500):
        gauge.labels(f"{number} {'x' * 20_000}")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(server.limits.max_connections)]
        for one in slow:
            one.sendall(METRICS)
            with contextlib.suppress(ConnectionResetError):  # after SEND_SECONDS
                one.recv(1, socket.MSG_PEEK)  # it is being sent
        for _ in range(3):
            assert get(server, "/healthz") == b"SERVING\n"


def test_too_many_different_pages_are_refused(server, registry):
    blocking = BlockingCollector()
    registry.register(blocking)
    connections = [connect(server) for _ in range(renders.MAX_PENDING_RENDERS + 3)]
    for number, one in enumerate(connections):
        one.sendall(b"GET /metrics?name[]=%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
        if number == 0:
            assert blocking.started.acquire(timeout=30)
    for one in connections[-2:]:
        answer = b"".join(iter(lambda one=one: one.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in answer
    whole = threading.Thread(target=get, args=[server, "/metrics"])  # which is not refused
    whole.start()
    blocking.resume.set()
    whole.join()
    for one in connections:
        one.close()


def test_a_render_that_hangs_does_not_hold_back_the_next(monkeypatch):
    monkeypatch.setattr(renders, "HANG_SECONDS", 0.05)
    ending = threading.Event()

    def hang():
        ending.wait(60)
        return b"late", "text"

    async def check():
        shared = SharedRenders()
        hanging = []
        for number in range(renders.MAX_HANGING_RENDERS):
            hanging.append(asyncio.create_task(shared.get(number, hang)))
            if number == 0:
                assert await shared.get("next", lambda: (b"page", "text")) == (b"page", "text")
        while shared._hanging < renders.MAX_HANGING_RENDERS:
            await asyncio.sleep(0.01)
        with pytest.raises(TooManyRendersError):
            await shared.get("other", hang)
        ending.set()
        assert await asyncio.gather(*hanging) == [(b"late", "text")] * len(hanging)
        assert await shared.get("again", lambda: (b"page", "text")) == (b"page", "text")

    asyncio.run(check())


@pytest.fixture
def no_descriptors():
    """Takes all file descriptors of this process; gives them back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    descriptors = []

    def take():
        with contextlib.suppress(OSError):
            while True:
                descriptors.append(os.open(os.devnull, os.O_RDONLY))

    yield take
    for descriptor in descriptors:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_port_is_served_without_file_descriptors(server, registry, no_descriptors):
    Gauge("g", "Goes up and down.", registry=registry).set(7)
    sockets = [socket.socket() for _ in range(40)]  # made before there are none left
    no_descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        os.open(os.devnull, os.O_RDONLY)
    for one in sockets:
        one.settimeout(30)
        one.connect(("127.0.0.1", server.port))
        path = b"/healthz" if one.fileno() % 2 else b"/metrics"
        one.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda one=one: one.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
    for one in sockets:
        one.close()


def test_idle_connections_do_not_keep_the_last_descriptors(server, no_descriptors, monkeypatch):
    monkeypatch.setattr(server.limits, "crowd_head_seconds", 0.05)
    count = acceptor.SPARE_DESCRIPTORS + 5
    sockets = [socket.socket() for _ in range(count)]
    no_descriptors()
    for one in sockets:
        one.settimeout(30)
        one.connect(("127.0.0.1", server.port))
    sockets[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert sockets[-1].recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    for one in sockets:
        one.close()


def test_a_reserve_is_refilled():
    reserve = DescriptorReserve(3)
    assert reserve.give_up(2)
    assert not reserve.give_up(2)
    with reserve.lend(1):
        pass
    assert len(reserve._descriptors) == 3
    reserve.close()
    assert not reserve.give_up()


def test_python_switches_threads_as_before_after_a_render(server):
    before = renders._SWITCH_SECONDS_OF_PYTHON
    get(server, "/metrics")
    end = time.monotonic() + 30
    while pytest.approx(before) != sys.getswitchinterval():
        assert time.monotonic() < end
        time.sleep(0.01)
