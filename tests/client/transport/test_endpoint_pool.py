"""Servers that are killed, one after the other: no call fails, and no result is wrong."""

import asyncio
import os
import random
import threading
import time

import numpy as np
import pytest
from support import onnx_models
from support.server_process import ServerProcess

from neurona_client import AsyncClient, Client, Retries

SECONDS = float(os.environ.get("NEURONA_KILLING_SECONDS", "10")) / 3  # in each of the tests
CALLERS = 16
LONG_RETRIES = Retries(unreachable_timeout=60)


@pytest.fixture(scope="module")
def started(repository):
    started = [ServerProcess(repository, "--log-level", "warning").start() for _ in range(3)]
    yield started
    for replica in started:
        replica.close()


@pytest.fixture
def replicas(started):
    """All of them running."""
    for replica in started:
        if not replica.is_running:
            replica.start()
    for replica in started:
        with Client(replica.address) as client:
            client.wait_until_ready(60, models=["classifier"])
    return started


def expected_probabilities(row):
    logits = (row + 1.0) @ onnx_models.WEIGHTS  # of version 2, the latest
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


class Killer(threading.Thread):
    """Kills or stops one server at a time at random times, and restarts it."""

    def __init__(self, replicas, seconds):
        super().__init__()
        self.kills = 0
        self.ended = threading.Event()
        self._replicas = replicas
        self._seconds = seconds

    def run(self):
        generator = random.Random(0)  # noqa: S311
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            replica = generator.choice(self._replicas)
            replica.kill() if generator.random() < 0.7 else replica.stop()
            self.kills += 1
            self.ended.wait(generator.uniform(0.0, 0.5))
            replica.start()
            self.ended.wait(generator.uniform(0.2, 2.0))
        self.ended.set()


@pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])
def test_no_thread_sees_a_failure_while_servers_are_killed(replicas, coalesce):
    wrong, failed, result_counts = [], [], [0] * CALLERS
    addresses = [replica.address for replica in replicas]
    with Client(addresses, coalesce=coalesce, retries=LONG_RETRIES) as client:
        killer = Killer(replicas, SECONDS)

        def predict(caller):
            generator = np.random.default_rng(caller)
            while not killer.ended.is_set():
                row = generator.normal(0, 1, 4).astype(np.float32)
                try:
                    result = client.predict("classifier", row, raw_outputs=True, timeout=60)
                except Exception as error:
                    failed.append(error)
                    continue
                result_counts[caller] += 1
                if not np.allclose(
                    result.outputs["probabilities"], expected_probabilities(row), atol=1e-5
                ):
                    wrong.append((row, result))

        callers = [threading.Thread(target=predict, args=(number,)) for number in range(CALLERS)]
        killer.start()
        for thread in (*callers, killer):
            if thread is not killer:
                thread.start()
        for thread in (*callers, killer):
            thread.join()
    assert not failed
    assert not wrong
    assert killer.kills >= 2
    assert min(result_counts) > 0


def test_no_coroutine_sees_a_failure_while_servers_are_killed(replicas):
    addresses = [replica.address for replica in replicas]
    killer = Killer(replicas, SECONDS)
    result_counts = [0] * CALLERS

    async def predict(client, caller):
        generator = np.random.default_rng(caller)
        while not killer.ended.is_set():
            row = generator.normal(0, 1, 4).astype(np.float32)
            result = await client.predict("classifier", row, raw_outputs=True, timeout=60)
            assert np.allclose(
                result.outputs["probabilities"], expected_probabilities(row), atol=1e-5
            )
            result_counts[caller] += 1

    async def main():
        async with AsyncClient(addresses, retries=LONG_RETRIES) as client:
            killer.start()
            await asyncio.gather(*(predict(client, caller) for caller in range(CALLERS)))

    asyncio.run(main())
    killer.join()
    assert killer.kills >= 2
    assert min(result_counts) > 0


def test_the_last_running_server_answers_all_calls(replicas):
    """Two are killed, one after the other."""
    addresses = [replica.address for replica in replicas]
    row = np.ones(4, np.float32)
    with Client(addresses, retries=Retries(unreachable_timeout=0.5)) as client:
        for replica in replicas[:2]:
            replica.kill()
            for _ in range(20):
                assert client.predict("classifier", row).label == "cat"
