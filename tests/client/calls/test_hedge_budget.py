"""Limits of hedging: its budget, deadlines, and errors of hedges."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import neurona_client
from neurona_client import AsyncClient, Client, Retries
from neurona_client.calls.hedging import HedgeBudget
from neurona_server.batching.policy import BatchPolicy

ROW = np.array([1, 2, 3, 4], np.float32)
QUICK_HEDGES = Retries(hedge_after=0.02)
WITH_AND_WITHOUT_STREAM = pytest.mark.parametrize(
    "coalesce", [True, False], ids=["coalescing", "unary"]
)


def all_serving(client):
    return all(endpoint.serving for endpoint in client._base.pool.endpoints)


def any_suspect(client):
    return any(endpoint.suspect_until for endpoint in client._base.pool.endpoints)


def address(server):
    return f"127.0.0.1:{server.port}"


def queued_rows(server):
    return int(server.count("queue_rows", model="classifier", version="2"))


@pytest.fixture
def make_slow(make_server):
    """Starts servers that answer no prediction until the test starts the model."""

    def make(**options):
        server = make_server(start_models=False, **options)
        server.health.set({"": True})
        return server

    return make


@WITH_AND_WITHOUT_STREAM
def test_slow_servers_get_no_more_hedges_than_the_budget(make_slow, wait_until, coalesce):
    servers = [make_slow() for _ in range(2)]
    calls = 60
    with Client(
        [address(server) for server in servers], coalesce=coalesce, retries=QUICK_HEDGES, timeout=30
    ) as client:
        wait_until(lambda: all_serving(client))
        with ThreadPoolExecutor(calls) as pool:
            futures = [pool.submit(client.predict, "classifier", ROW) for _ in range(calls)]
            budget = client._base.hedge_budget
            wait_until(lambda: budget.hedges_sent >= 10)
            wait_until(lambda: sum(map(queued_rows, servers)) == calls + budget.hedges_sent)
            assert budget.hedges_sent <= 10 + 0.1 * (
                calls + 3
            )  # with those that describe the model
            for server in servers:
                server.registry.resolve("classifier").start()
            assert [one.result().label for one in futures] == ["cat"] * calls
        assert client._base.capacity.in_flight == (0, 0)
        assert not any_suspect(client)


def test_the_budget_is_a_share_of_the_requests():
    budget = HedgeBudget(Retries(hedge_after=1.0, hedge_share=0.25))
    assert sum(budget.try_spend() for _ in range(100)) == 10  # what it starts with
    sent = 0
    for _ in range(400):
        budget.add_request()
        sent += budget.try_spend()
    assert sent == 100
    for _ in range(400):
        budget.add_request()
    assert sum(budget.try_spend() for _ in range(100)) == 10  # more cannot be saved up
    assert budget.hedges_sent == 120


@pytest.mark.parametrize(
    "retries", [Retries(), Retries(hedge_after=30)], ids=["off", "before the delay"]
)
def test_without_hedging_or_before_its_delay_nothing_is_sent_twice(make_slow, wait_until, retries):
    servers = [make_slow() for _ in range(2)]
    with Client([address(server) for server in servers], retries=retries) as client:
        wait_until(lambda: all_serving(client))
        with ThreadPoolExecutor(20) as pool:
            futures = [pool.submit(client.predict, "classifier", ROW) for _ in range(20)]
            wait_until(lambda: sum(map(queued_rows, servers)) == 20)
            with pytest.raises(neurona_client.DeadlineExceededError):
                client.predict("classifier", ROW, timeout=0.3)
            assert sum(map(queued_rows, servers)) == 21  # with the abandoned one
            for server in servers:
                server.registry.resolve("classifier").start()
            assert [one.result().label for one in futures] == ["cat"] * 20


def test_a_single_server_gets_each_request_once(make_slow):
    server = make_slow()
    with Client(address(server), retries=QUICK_HEDGES) as client:
        with pytest.raises(neurona_client.DeadlineExceededError, match=r"within 0.3 s"):
            client.predict("classifier", ROW, timeout=0.3)
        assert queued_rows(server) == 1
        assert client._base.hedge_budget.hedges_sent == 0


def test_an_overloaded_server_ends_the_hedging_of_a_call(make_slow, wait_until):
    """Of two calls, one starts at the full server, and one is hedged there: each is rejected once,
    and then waits for the other server."""
    slow = make_slow()
    full = make_slow(policy=BatchPolicy(max_queue_rows=1))
    with Client(address(full)) as first, ThreadPoolExecutor(3) as pool:
        filling = pool.submit(first.predict, "classifier", ROW)
        wait_until(lambda: queued_rows(full) == 1)
        retries = Retries(hedge_after=0.02, max_attempts=50)
        with Client([address(slow), address(full)], retries=retries) as client:
            wait_until(lambda: all_serving(client))
            client.describe("classifier", version=2)
            before = client._base.hedge_budget.hedges_sent
            futures = [pool.submit(client.predict, "classifier", ROW) for _ in range(2)]
            wait_until(lambda: queued_rows(slow) == 2)
            with pytest.raises(neurona_client.DeadlineExceededError):
                client.predict("classifier", ROW, timeout=0.3)  # time for more hedges
            assert client._base.hedge_budget.hedges_sent - before <= 2
            assert queued_rows(full) == 1
            slow.registry.resolve("classifier").start()
            assert [one.result().label for one in futures] == ["cat"] * 2
        full.registry.resolve("classifier").start()
        assert filling.result().label == "cat"


@WITH_AND_WITHOUT_STREAM
def test_deadlines_and_cancellation_end_both_attempts(make_slow, wait_until, coalesce):
    servers = [make_slow() for _ in range(2)]

    async def until(condition):
        while not condition():
            await asyncio.sleep(0.005)

    async def main():
        addresses = [address(server) for server in servers]
        async with AsyncClient(addresses, coalesce=coalesce, retries=QUICK_HEDGES) as client:
            wait_until(lambda: all_serving(client))
            with pytest.raises(neurona_client.DeadlineExceededError, match=r"within 0.3 s"):
                await client.predict("classifier", ROW, timeout=0.3)
            if not coalesce:  # the server still runs what a stream has sent
                await until(lambda: [queued_rows(server) for server in servers] == [0, 0])
            before = [queued_rows(server) for server in servers]
            task = asyncio.create_task(client.predict("classifier", ROW))
            await until(
                lambda: [queued_rows(one) for one in servers] == [rows + 1 for rows in before]
            )
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if not coalesce:
                await until(lambda: [queued_rows(server) for server in servers] == [0, 0])
            assert client._base.capacity.in_flight == (0, 0)
            # After a timeout a server is asked for its health, and its answer may take a while.
            await asyncio.wait_for(until(lambda: not any_suspect(client)), 20)
            for server in servers:
                server.registry.resolve("classifier").start()
            assert (await client.predict("classifier", ROW)).label == "cat"

    asyncio.run(main())


@WITH_AND_WITHOUT_STREAM
def test_the_error_of_a_hedge_is_dropped(
    make_server, make_slow, repository, tmp_path, wait_until, coalesce
):
    """The second server does not have the model."""
    slow = make_slow()
    other_root = tmp_path / "other"
    (other_root / "regressor").mkdir(parents=True)
    (other_root / "regressor" / "1").symlink_to(repository / "regressor" / "1")
    other = make_server(root=other_root)
    other.health.set({"": True})
    retries = Retries(hedge_after=0.02)
    with Client([address(slow), address(other)], coalesce=coalesce, retries=retries) as client:
        wait_until(lambda: all_serving(client))
        endpoints, pick = client._base.pool.endpoints, client._base.pool.pick
        client._base.pool.pick = lambda excluded=None: (
            endpoints[0] if excluded is None else pick(excluded)
        )
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(client.predict, "classifier", ROW)
            wait_until(lambda: client._base.hedge_budget.hedges_sent == 1)
            wait_until(lambda: queued_rows(slow) == 1)
            with pytest.raises(neurona_client.DeadlineExceededError):
                client.predict("classifier", ROW, timeout=0.3)
            slow.registry.resolve("classifier").start()
            assert future.result().label == "cat"
        # After a timeout the first server is asked for its health, and its answer may take a while.
        wait_until(lambda: not any_suspect(client))


@pytest.mark.parametrize(
    "options", [{"hedge_after": 0}, {"hedge_after": -1.0}, {"hedge_share": 0}, {"hedge_share": 1.5}]
)
def test_invalid_hedging_options_are_rejected(options):
    with pytest.raises(ValueError, match="expected more than 0"):
        Retries(**options)
