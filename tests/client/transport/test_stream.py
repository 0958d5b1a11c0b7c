"""Calls that share a stream: deadlines, cancellation, backpressure, lost streams."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import neurona_client
from neurona_client import AsyncClient, Client, Retries
from neurona_client.calls.sync_driver import ThreadReply
from neurona_client.transport import endpoint, endpoint_pool, grpc_calls
from neurona_server.batching.policy import BatchPolicy
from neurona_server.rpc.transports.listener import ListenerOptions

ROW = np.array([1, 2, 3, 4], np.float32)


def address(server):
    return f"127.0.0.1:{server.port}"


def queued_rows(server):
    """Rows in the queue of the classifier."""
    return server.count("queue_rows", model="classifier", version="2")


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_each_thread_gets_its_own_results(server):
    wrong = []
    with Client(address(server), timeout=60) as client:

        def predict(caller):
            for number in range(100):
                value = 1000.0 * caller + number
                series = np.array([value, 1.0], np.float32)
                if client.predict("regressor", series).value != value + 1:
                    wrong.append((caller, number))

        for thread in [in_thread(lambda caller=caller: predict(caller)) for caller in range(16)]:
            thread.join()
        assert client._base.capacity.in_flight == (0, 0)
    assert not wrong


def test_streamed_and_unary_calls_give_the_same_results(server):
    rows = np.random.default_rng(0).normal(0, 1, (20, 4)).astype(np.float32)
    with (
        Client(address(server), timeout=20) as streaming,
        Client(address(server), timeout=20, coalesce=False) as unary,
    ):
        for options in ({}, {"top_k": 3}, {"raw_outputs": True}, {"version": 1}):
            for inputs in (rows[0], rows, rows.astype(np.float64), rows.tolist()):
                one = streaming.predict("classifier", inputs, **options)
                other = unary.predict("classifier", inputs, **options)
                assert len(one) == len(other)
                for row, other_row in zip(one, other, strict=True):
                    assert row.label == other_row.label
                    assert row.probability == pytest.approx(other_row.probability, rel=1e-5)


def test_a_deadline_is_kept_and_the_stream_stays_open(make_server):
    server = make_server(start_models=False)
    with Client(address(server)) as client:
        for _ in range(3):
            with pytest.raises(neurona_client.DeadlineExceededError, match=r"within 0.2 s"):
                client.predict("classifier", ROW, timeout=0.2)
        server.registry.resolve("classifier").start()
        for _ in range(3):
            assert client.predict("classifier", ROW, timeout=20).label == "cat"
        assert client._base.capacity.in_flight == (0, 0)


def test_a_cancelled_coroutine_abandons_its_request(make_server, wait_until):
    server = make_server(start_models=False)

    async def main():
        async with AsyncClient(address(server)) as client:
            tasks = [asyncio.create_task(client.predict("classifier", ROW)) for _ in range(3)]
            while queued_rows(server) < 3:
                await asyncio.sleep(0.005)
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            server.registry.resolve("classifier").start()
            assert [(await tasks[number]).label for number in (0, 2)] == ["cat", "cat"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0):
                    await client.predict("classifier", ROW)
            assert (await client.predict("classifier", ROW)).label == "cat"
            assert client._base.capacity.in_flight == (0, 0)

    asyncio.run(main())


def test_a_rejected_request_is_retried_after_the_time_that_the_server_names(
    make_server, wait_until
):
    server = make_server(BatchPolicy(max_queue_rows=2), start_models=False)
    model = server.registry.resolve("classifier")
    results = []
    with Client(address(server), retries=Retries(max_attempts=1)) as client:
        threads = [
            in_thread(lambda: results.append(client.predict("classifier", ROW))) for _ in range(2)
        ]
        wait_until(lambda: queued_rows(server) == 2)
        with pytest.raises(neurona_client.OverloadedError) as caught:
            client.predict("classifier", ROW)
        assert caught.value.retry_after >= 0.001
        with Client(address(server), retries=Retries(max_attempts=50)) as patient:
            threads.append(
                in_thread(lambda: results.append(patient.predict("classifier", ROW, timeout=30)))
            )
            model.start()
            for thread in threads:
                thread.join()
    assert [result.label for result in results] == ["cat"] * 3


def test_requests_in_flight_are_bounded_and_the_others_wait(make_server, wait_until):
    server = make_server(start_models=False)
    calls, limit = 30, 4

    async def main():
        async with AsyncClient(address(server), max_pending_requests=limit) as client:
            first = asyncio.create_task(client.predict("classifier", ROW))
            while not queued_rows(server):
                await asyncio.sleep(0.005)
            tasks = [asyncio.create_task(client.predict("classifier", ROW)) for _ in range(calls)]
            while queued_rows(server) < limit:
                await asyncio.sleep(0.005)
            assert client._base.capacity.in_flight[0] == limit
            with pytest.raises(neurona_client.DeadlineExceededError):
                await client.predict("classifier", ROW, timeout=0.05)
            assert queued_rows(server) == limit
            server.registry.resolve("classifier").start()
            results = await asyncio.gather(first, *tasks)
            assert [result.label for result in results] == ["cat"] * (calls + 1)
            assert client._base.capacity.in_flight == (0, 0)

    asyncio.run(main())


def test_a_stream_that_reaches_its_maximum_age_is_replaced_without_failures(make_server):
    options = ListenerOptions(max_connection_age=0.1, max_connection_age_grace=0.15)
    server = make_server(options=options)
    end = time.monotonic() + 60
    with Client(address(server), timeout=20) as client:
        streams = set()
        while len(streams) < 4:
            assert client.predict("classifier", ROW).label == "cat"
            streams.add(client._base.pool.endpoints[0].stream)
            assert time.monotonic() < end


def test_a_restarted_server_is_used_again(make_server):
    first = make_server()
    with Client(address(first), retries=Retries(unreachable_timeout=30)) as client:
        assert client.predict("classifier", ROW).label == "cat"
        first.listener.stop(0.0)
        results = []
        thread = in_thread(lambda: results.append(client.predict("classifier", ROW)))
        second = make_server(address=address(first))
        thread.join()
        assert [result.label for result in results] == ["cat"]
        assert second.port == first.port


def test_closing_the_client_ends_calls_in_flight(make_server, wait_until):
    server = make_server(start_models=False)
    client = Client(address(server))
    messages = []

    def predict():
        try:
            client.predict("classifier", ROW)
        except neurona_client.ClosedError as error:
            messages.append(str(error))

    threads = [in_thread(predict) for _ in range(4)]
    wait_until(lambda: queued_rows(server) == 4)
    client.close()
    for thread in threads:
        thread.join()
    assert messages == ["client closed"] * 4


FORKING_PROGRAM = """
import os, sys
import numpy as np
from neurona_client import Client

