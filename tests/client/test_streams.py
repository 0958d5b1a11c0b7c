"""Calls that share a stream: deadlines, giving up, waiting for room, streams that are lost."""

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
from neurona_client.transport import endpoint, endpoint_pool, grpc_calls
from neurona_server.batching.policy import BatchPolicy
from neurona_server.rpc.transports.listener import ListenerOptions

ROW = np.array([1, 2, 3, 4], np.float32)


def address(server):
    return f"127.0.0.1:{server.port}"


def queued(server):
    """How many rows wait for the classifier."""
    return server.count("queue_rows", model="classifier", version="2")


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_many_threads_get_their_own_answers(server):
    wrong = []
    with Client(address(server), timeout=60) as client:

        def ask(caller):
            for number in range(100):
                value = 1000.0 * caller + number
                series = np.array([value, 1.0], np.float32)
                if client.predict("regressor", series).value != value + 1:
                    wrong.append((caller, number))

        for thread in [in_thread(lambda caller=caller: ask(caller)) for caller in range(16)]:
            thread.join()
        assert client._calls.gate.inside == (0, 0)
    assert not wrong


def test_answers_are_those_of_calls_that_go_alone(server):
    rows = np.random.default_rng(0).normal(0, 1, (20, 4)).astype(np.float32)
    with (
        Client(address(server), timeout=20) as together,
        Client(address(server), timeout=20, coalesce=False) as alone,
    ):
        for options in ({}, {"top_k": 3}, {"raw_outputs": True}, {"version": 1}):
            for inputs in (rows[0], rows, rows.astype(np.float64), rows.tolist()):
                one = together.predict("classifier", inputs, **options)
                other = alone.predict("classifier", inputs, **options)
                assert len(one) == len(other)
                for mine, theirs in zip(one, other, strict=True):
                    assert mine.label == theirs.label
                    assert mine.probability == pytest.approx(theirs.probability, rel=1e-5)


def test_a_deadline_is_kept_and_the_stream_goes_on(make_server):
    server = make_server(start_models=False)
    with Client(address(server)) as client:
        for _ in range(3):
            with pytest.raises(neurona_client.DeadlineError, match=r"within 0.2 s"):
                client.predict("classifier", ROW, timeout=0.2)
        server.registry.resolve("classifier").start()
        for _ in range(3):
            assert client.predict("classifier", ROW, timeout=20).label == "cat"
        assert client._calls.gate.inside == (0, 0)


def test_a_cancelled_coroutine_gives_its_call_up(make_server, wait_until):
    server = make_server(start_models=False)

    async def main():
        async with AsyncClient(address(server)) as client:
            tasks = [asyncio.create_task(client.predict("classifier", ROW)) for _ in range(3)]
            while queued(server) < 3:
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
            assert client._calls.gate.inside == (0, 0)

    asyncio.run(main())


def test_a_full_queue_is_tried_again_when_the_server_says(make_server, wait_until):
    server = make_server(BatchPolicy(max_queue_rows=2), start_models=False)
    model = server.registry.resolve("classifier")
    answers = []
    with Client(address(server), retries=Retries(attempts=1)) as client:
        threads = [
            in_thread(lambda: answers.append(client.predict("classifier", ROW))) for _ in range(2)
        ]
        wait_until(lambda: queued(server) == 2)
        with pytest.raises(neurona_client.OverloadedError) as caught:
            client.predict("classifier", ROW)
        assert caught.value.retry_after >= 0.001
        with Client(address(server), retries=Retries(attempts=50)) as patient:
            threads.append(
                in_thread(lambda: answers.append(patient.predict("classifier", ROW, timeout=30)))
            )
            model.start()
            for thread in threads:
                thread.join()
    assert [answer.label for answer in answers] == ["cat"] * 3


def test_what_is_under_way_is_bounded_and_the_others_wait(make_server, wait_until):
    server = make_server(start_models=False)
    calls, most = 30, 4

    async def main():
        async with AsyncClient(address(server), max_pending_requests=most) as client:
            described = asyncio.create_task(client.predict("classifier", ROW))
            while not queued(server):
                await asyncio.sleep(0.005)
            tasks = [asyncio.create_task(client.predict("classifier", ROW)) for _ in range(calls)]
            while queued(server) < most:
                await asyncio.sleep(0.005)
            assert client._calls.gate.inside[0] == most
            with pytest.raises(neurona_client.DeadlineError):
                await client.predict("classifier", ROW, timeout=0.05)
            assert queued(server) == most
            server.registry.resolve("classifier").start()
            answers = await asyncio.gather(described, *tasks)
            assert [answer.label for answer in answers] == ["cat"] * (calls + 1)
            assert client._calls.gate.inside == (0, 0)

    asyncio.run(main())


def test_a_stream_grows_old_and_nobody_notices(make_server):
    options = ListenerOptions(max_connection_age=0.1, max_connection_age_grace=0.15)
    server = make_server(options=options)
    end = time.monotonic() + 2
    with Client(address(server), timeout=20) as client:
        streams = set()
        while time.monotonic() < end:
            assert client.predict("classifier", ROW).label == "cat"
            streams.add(id(client._calls.fleet.endpoints[0].stream))
    assert len(streams) > 1


def test_a_server_that_comes_back_is_found_again(make_server):
    first = make_server()
    with Client(address(first), retries=Retries(patience=30)) as client:
        assert client.predict("classifier", ROW).label == "cat"
        first.listener.stop(0.0)
        answers = []
        thread = in_thread(lambda: answers.append(client.predict("classifier", ROW)))
        second = make_server(address=address(first))
        thread.join()
        assert [answer.label for answer in answers] == ["cat"]
        assert second.port == first.port


