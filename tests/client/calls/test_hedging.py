"""Hedging: a call without a response is sent to a second server, and the first response counts."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.server_process import ServerProcess

import neurona_client
from neurona_client import AsyncClient, Client, Retries

ROW = np.array([1, 2, 3, 4], np.float32)
QUICK_HEDGES = Retries(hedge_after=0.02)
WITH_AND_WITHOUT_STREAM = pytest.mark.parametrize(
    "coalesce", [True, False], ids=["coalescing", "unary"]
)


def all_serving(client):
    return all(endpoint.serving for endpoint in client._base.pool.endpoints)


def any_suspect(client):
    return any(endpoint.suspect_until for endpoint in client._base.pool.endpoints)


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
def freeze_one(replicas):
    """Gives what freezes one of the two servers; its connections stay open."""
    yield lambda: replicas[0].send_signal(signal.SIGSTOP)
    replicas[0].send_signal(signal.SIGCONT)


def predicts_correctly(client, number, **options):
    """Whether the result is that of this request."""
    series = np.array([number, 1.0], np.float32)
    return client.predict("regressor", series, **options).value == number + 1


@WITH_AND_WITHOUT_STREAM
def test_a_frozen_server_delays_no_thread(replicas, freeze_one, wait_until, coalesce):
    addresses = [replica.address for replica in replicas]
    callers, each = 8, 25

    def count_results(client):
        def run(caller):
            correct = 0
            for turn in range(each):
                try:
                    correct += predicts_correctly(
                        client, 1000 * caller + turn, timeout=0.5 if is_plain else 30
                    )
                except neurona_client.DeadlineExceededError:
                    late.append(caller)
                    return correct
            return correct

        is_plain, late = client._base.hedge_budget is None, []
        with ThreadPoolExecutor(callers) as pool:
            correct = sum(pool.map(run, range(callers)))
        return correct, len(late)

    with (
        Client(addresses, coalesce=coalesce) as plain,
        Client(addresses, coalesce=coalesce, retries=QUICK_HEDGES) as hedging,
    ):
        for client in (plain, hedging):
            wait_until(lambda client=client: all_serving(client))
            assert all(predicts_correctly(client, number, timeout=30) for number in range(4))
        freeze_one()
        correct, late = count_results(plain)
        assert late > 0
        assert correct < callers * each
        before = hedging._base.hedge_budget.hedges_sent
        assert count_results(hedging) == (callers * each, 0)
        assert 0 < hedging._base.hedge_budget.hedges_sent - before <= 10 + 0.1 * callers * each
        assert not any_suspect(hedging)
        assert hedging._base.capacity.in_flight == (0, 0)
        replicas[0].send_signal(signal.SIGCONT)
        # Late responses are not taken for those of other calls.
        assert all(predicts_correctly(hedging, number, timeout=30) for number in range(100))


@WITH_AND_WITHOUT_STREAM
def test_a_frozen_server_delays_no_coroutine(replicas, freeze_one, wait_until, coalesce):
    addresses = [replica.address for replica in replicas]
    callers, each = 8, 25

    async def main():
        async with AsyncClient(addresses, coalesce=coalesce, retries=QUICK_HEDGES) as client:

            async def run(caller):
                for number in range(1000 * caller, 1000 * caller + each):
                    series = np.array([number, 1.0], np.float32)
                    result = await client.predict("regressor", series, timeout=30)
                    assert result.value == number + 1

            wait_until(lambda: all_serving(client))
            await run(0)
            freeze_one()
            await asyncio.gather(*(run(caller) for caller in range(callers)))
            assert 0 < client._base.hedge_budget.hedges_sent <= 10 + 0.1 * each * (callers + 1) + 1
            assert not any_suspect(client)
            replicas[0].send_signal(signal.SIGCONT)
            await asyncio.gather(*(run(caller) for caller in range(callers)))
            assert client._base.capacity.in_flight == (0, 0)

    asyncio.run(main())


@WITH_AND_WITHOUT_STREAM
def test_simultaneous_responses_give_one_result(replicas, wait_until, coalesce):
    """Each call is sent twice right away."""
    callers, each = 16, 50
    retries = Retries(hedge_after=1e-6, hedge_share=1.0)
    addresses = [replica.address for replica in replicas]

    async def coroutines():
        async with AsyncClient(addresses, coalesce=coalesce, retries=retries) as client:
            wait_until(lambda: all_serving(client))

            async def run(caller):
                for number in range(1000 * caller, 1000 * caller + each):
                    series = np.array([number, 1.0], np.float32)
                    result = await client.predict("regressor", series, timeout=30)
                    assert result.value == number + 1

            await asyncio.gather(*(run(caller) for caller in range(callers)))
            assert client._base.hedge_budget.hedges_sent > callers * each / 4
            assert client._base.capacity.in_flight == (0, 0)

    with Client(addresses, coalesce=coalesce, retries=retries) as client:
        wait_until(lambda: all_serving(client))

        def run(caller):
            return sum(
                predicts_correctly(client, 1000 * caller + turn, timeout=30) for turn in range(each)
            )

        with ThreadPoolExecutor(callers) as pool:
            assert sum(pool.map(run, range(callers))) == callers * each
        assert client._base.hedge_budget.hedges_sent > callers * each / 4
        assert client._base.capacity.in_flight == (0, 0)
    asyncio.run(coroutines())