row = np.array([1, 2, 3, 4], np.float32)
with Client(sys.argv[1], timeout=20) as client:
    print(client.predict("classifier", row).label, flush=True)
    child = os.fork()
    if not child:
        try:
            client.predict("classifier", row)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(client.predict("classifier", row).label)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_must_create_its_own_client(server):
    # In a separate process: gRPC's C core may crash in the child of a process that runs a server.
    command = [
        sys.executable,
        "-W",
        "ignore:This process:DeprecationWarning",
        "-c",
        FORKING_PROGRAM,
    ]
    done = subprocess.run(
        [*command, address(server)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, error, last = done.stdout.splitlines()
    assert (first, last) == ("cat", "cat")
    assert error.startswith("ClosedError: client was created in process ")


def test_ctrl_c_ends_one_call_and_no_other(make_server, wait_until):
    # Shells ignore the signal in what they run in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    server = make_server(start_models=False)
    with Client(address(server)) as client:
        results = []
        other = in_thread(lambda: results.append(client.predict("classifier", ROW)))
        wait_until(lambda: queued_rows(server) == 1)

        def waits():
            """Whether the main thread waits: a signal just before it does would not wake it."""
            frame = sys._current_frames()[threading.main_thread().ident]
            return frame.f_code is ThreadReply.wait.__code__

        def interrupt():
            wait_until(lambda: queued_rows(server) == 2 and waits())
            time.sleep(0.2)  # from there to the system's own wait
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.predict("classifier", ROW)
        interrupting.join()
        server.registry.resolve("classifier").start()
        other.join()
        assert [result.label for result in results] == ["cat"]
        assert client.predict("classifier", ROW).label == "cat"
        assert client._base.capacity.in_flight == (0, 0)


def test_a_server_with_a_small_message_limit_gets_unary_calls(make_server):
    options = ListenerOptions(max_message_bytes=3000)
    server = make_server(options=options)
    series = np.ones(500, np.float32)

    async def main():
        async with AsyncClient(address(server), timeout=20) as client:
            results = await asyncio.gather(
                *(client.predict("regressor", series) for _ in range(20))
            )
            assert [result.value for result in results] == [500.0] * 20
            assert not client._base.pool.endpoints[0].accepts_streams

    asyncio.run(main())


def test_a_name_is_resolved_to_all_its_addresses_and_resolved_again(make_server, monkeypatch):
    servers = [make_server(), make_server(), make_server()]
    resolved = servers[:2]

    def resolve_target(target):
        assert target == "dns:///models:8001"
        return [
            endpoint.ResolvedTarget(f"ipv4:127.0.0.1:{server.port}", "models")
            for server in resolved
        ]

    monkeypatch.setattr(endpoint_pool, "resolve_target", resolve_target)

    def predicted_rows():
        return [
            server.count("batch_rows_sum", model="classifier", version="2") for server in servers
        ]

    with Client("dns:///models:8001", timeout=20) as client:
        wait_until_all_reachable(client)
        for _ in range(20):
            client.predict("classifier", ROW)
        assert min(predicted_rows()[:2]) > 0
        assert predicted_rows()[2] == 0
        resolved[:] = servers[1:]
        client._base.pool.resolve()
        wait_until_all_reachable(client)
        before = predicted_rows()
        for _ in range(20):
            client.predict("classifier", ROW)
        assert predicted_rows()[0] == before[0]
        assert predicted_rows()[2] > 0


def wait_until_all_reachable(client):
    end = time.monotonic() + 10
    while not all(endpoint.reachable for endpoint in client._base.pool.endpoints):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_names_are_resolved():
    targets = endpoint.resolve_target("dns:///localhost:8001")
    assert endpoint.ResolvedTarget("ipv4:127.0.0.1:8001", "localhost") in targets
    for target in ("dns:///nobody.invalid:8001", "dns://8.8.8.8/models:8001", "host:1", "dns:x"):
        assert endpoint.resolve_target(target) == [endpoint.ResolvedTarget(target)]


class UnknownCygrpc:
    """A cygrpc without the classes that the client uses."""

    def __getattr__(self, name):
        raise AttributeError(f"cygrpc has no {name}")


@pytest.mark.parametrize("cygrpc", [None, UnknownCygrpc()], ids=["absent", "unknown"])
def test_streams_use_the_public_api_without_a_usable_cygrpc(make_server, monkeypatch, cygrpc):
    monkeypatch.setattr(grpc_calls, "cygrpc", cygrpc)
    first = make_server()
    results = []
    with Client(address(first), retries=Retries(unreachable_timeout=30)) as client:

        def predict():
            for number in range(50):
                series = np.array([number, 1.0], np.float32)
                results.append(client.predict("regressor", series).value == number + 1)

        for thread in [in_thread(predict) for _ in range(8)]:
            thread.join()
        assert results == [True] * 400
        stream = client._base.pool.endpoints[0].stream
        assert isinstance(stream._byte_stream, grpc_calls.PublicApiStream)
        first.listener.stop(0.0)
        make_server(address=address(first))
        assert client.predict("classifier", ROW).label == "cat"
    slow = make_server(start_models=False)
    with Client(address(slow)) as client:
        with pytest.raises(neurona_client.DeadlineExceededError):
            client.predict("classifier", ROW, timeout=0.2)
        slow.registry.resolve("classifier").start()
        assert client.predict("classifier", ROW).label == "cat"


def test_streams_use_cygrpc_if_it_works(server):
    with Client(address(server), timeout=20) as client:
        client.predict("classifier", ROW)
        assert isinstance(
            client._base.pool.endpoints[0].stream._byte_stream, grpc_calls.CygrpcStream
        )
