"""Several servers, some of which are always dying: no call fails, and none gets a wrong answer."""

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

SECONDS = float(os.environ.get("NEURONA_KILLING_SECONDS", "10")) / 3  # of them in each test
CALLERS = 16
PATIENT = Retries(patience=60)


@pytest.fixture(scope="module")
def started(repository):
    started = [ServerProcess(repository, "--log-level", "warning").start() for _ in range(3)]
    yield started
    for replica in started:
        replica.close()


@pytest.fixture
def replicas(started):
    """All of them up."""
    for replica in started:
        if not replica.is_running:
            replica.start()
    for replica in started:
        with Client(replica.address) as client:
            client.wait_until_ready(60, models=["classifier"])
    return started


def expected(row):
    logits = (row + 1.0) @ onnx_models.WEIGHTS  # of version 2, the latest
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


class Killer(threading.Thread):
    """Kills one at a time at random, and starts it again at random."""

    def __init__(self, replicas, seconds):
        super().__init__()
        self.kills = 0
        self.over = threading.Event()
        self._replicas = replicas
        self._seconds = seconds

    def run(self):
        generator = random.Random(0)  # noqa: S311
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            replica = generator.choice(self._replicas)
            replica.kill() if generator.random() < 0.7 else replica.stop()
            self.kills += 1
            self.over.wait(generator.uniform(0.0, 0.5))
            replica.start()
            self.over.wait(generator.uniform(0.2, 2.0))
        self.over.set()


@pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])
def test_threads_notice_nothing_of_servers_that_die(replicas, coalesce):
    wrong, failed, answers = [], [], [0] * CALLERS
    addresses = [replica.address for replica in replicas]
    with Client(addresses, coalesce=coalesce, retries=PATIENT) as client:
        killer = Killer(replicas, SECONDS)

        def ask(caller):
            generator = np.random.default_rng(caller)
            while not killer.over.is_set():
                row = generator.normal(0, 1, 4).astype(np.float32)
                try:
                    given = client.predict("classifier", row, raw_outputs=True, timeout=60)
                except Exception as error:
                    failed.append(error)
                    continue
                answers[caller] += 1
                if not np.allclose(given.outputs["probabilities"], expected(row), atol=1e-5):
                    wrong.append((row, given))

        callers = [threading.Thread(target=ask, args=(number,)) for number in range(CALLERS)]
        killer.start()
        for thread in (*callers, killer):
            if thread is not killer:
                thread.start()
        for thread in (*callers, killer):
            thread.join()
    assert not failed
    assert not wrong
    assert killer.kills >= 2
    assert min(answers) > 0


def test_coroutines_notice_nothing_of_servers_that_die(replicas):
    addresses = [replica.address for replica in replicas]
    killer = Killer(replicas, SECONDS)
    answers = [0] * CALLERS

    async def ask(client, caller):
        generator = np.random.default_rng(caller)
        while not killer.over.is_set():
            row = generator.normal(0, 1, 4).astype(np.float32)
            given = await client.predict("classifier", row, raw_outputs=True, timeout=60)
            assert np.allclose(given.outputs["probabilities"], expected(row), atol=1e-5)
            answers[caller] += 1

    async def main():
        async with AsyncClient(addresses, retries=PATIENT) as client:
            killer.start()
            await asyncio.gather(*(ask(client, caller) for caller in range(CALLERS)))

    asyncio.run(main())
    killer.join()
    assert killer.kills >= 2
    assert min(answers) > 0


def test_one_server_that_dies_under_a_call_costs_no_failure(replicas):
    """Each in turn; the one that is left answers."""
    addresses = [replica.address for replica in replicas]
    row = np.ones(4, np.float32)
    with Client(addresses, retries=Retries(patience=0.5)) as client:
        for replica in replicas[:2]:
            replica.kill()
            for _ in range(20):
                assert client.predict("classifier", row).label == "cat"
