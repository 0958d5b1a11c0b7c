"""Unary calls: on cygrpc, and on grpcio's public API."""

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


class UnknownCygrpc:
    """A cygrpc without the classes that the client uses."""

    def __getattr__(self, name):
        raise AttributeError(f"cygrpc has no {name}")


@pytest.fixture(params=["usable", "absent", "unknown"], autouse=True)
def cygrpc(request, monkeypatch):
    if request.param != "usable":
        cygrpc = None if request.param == "absent" else UnknownCygrpc()
        monkeypatch.setattr(grpc_calls, "cygrpc", cygrpc)
    return request.param


def address(server):
    return f"127.0.0.1:{server.port}"


def queued_rows(server):
    return server.count("queue_rows", model="classifier", version="2")


def load(client):
    return client._base.pool.endpoints[0].load


def test_each_thread_gets_its_own_results(server, cygrpc, caplog):
    with Client(address(server), timeout=60, coalesce=False) as client:
        wrong = []

        def predict(caller):
            for number in range(20):
                value = 1000.0 * caller + number
                series = np.array([value, 1.0], np.float32)
                if client.predict("regressor", series).value != value + 1:
                    wrong.append((caller, number))

        threads = [threading.Thread(target=predict, args=(caller,)) for caller in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert load(client) == 0
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    # One for each method, not one for each call.
    assert bool(warnings) is (cygrpc == "unknown")
    assert all("falling back to grpcio's public API" in one.message for one in warnings)
    assert len(warnings) <= 2


def test_each_coroutine_gets_its_own_result(server):
    async def main():
        async with AsyncClient(address(server), timeout=60, coalesce=False) as client:

            async def predict(value):
                series = np.array([value, 1.0], np.float32)
                return (await client.predict("regressor", series)).value

            assert await asyncio.gather(*map(predict, range(300))) == [
                one + 1 for one in range(300)
            ]
            assert load(client) == 0

    asyncio.run(main())


def test_an_error_has_the_details_of_the_server(make_server):
    server = make_server(BatchPolicy(max_queue_rows=1), start_models=False)
    with Client(address(server), coalesce=False, retries=Retries(max_attempts=1)) as client:
        with pytest.raises(neurona_client.NotFoundError, match="clasifier") as missing:
            client.predict("clasifier", ROW)
        assert missing.value.request_id
        with pytest.raises(neurona_client.DeadlineExceededError, match=r"within 0\.1 s|deadline"):
            client.predict("classifier", ROW, timeout=0.1)
        waiting = threading.Thread(target=lambda: client.predict("classifier", ROW))
        waiting.start()
        while not queued_rows(server):
            pass
        with pytest.raises(neurona_client.OverloadedError) as rejected:
            client.predict("classifier", ROW)
        assert rejected.value.retry_after > 0
        server.registry.resolve("classifier").start()
        waiting.join()
        assert load(client) == 0


def test_a_cancelled_coroutine_cancels_its_request_on_the_server(make_server, wait_until):
    server = make_server(start_models=False)

    async def main():
        async with AsyncClient(address(server), coalesce=False) as client:
            task = asyncio.create_task(client.predict("classifier", ROW))
            while not queued_rows(server):
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while queued_rows(server):  # until the server has removed it
                await asyncio.sleep(0.005)
            server.registry.resolve("classifier").start()
            assert (await client.predict("classifier", ROW)).label == "cat"
            assert load(client) == 0

    asyncio.run(asyncio.wait_for(main(), 30))


def test_closing_the_client_ends_calls_in_flight(make_server, wait_until):
    server = make_server(start_models=False)
    client = Client(address(server), coalesce=False)
    messages = []

    def predict():
        try:
            client.predict("classifier", ROW)
        except neurona_client.ClosedError as error:
            messages.append(str(error))

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: queued_rows(server) == 3)
    client.close()
    for thread in threads:
        thread.join()
    assert messages == ["client closed"] * 3


def test_an_exception_in_a_callback_affects_no_other_call(server):
    with Client(address(server), coalesce=False, timeout=20) as client:
        client.predict("classifier", ROW)
        method = grpc_calls.UnaryMethod(
            client._base.pool.endpoints[0].channel, "/grpc.health.v1.Health/Check"
        )
        called = threading.Event()

        def failing_callback(_):
            called.set()
            raise LookupError("a bug")

        method.start(b"", 10, (), failing_callback)
        assert called.wait(10)
        assert client.predict("classifier", ROW).label == "cat"
