"""A call that takes long is sent to a second server, and the first answer counts."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.server_process import ServerProcess

import neurona_client
from neurona_client import AsyncClient, Client, Retries

QUICK_HEDGE = Retries(hedge_after=0.02)
BOTH = pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])


def all_serving(client):
    """Whether every server is known to serve."""
    return all(endpoint.serving for endpoint in client._calls.fleet.endpoints)


def any_doubtful(client):
    """Whether a server is held to be failing."""
    return any(endpoint.doubtful_until for endpoint in client._calls.fleet.endpoints)


@pytest.fixture(scope="module")
def replicas(repository):
    started = [ServerProcess(repository, "--log-level", "warning").start() for _ in range(2)]
    for replica in started:
        with Client(replica.address) as client:
            client.wait_until_ready(60, models=["regressor"])
    yield started
    for replica in started:
        replica.close()


@pytest.fixture
def stop(replicas):
    """Freezes the process of one of the two servers, with its connections."""
    yield lambda: replicas[0].send_signal(signal.SIGSTOP)
    replicas[0].send_signal(signal.SIGCONT)


def ask(client, number, **options):
    """Whether the answer is that of this question."""
    series = np.array([number, 1.0], np.float32)
    return client.predict("regressor", series, **options).value == number + 1


@BOTH
def test_a_server_that_stands_still_holds_up_no_thread(replicas, stop, wait_until, coalesce):
    addresses = [replica.address for replica in replicas]
    callers, each = 8, 25

    def count(client):
        def run(caller):
            right = 0
            for turn in range(each):
                try:
                    right += ask(client, 1000 * caller + turn, timeout=0.5 if plain else 30)
                except neurona_client.DeadlineError:
                    late.append(caller)
                    return right  # it has waited long enough
            return right

        plain, late = client._calls.budget is None, []
        with ThreadPoolExecutor(callers) as pool:
            right = sum(pool.map(run, range(callers)))
        return right, len(late)

    with (
        Client(addresses, coalesce=coalesce) as plain,
        Client(addresses, coalesce=coalesce, retries=QUICK_HEDGE) as hedging,
    ):
        for client in (plain, hedging):
            wait_until(lambda client=client: all_serving(client))
            assert all(ask(client, number, timeout=30) for number in range(4))
        stop()
        without, waited = count(plain)
        assert waited > 0
        assert without < callers * each
        before = hedging._calls.budget.spent
        assert count(hedging) == (callers * each, 0)
        assert 0 < hedging._calls.budget.spent - before <= 10 + 0.1 * callers * each
        assert not any_doubtful(hedging)
        assert hedging._calls.gate.inside == (0, 0)
        replicas[0].send_signal(signal.SIGCONT)
        # What comes late now is nobody's answer.
        assert all(ask(hedging, number, timeout=30) for number in range(100))


@BOTH
def test_a_server_that_stands_still_holds_up_no_coroutine(replicas, stop, wait_until, coalesce):
    addresses = [replica.address for replica in replicas]
    callers, each = 8, 25

    async def main():
        async with AsyncClient(addresses, coalesce=coalesce, retries=QUICK_HEDGE) as client:

            async def run(caller):
                for number in range(1000 * caller, 1000 * caller + each):
                    series = np.array([number, 1.0], np.float32)
                    answer = await client.predict("regressor", series, timeout=30)
                    assert answer.value == number + 1

            wait_until(lambda: all_serving(client))
            await run(0)
            stop()
            await asyncio.gather(*(run(caller) for caller in range(callers)))
            assert 0 < client._calls.budget.spent <= 10 + 0.1 * each * (callers + 1) + 1
            assert not any_doubtful(client)
            replicas[0].send_signal(signal.SIGCONT)
            await asyncio.gather(*(run(caller) for caller in range(callers)))
            assert client._calls.gate.inside == (0, 0)

    asyncio.run(main())


@BOTH
def test_answers_that_come_at_the_same_time_are_one(replicas, wait_until, coalesce):
    """Each call is sent twice at once."""
    callers, each = 16, 50
    retries = Retries(hedge_after=1e-6, hedge_share=1.0)
    addresses = [replica.address for replica in replicas]

    async def coroutines():
        async with AsyncClient(addresses, coalesce=coalesce, retries=retries) as client:
            wait_until(lambda: all_serving(client))

            async def run(caller):
                for number in range(1000 * caller, 1000 * caller + each):
                    series = np.array([number, 1.0], np.float32)
                    answer = await client.predict("regressor", series, timeout=30)
                    assert answer.value == number + 1

            await asyncio.gather(*(run(caller) for caller in range(callers)))
            assert client._calls.budget.spent > callers * each / 4
            assert client._calls.gate.inside == (0, 0)

    with Client(addresses, coalesce=coalesce, retries=retries) as client:
        wait_until(lambda: all_serving(client))

        def run(caller):
            return sum(ask(client, 1000 * caller + turn, timeout=30) for turn in range(each))

        with ThreadPoolExecutor(callers) as pool:
            assert sum(pool.map(run, range(callers))) == callers * each
        assert client._calls.budget.spent > callers * each / 4
        assert client._calls.gate.inside == (0, 0)
    asyncio.run(coroutines())
