"""Servers that hang: their connections are open, and nothing comes from them."""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from support.server_process import ServerProcess

from neurona_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    Retries,
    UnavailableError,
)
from neurona_client.transport import endpoint, grpc_calls

ROW = np.ones(4, np.float32)
COALESCE = pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])


@pytest.fixture(scope="module")
def started(repository):
    with (
        ServerProcess(repository, "--log-level", "warning") as first,
        ServerProcess(repository, "--log-level", "warning") as second,
    ):
        yield first, second


@pytest.fixture
def servers(started):
    yield started
    started[0].send_signal(signal.SIGCONT)


def addresses(servers):
    return [server.address for server in servers]


def endpoint_of(client, server):
    endpoints = client._base.pool.endpoints
    return next(one for one in endpoints if one.resolved_target.target == server.address)


class Callers:
    """Threads that call without a pause, and how long each call took or how it failed."""

    def __init__(self, client, count=8, **options):
        self.seconds, self.errors = [], []
        self._ended = threading.Event()
        self._client, self._options = client, options
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._ended.set()
        for thread in self._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self._threads), "a call has no answer"

    def _call(self):
        while not self._ended.is_set():
            started = time.monotonic()
            try:
                self._client.predict("classifier", ROW, **self._options)
            except Exception as error:
                self.errors.append(error)
            else:
                self.seconds.append(time.monotonic() - started)


@COALESCE
def test_calls_without_a_timeout_go_elsewhere_within_seconds(servers, coalesce, wait_until):
    with Client(addresses(servers), coalesce=coalesce) as client:
        client.wait_until_ready(60)
        hung = endpoint_of(client, servers[0])
        with Callers(client) as callers:
            wait_until(lambda: len(callers.seconds) > 100)
            servers[0].send_signal(signal.SIGSTOP)
            wait_until(lambda: hung.hanging and not hung.load)
            count = len(callers.seconds)
            wait_until(lambda: len(callers.seconds) > count + 100)
            callers.stop()
        assert not callers.errors
        assert max(callers.seconds) < 15  # about 3.5; it was 60
        servers[0].send_signal(signal.SIGCONT)
        wait_until(lambda: not hung.hanging)
        with Callers(client):
            wait_until(lambda: hung.load > 0)


def test_coroutines_go_elsewhere_within_seconds(servers):
    async def main():
        async with AsyncClient(addresses(servers)) as client:
            await client.wait_until_ready(60)

            async def call():
                started = time.monotonic()
                await client.predict("classifier", ROW)
                return time.monotonic() - started

            await asyncio.gather(*[call() for _ in range(100)])
            servers[0].send_signal(signal.SIGSTOP)
            return max(await asyncio.gather(*[call() for _ in range(100)]))

    assert asyncio.run(main()) < 15


@COALESCE
@pytest.mark.parametrize("timeout", [0.05, 0.3])
def test_few_calls_with_a_short_timeout_meet_a_server_that_hangs(
    servers, coalesce, timeout, wait_until
):
    with Client(addresses(servers), coalesce=coalesce) as client:
        client.wait_until_ready(60)
        client.predict("classifier", ROW)
        servers[0].send_signal(signal.SIGSTOP)
        with Callers(client, 4, timeout=timeout) as callers:
            hung = endpoint_of(client, servers[0])
            wait_until(lambda: hung.hanging)
            wait_until(lambda: len(callers.seconds) > 500)
        # Before the first ones have ended, each caller may have met it more than once.
        assert len(callers.errors) <= 4 * (2 + 0.3 / timeout)
        assert all(isinstance(error, DeadlineExceededError) for error in callers.errors)


@COALESCE
def test_a_server_that_takes_long_and_lives_is_kept(make_server, coalesce):
    servers = [make_server(start_models=False) for _ in range(2)]
    for server in servers:
        server.health.set({"": True})
    with Client([f"127.0.0.1:{server.port}" for server in servers], coalesce=coalesce) as client:
        client.wait_until_ready(60)
        client.describe("classifier")
        with Callers(client, 4) as callers, Callers(client, 4, timeout=0.2) as impatient:
            time.sleep(endpoint._CALL_SILENCE_SECONDS + endpoint._PROBE_TIMEOUT_SECONDS + 1.5)
            assert impatient.errors
            assert not any(one.hanging for one in client._base.pool.endpoints)
            assert not callers.seconds
            assert not callers.errors
            for server in servers:
                server.registry.resolve("classifier").start()
        assert not callers.errors
        assert callers.seconds


