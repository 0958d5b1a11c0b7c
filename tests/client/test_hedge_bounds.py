"""What hedging never does: send more than was allowed, or make of a hedge a failure."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import neurona_client
from neurona_client import AsyncClient, Client, Retries
from neurona_client.calls.hedging import Budget
from neurona_server.batching.policy import BatchPolicy

ROW = np.array([1, 2, 3, 4], np.float32)
QUICK_HEDGE = Retries(hedge_after=0.02)
BOTH = pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])


def all_serving(client):
    """Whether every server is known to serve."""
    return all(endpoint.serving for endpoint in client._calls.fleet.endpoints)


def any_doubtful(client):
    """Whether a server is held to be failing."""
    return any(endpoint.doubtful_until for endpoint in client._calls.fleet.endpoints)


def address(server):
    return f"127.0.0.1:{server.port}"


def queued(server):
    return int(server.count("queue_rows", model="classifier", version="2"))


@pytest.fixture
def make_slow(make_server):
    """Servers that answer nothing before the test has the model start."""

    def make(**options):
        server = make_server(start_models=False, **options)
        server.health.set({"": True})
        return server

    return make


@BOTH
def test_servers_that_are_all_slow_get_no_more_than_the_budget(make_slow, wait_until, coalesce):
    servers = [make_slow() for _ in range(2)]
    calls = 60
    with Client(
        [address(server) for server in servers], coalesce=coalesce, retries=QUICK_HEDGE, timeout=30
    ) as client:
        wait_until(lambda: all_serving(client))
        with ThreadPoolExecutor(calls) as pool:
            asked = [pool.submit(client.predict, "classifier", ROW) for _ in range(calls)]
            budget = client._calls.budget
            wait_until(lambda: budget.spent >= 10)
            wait_until(lambda: sum(map(queued, servers)) == calls + budget.spent)
            assert budget.spent <= 10 + 0.1 * (calls + 3)  # with those that describe it
            for server in servers:
                server.registry.resolve("classifier").start()
            assert [one.result().label for one in asked] == ["cat"] * calls
        assert client._calls.gate.inside == (0, 0)
        assert not any_doubtful(client)


def test_a_budget_is_a_share_of_the_requests():
    budget = Budget(Retries(hedge_after=1.0, hedge_share=0.25))
    assert sum(budget.spend() for _ in range(100)) == 10  # what it begins with
    sent = 0
    for _ in range(400):
        budget.earn()
        sent += budget.spend()
    assert sent == 100
    for _ in range(400):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == 10  # more cannot be saved up
    assert budget.spent == 120


@pytest.mark.parametrize("retries", [Retries(), Retries(hedge_after=30)], ids=["off", "in time"])
def test_nothing_is_sent_twice(make_slow, wait_until, retries):
    servers = [make_slow() for _ in range(2)]
    with Client([address(server) for server in servers], retries=retries) as client:
        wait_until(lambda: all_serving(client))
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(client.predict, "classifier", ROW) for _ in range(20)]
            wait_until(lambda: sum(map(queued, servers)) == 20)
            with pytest.raises(neurona_client.DeadlineError):
                client.predict("classifier", ROW, timeout=0.3)
            assert sum(map(queued, servers)) == 21  # with what has been given up
            for server in servers:
                server.registry.resolve("classifier").start()
            assert [one.result().label for one in asked] == ["cat"] * 20


def test_a_single_server_is_asked_once(make_slow):
    server = make_slow()
    with Client(address(server), retries=QUICK_HEDGE) as client:
        with pytest.raises(neurona_client.DeadlineError, match=r"within 0.3 s"):
            client.predict("classifier", ROW, timeout=0.3)
        assert queued(server) == 1
        assert client._calls.budget.spent == 0


def test_a_server_that_has_too_much_to_do_ends_the_hedging_of_a_call(make_slow, wait_until):
    """Of two calls one begins at the full server, and one is hedged there: each is refused once,
    and then waits for the other server alone."""
    slow = make_slow()
    full = make_slow(policy=BatchPolicy(max_queue_rows=1))
    with Client(address(full)) as first, ThreadPoolExecutor(3) as pool:
        filling = pool.submit(first.predict, "classifier", ROW)
        wait_until(lambda: queued(full) == 1)
        retries = Retries(hedge_after=0.02, attempts=50)
        with Client([address(slow), address(full)], retries=retries) as client:
            wait_until(lambda: all_serving(client))
            client.describe("classifier", version=2)
            before = client._calls.budget.spent
            asked = [pool.submit(client.predict, "classifier", ROW) for _ in range(2)]
            wait_until(lambda: queued(slow) == 2)
            with pytest.raises(neurona_client.DeadlineError):
                client.predict("classifier", ROW, timeout=0.3)  # time for more hedges
            assert client._calls.budget.spent - before <= 2
            assert queued(full) == 1
            slow.registry.resolve("classifier").start()
            assert [one.result().label for one in asked] == ["cat"] * 2
        full.registry.resolve("classifier").start()
        assert filling.result().label == "cat"


@BOTH
def test_deadlines_and_cancelling_hold_for_both(make_slow, wait_until, coalesce):
    servers = [make_slow() for _ in range(2)]

    async def until(condition):
        while not condition():
            await asyncio.sleep(0.005)

    async def main():
        addresses = [address(server) for server in servers]
        async with AsyncClient(addresses, coalesce=coalesce, retries=QUICK_HEDGE) as client:
            wait_until(lambda: all_serving(client))
            with pytest.raises(neurona_client.DeadlineError, match=r"within 0.3 s"):
                await client.predict("classifier", ROW, timeout=0.3)
            if not coalesce:  # the server goes on with what a stream has sent
                await until(lambda: [queued(server) for server in servers] == [0, 0])
            before = [queued(server) for server in servers]
            task = asyncio.create_task(client.predict("classifier", ROW))
            await until(lambda: [queued(one) for one in servers] == [was + 1 for was in before])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if not coalesce:
                await until(lambda: [queued(server) for server in servers] == [0, 0])
            assert client._calls.gate.inside == (0, 0)
            assert not any_doubtful(client)
            for server in servers:
                server.registry.resolve("classifier").start()
            assert (await client.predict("classifier", ROW)).label == "cat"

    asyncio.run(main())


@BOTH
def test_errors_of_a_hedge_are_nobodys(
    make_server, make_slow, repository, tmp_path, wait_until, coalesce
):
    """The other server does not have the model."""
    slow = make_slow()
    other_root = tmp_path / "other"
    (other_root / "regressor").mkdir(parents=True)
    (other_root / "regressor" / "1").symlink_to(repository / "regressor" / "1")
    other = make_server(root=other_root)
    other.health.set({"": True})
    retries = Retries(hedge_after=0.02)
    with Client([address(slow), address(other)], coalesce=coalesce, retries=retries) as client:
        wait_until(lambda: all_serving(client))
        fleet = client._calls.fleet
        pick = fleet.pick
        fleet.pick = lambda than=None: fleet.endpoints[0] if than is None else pick(than)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.predict, "classifier", ROW)
            wait_until(lambda: client._calls.budget.spent == 1)
            wait_until(lambda: queued(slow) == 1)
            with pytest.raises(neurona_client.DeadlineError):
                client.predict("classifier", ROW, timeout=0.3)
            slow.registry.resolve("classifier").start()
            assert asked.result().label == "cat"
        assert not any_doubtful(client)


@pytest.mark.parametrize(
    "wrong", [{"hedge_after": 0}, {"hedge_after": -1.0}, {"hedge_share": 0}, {"hedge_share": 1.5}]
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValueError, match="expected more than 0"):
        Retries(**wrong)
