"""Timeouts of all sizes, and waiting for servers that are not reachable yet."""

import asyncio
import math
import threading

import numpy as np
import pytest

from neurona_client import AsyncClient, Client, DeadlineExceededError, Retries

ROW = np.array([1, 2, 3, 4], np.float32)


@pytest.mark.parametrize("coalesce", [True, False])
def test_a_huge_timeout_means_none(server, coalesce):
    with Client(f"127.0.0.1:{server.port}", coalesce=coalesce) as client:
        for timeout in (1e7, 1e12, 1e300, math.inf):
            for _ in range(2):  # with an operation, and on the fast path
                assert client.predict("classifier", ROW, timeout=timeout).label == "cat"


@pytest.mark.parametrize("coalesce", [True, False])
def test_a_call_whose_deadline_has_passed_is_not_sent(make_server, coalesce):
    server = make_server()
    address = f"127.0.0.1:{server.port}"

    def predicted_rows():
        return server.count("batch_rows_sum", model="classifier", version="2")

    async def predict_too_late():
        async with AsyncClient(address, coalesce=coalesce) as client:
            await client.predict("classifier", ROW)
            for timeout in (0, -1.0, 1e-9):
                with pytest.raises(DeadlineExceededError, match="within"):
                    await client.predict("classifier", ROW, timeout=timeout)
            assert client._base.capacity.in_flight == (0, 0)

    with Client(address, coalesce=coalesce) as client:
        client.predict("classifier", ROW)
        for timeout in (0, -1.0, 1e-9):
            with pytest.raises(DeadlineExceededError, match="within"):
                client.predict("classifier", ROW, timeout=timeout)
        with pytest.raises(ValueError, match="NaN"):
            client.predict("classifier", ROW, timeout=math.nan)
        assert client._base.capacity.in_flight == (0, 0)
    asyncio.run(predict_too_late())
    assert predicted_rows() == 2


def test_wait_until_ready_ignores_the_timeout_of_the_client(make_server):
    first = make_server()
    address = f"127.0.0.1:{first.port}"
    first.listener.stop(0.0)
    ready = threading.Event()
    failed = []
    with Client(address, timeout=0.05, retries=Retries(unreachable_timeout=0.1)) as client:

        def wait():
            try:
                client.wait_until_ready()
            except BaseException as error:
                failed.append(error)
            ready.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not ready.wait(0.5)
        make_server(address=address).health.set({"": True})
        thread.join()
    assert not failed


def test_wait_until_ready_accepts_the_name_of_one_model(make_server):
    server = make_server()
    server.health.set({"": True})
    with (
        Client(f"127.0.0.1:{server.port}") as client,
        pytest.raises(DeadlineExceededError, match="model 'nobody' "),
    ):
        client.wait_until_ready(1.0, models="nobody")
