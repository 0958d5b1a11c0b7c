"""Timeouts of all sizes, refused requests, and servers that are not reachable yet."""

import asyncio
import math
import threading

import numpy as np
import pytest

from neurona_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    NeuronaError,
    OverloadedError,
    Retries,
)
from neurona_client.calls.retry import with_retries
from neurona_client.calls.steps import Deadline, Pause

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


class Pool:
    """One server, always the same."""

    closed_reason = ""

    def pick(self, _last=None):
        return "server"


def attempts(outcomes, *, timeout=None, max_attempts=5):
    """Return the pauses between attempts that end so, and the error of the last one."""
    call = with_retries(
        Pool(), Retries(max_attempts=max_attempts), Deadline(timeout), lambda *_: "step"
    )
    pauses = []
    step = next(call)
    try:
        for outcome in outcomes:
            assert step == "step"
            step = call.throw(outcome)
            if isinstance(step, Pause):
                pauses.append(step.timeout)
                step = next(call)
    except NeuronaError as error:
        return pauses, error
    return pauses, None


def test_a_refused_request_is_sent_again_after_the_time_that_the_server_says():
    refusals = [OverloadedError("full", retry_after=seconds) for seconds in (0.2, 7.0, 0.01)]
    pauses, error = attempts(refusals, max_attempts=3)
    assert error is refusals[-1]  # not slept upon: the caller decides
    for pause, refusal in zip(pauses, refusals[:2], strict=True):
        assert refusal.retry_after <= pause <= 1.5 * refusal.retry_after


def test_a_refused_request_that_would_be_too_late_fails_at_once():
    refusal = OverloadedError("full", retry_after=0.6)
    assert attempts([refusal], timeout=0.5) == ([], refusal)
    too_large = OverloadedError("too large")
    assert attempts([too_large]) == ([], too_large)


def test_a_request_that_the_server_has_dropped_is_not_sent_again():
    text = "deadline too short: it cannot be answered in time any more"
    pauses, error = attempts([DeadlineExceededError(text)], timeout=60)
    assert (pauses, str(error)) == ([], text)
