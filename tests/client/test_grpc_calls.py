"""Calls that go alone: on what gRPC's public calls are built on, and by those."""

import asyncio
import logging
import threading

import numpy as np
import pytest

import neurona_client
from neurona_client import AsyncClient, Client, Retries
from neurona_client.transport import grpc_calls
from neurona_server.batching.policy import BatchPolicy

ROW = np.array([1, 2, 3, 4], np.float32)


class Other:
    """Where there is no completion queue, or one of another making."""

    def __getattr__(self, name):
        raise AttributeError(f"cygrpc has no {name}")


@pytest.fixture(params=["quick", "none", "another"], autouse=True)
def way(request, monkeypatch):
    if request.param != "quick":
        monkeypatch.setattr(grpc_calls, "cygrpc", None if request.param == "none" else Other())
    return request.param


def address(server):
    return f"127.0.0.1:{server.port}"


def queued(server):
    return server.count("queue_rows", model="classifier", version="2")


def load(client):
    return client._calls.fleet.endpoints[0].load


def test_many_at_once_get_their_own_answers(server, way, caplog):
    with Client(address(server), timeout=60, coalesce=False) as client:
        wrong = []

        def ask(caller):
            for number in range(20):
                value = 1000.0 * caller + number
                series = np.array([value, 1.0], np.float32)
                if client.predict("regressor", series).value != value + 1:
                    wrong.append((caller, number))

        threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert load(client) == 0
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    # One for each method, not one for each call.
    assert bool(warnings) is (way == "another")
    assert all("public API" in one.message for one in warnings)
    assert len(warnings) <= 2


def test_coroutines_get_their_own_answers(server):
    async def all_of_them():
        async with AsyncClient(address(server), timeout=60, coalesce=False) as client:

            async def ask(value):
                series = np.array([value, 1.0], np.float32)
                return (await client.predict("regressor", series)).value

            assert await asyncio.gather(*map(ask, range(300))) == [one + 1 for one in range(300)]
            assert load(client) == 0

    asyncio.run(all_of_them())


def test_an_error_brings_what_the_server_says(make_server):
    server = make_server(BatchPolicy(max_queue_rows=1), start_models=False)
    with Client(address(server), coalesce=False, retries=Retries(attempts=1)) as client:
        with pytest.raises(neurona_client.NotFoundError, match="clasifier") as missing:
            client.predict("clasifier", ROW)
        assert missing.value.request_id
        with pytest.raises(neurona_client.DeadlineError, match=r"within 0\.1 s|deadline"):
            client.predict("classifier", ROW, timeout=0.1)
        waiting = threading.Thread(target=lambda: client.predict("classifier", ROW))
        waiting.start()
        while not queued(server):
            pass
        with pytest.raises(neurona_client.OverloadedError) as refused:
            client.predict("classifier", ROW)
        assert refused.value.retry_after > 0
        server.registry.resolve("classifier").start()
        waiting.join()
        assert load(client) == 0


def test_a_cancelled_coroutine_takes_its_request_back(make_server, wait_until):
    server = make_server(start_models=False)

    async def give_up():
        async with AsyncClient(address(server), coalesce=False) as client:
            asking = asyncio.create_task(client.predict("classifier", ROW))
            while not queued(server):
                await asyncio.sleep(0.005)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            while queued(server):  # the server has heard of it
                await asyncio.sleep(0.005)
            server.registry.resolve("classifier").start()
            assert (await client.predict("classifier", ROW)).label == "cat"
            assert load(client) == 0

    asyncio.run(asyncio.wait_for(give_up(), 30))


def test_who_waits_as_the_client_is_closed_is_told(make_server, wait_until):
    server = make_server(start_models=False)
    client = Client(address(server), coalesce=False)
    ended = []

    def ask():
        try:
            client.predict("classifier", ROW)
        except neurona_client.ClosedError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: queued(server) == 3)
    client.close()
    for thread in threads:
        thread.join()
    assert ended == ["the client is closed"] * 3


def test_an_answer_that_cannot_be_told_costs_no_other_call(server):
    with Client(address(server), coalesce=False, timeout=20) as client:
        client.predict("classifier", ROW)
        method = grpc_calls.Method(
            client._calls.fleet.endpoints[0].channel, "/grpc.health.v1.Health/Check"
        )
        told = threading.Event()

        def odd(_):
            told.set()
            raise LookupError("a bug")

        method.start(b"", 10, (), odd)
        assert told.wait(10)
        assert client.predict("classifier", ROW).label == "cat"