@contextlib.contextmanager
def silent_listener():
    """An address that accepts connections and sends nothing."""
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    for connection in accepted:
        connection.close()


@COALESCE
def test_an_address_that_accepts_and_is_silent_costs_no_call(servers, coalesce):
    with (
        silent_listener() as silent,
        Client([silent, servers[1].address], coalesce=coalesce, timeout=10) as client,
    ):
        started = time.monotonic()
        for _ in range(50):
            assert client.predict("classifier", ROW).label == "cat"
        assert time.monotonic() - started < 10


@COALESCE
def test_the_only_server_does_not_hang_any_more_once_it_answers(servers, coalesce, wait_until):
    """Else its later failures would be reported as silence, and retried only after a pause."""
    with Client(servers[0].address, coalesce=coalesce) as client:
        client.predict("classifier", ROW)
        hung = endpoint_of(client, servers[0])
        servers[0].send_signal(signal.SIGSTOP)
        with Callers(client, 1, timeout=0.2):
            wait_until(lambda: hung.hanging)
        wait_until(lambda: not hung._is_probing)  # no health check finds the server alive again
        servers[0].send_signal(signal.SIGCONT)
        assert client.predict("classifier", ROW, timeout=10).label == "cat"
        assert not hung.hanging
        assert client._base.pool.has_healthy_endpoint()


@pytest.mark.slow
@COALESCE
def test_without_another_server_calls_fail_as_unavailable(servers, coalesce):
    """They once waited for a minute."""
    retries = Retries(unreachable_timeout=1)
    with Client(servers[0].address, coalesce=coalesce, retries=retries) as client:
        client.predict("classifier", ROW)
        servers[0].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            client.predict("classifier", ROW)
        assert time.monotonic() - started < 30
        servers[0].send_signal(signal.SIGCONT)
        client.wait_until_ready(30)
        assert client.predict("classifier", ROW).label == "cat"


@pytest.mark.long
@pytest.mark.slow
def test_the_server_does_not_close_connections_for_their_pings(servers, monkeypatch):
    lost = []
    set_state = endpoint.Endpoint._set_state

    def record(self, **state):
        if not state["reachable"]:
            lost.append(self)
        set_state(self, **state)

    monkeypatch.setattr(endpoint.Endpoint, "_set_state", record)
    with Client(addresses(servers)) as client:
        client.predict("classifier", ROW)
        time.sleep(4 * endpoint._KEEPALIVE_MS / 1000)
        assert client.predict("classifier", ROW).label == "cat"
        assert not lost


class CancellingServer(grpc.GenericRpcHandler):
    """Ends every call with CANCELLED. It has no health service."""

    def service(self, details):
        if "Health" in details.method:
            return None

        def cancel(_, context):
            context.abort(grpc.StatusCode.CANCELLED, "RST_STREAM")

        return grpc.unary_unary_rpc_method_handler(cancel)


@pytest.mark.parametrize("cygrpc", ["usable", "absent"])
@pytest.mark.parametrize("passed", [True, False])
def test_a_call_that_is_cancelled_at_its_deadline_has_exceeded_it(passed, cygrpc, monkeypatch):
    """The server's clock may notice the deadline first. Otherwise the server is stopping."""
    if cygrpc == "absent":
        monkeypatch.setattr(grpc_calls, "cygrpc", None)
    if passed:
        monkeypatch.setattr(grpc_calls, "_CLOCK_TOLERANCE", 60)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[CancellingServer()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        retries = Retries(max_attempts=1)
        with (
            Client(f"127.0.0.1:{port}", coalesce=False, retries=retries) as client,
            pytest.raises(DeadlineExceededError if passed else UnavailableError),
        ):
            client.describe("classifier", timeout=30)
        server.stop(0).wait()