def test_closing_ends_calls_that_are_under_way(make_server, wait_until):
    server = make_server(start_models=False)
    client = Client(address(server))
    ended = []

    def ask():
        try:
            client.predict("classifier", ROW)
        except neurona_client.ClosedError as error:
            ended.append(str(error))

    threads = [in_thread(ask) for _ in range(4)]
    wait_until(lambda: queued(server) == 4)
    client.close()
    for thread in threads:
        thread.join()
    assert ended == ["the client is closed"] * 4


FORKING = """
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
def test_a_child_process_is_told_to_make_its_own_client(server):
    # In a process of the client's own: gRPC's C core may crash in the child of a process in which
    # a server of its runs.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORKING]
    done = subprocess.run(
        [*command, address(server)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, told, last = done.stdout.splitlines()
    assert (first, last) == ("cat", "cat")
    assert told.startswith("ClosedError: the client was made in another process")


def test_ctrl_c_ends_the_call_and_nothing_else(make_server, wait_until):
    server = make_server(start_models=False)
    with Client(address(server)) as client:
        answers = []
        other = in_thread(lambda: answers.append(client.predict("classifier", ROW)))
        wait_until(lambda: queued(server) == 1)

        def interrupt():
            wait_until(lambda: queued(server) == 2)
            os.kill(os.getpid(), signal.SIGINT)

        interrupting = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.predict("classifier", ROW)
        interrupting.join()
        server.registry.resolve("classifier").start()
        other.join()
        assert [answer.label for answer in answers] == ["cat"]
        assert client.predict("classifier", ROW).label == "cat"
        assert client._calls.gate.inside == (0, 0)


def test_a_server_whose_messages_are_small_gets_calls_alone(make_server):
    options = ListenerOptions(max_message_bytes=3000)
    server = make_server(options=options)
    series = np.ones(500, np.float32)

    async def main():
        async with AsyncClient(address(server), timeout=20) as client:
            answers = await asyncio.gather(
                *(client.predict("regressor", series) for _ in range(20))
            )
            assert [answer.value for answer in answers] == [500.0] * 20
            assert not client._calls.fleet.endpoints[0].shares

    asyncio.run(main())


def test_a_name_stands_for_all_its_addresses_and_is_looked_up_again(make_server, monkeypatch):
    servers = [make_server(), make_server(), make_server()]
    known = servers[:2]

    def places(target):
        assert target == "dns:///models:8001"
        return [endpoint.Place(f"ipv4:127.0.0.1:{server.port}", "models") for server in known]

    monkeypatch.setattr(endpoint_pool, "places", places)

    def asked():
        return [
            server.count("batch_rows_sum", model="classifier", version="2") for server in servers
        ]

    with Client("dns:///models:8001", timeout=20) as client:
        all_reached(client)
        for _ in range(20):
            client.predict("classifier", ROW)
        assert min(asked()[:2]) > 0
        assert asked()[2] == 0
        known[:] = servers[1:]
        client._calls.fleet.refresh()
        all_reached(client)
        before = asked()
        for _ in range(20):
            client.predict("classifier", ROW)
        assert asked()[0] == before[0]
        assert asked()[2] > 0


def all_reached(client):
    end = time.monotonic() + 10
    while not all(endpoint.reachable for endpoint in client._calls.fleet.endpoints):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_names_are_looked_up():
    found = endpoint.places("dns:///localhost:8001")
    assert endpoint.Place("ipv4:127.0.0.1:8001", "localhost") in found
    for target in ("dns:///nobody.invalid:8001", "dns://8.8.8.8/models:8001", "host:1", "dns:x"):
        assert endpoint.places(target) == [endpoint.Place(target)]


class Other:
    """Where there is no completion queue, or one of another making."""

    def __getattr__(self, name):
        raise AttributeError(f"cygrpc has no {name}")


@pytest.mark.parametrize("other", [None, Other()], ids=["none", "another"])
def test_without_the_completion_queue_streams_go_by_the_public_api(make_server, monkeypatch, other):
    monkeypatch.setattr(grpc_calls, "cygrpc", other)
    first = make_server()
    answers = []
    with Client(address(first), retries=Retries(patience=30)) as client:

        def ask():
            for number in range(50):
                series = np.array([number, 1.0], np.float32)
                answers.append(client.predict("regressor", series).value == number + 1)

        for thread in [in_thread(ask) for _ in range(8)]:
            thread.join()
        assert answers == [True] * 400
        stream = client._calls.fleet.endpoints[0].stream
        assert isinstance(stream._wire, grpc_calls.PublicWire)
        first.listener.stop(0.0)
        make_server(address=address(first))
        assert client.predict("classifier", ROW).label == "cat"
    silent = make_server(start_models=False)
    with Client(address(silent)) as client:
        with pytest.raises(neurona_client.DeadlineError):
            client.predict("classifier", ROW, timeout=0.2)
        silent.registry.resolve("classifier").start()
        assert client.predict("classifier", ROW).label == "cat"


def test_the_completion_queue_is_used_where_it_suits(server):
    with Client(address(server), timeout=20) as client:
        client.predict("classifier", ROW)
        assert isinstance(client._calls.fleet.endpoints[0].stream._wire, grpc_calls.QuickWire)
