"""Sessions, sync and async, against servers of the protocol that fail as the test decides."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.session_server import SessionServer, pack_state

from neurona_client import (
    AsyncClient,
    Client,
    ClosedError,
    DeadlineExceededError,
    InvalidInputError,
    NeuronaError,
    NotFoundError,
    OverloadedError,
    Retries,
    UnreachableError,
)
from neurona_client.transport import grpc_calls, session_channels
from neurona_protos.prediction_pb2 import Error

CYGRPC = pytest.mark.parametrize("cygrpc", ["usable", "absent"])


@pytest.fixture
def make_server():
    servers = []

    def make_server(**options):
        servers.append(SessionServer(**options))
        return servers[-1]

    yield make_server
    for server in servers:
        server.stop()


@pytest.fixture
def server(make_server):
    return make_server()


@pytest.fixture
def pair(make_server):
    return make_server(), make_server()


def addresses(servers):
    return [one.address for one in servers]


def of_session(servers):
    """The server that has the only session, and the other one."""
    first, second = servers
    return (first, second) if first.open_sessions else (second, first)


def wait_for_all_servers(client):
    """Wait until each is known to serve: one that is not yet is no choice for a session."""
    end = time.monotonic() + 60
    while not all(endpoint.serving for endpoint in client._base.pool.endpoints):
        assert time.monotonic() < end, "a server was not reachable within 60 s"
        time.sleep(0.001)


def predict(session, value):
    session.send([value])
    return session.receive().value


def outcomes(session):
    """What the answers to all steps that were sent are: sums, or classes of errors."""
    received = []
    while True:
        try:
            received.append(next(session).value)
        except StopIteration:
            return received
        except NeuronaError as error:
            received.append(type(error))


@CYGRPC
def test_each_message_has_an_answer_to_the_sequence_so_far(server, cygrpc, monkeypatch, wait_until):
    if cygrpc == "absent":
        monkeypatch.setattr(grpc_calls, "cygrpc", None)
    with Client(server.address) as client:
        with client.session("sum") as session:
            session.send([1.0])  # a step
            assert session.receive().value == 1.0
            session.send(np.array([[2], [3]], np.float32))  # two steps
            session.send([[[4.0]]])  # with the batch axis
            assert [answer.values for answer in session] == [(6.0,), (10.0,)]
            assert session.steps == 4
            assert server.open_sessions == 1
        wait_until(lambda: server.open_sessions == 0)
        assert client._base.capacity.in_flight == (0, 0)


def test_the_usual_stream_is_one_without_a_thread(server):
    with Client(server.address) as client, client.session("sum") as session:
        session.send([1.0])
        session.receive()
        assert isinstance(session._call._stream.byte_stream, grpc_calls.CygrpcSessionStream)


def test_coroutines_have_the_same(server, wait_until):
    async def main():
        async with AsyncClient(server.address) as client:
            async with client.session("sum") as session:
                await session.send([1.0])
                assert (await session.receive()).value == 1.0
                await session.send([[2.0], [3.0]])
                await session.send([np.nan])
                await session.send([4.0])
                assert (await anext(session)).value == 6.0
                with pytest.raises(InvalidInputError, match="NaN"):
                    await anext(session)
                assert [answer.value async for answer in session] == [10.0]
                assert session.steps == 4
                state = session.state
            with pytest.raises(ClosedError, match="session closed"):
                await session.send([1.0])
            async with client.session("sum", state=state) as session:
                await session.send([1.0])
                assert (await session.receive()).value == 11.0

    asyncio.run(main())
    wait_until(lambda: server.open_sessions == 0)


def test_several_sequences_share_a_session(server):
    with Client(server.address) as client, client.session("sum") as session:
        session.send([[[1.0]], [[10.0]]])
        session.send([[[2.0], [3.0]], [[20.0], [30.0]]])
        session.receive()
        assert [row.value for row in session.receive()] == [6.0, 60.0]


@CYGRPC
def test_an_error_of_steps_is_raised_at_their_answer(server, cygrpc, monkeypatch):
    if cygrpc == "absent":
        monkeypatch.setattr(grpc_calls, "cygrpc", None)
    with Client(server.address) as client, client.session("sum") as session:
        for value in (1.0, np.nan, 2.0):
            session.send([value])
        assert outcomes(session) == [1.0, InvalidInputError, 3.0]
        assert session.steps == 2
        with pytest.raises(InvalidInputError, match="input 'x' has shape"):
            session.send(np.zeros((1, 1, 2), np.float32))
        session.send([4.0])
        assert session.receive().value == 7.0
        assert len(server.starts) == 1


@pytest.mark.parametrize("options", [{"model": "sums"}, {"model": "sum", "version": 5}])
def test_a_model_that_does_not_exist_is_an_error_of_the_first_steps(server, options):
    with Client(server.address) as client, client.session(**options) as session:
        for _ in range(2):
            with pytest.raises(NotFoundError, match="not found"):
                predict(session, 1.0)


def test_options_are_checked_at_once(server):
    with Client(server.address) as client:
        for options in ({"priority": "urgent"}, {"top_k": 0}, {"request_id": "\n"}):
            with pytest.raises(InvalidInputError):
                client.session("sum", **options)


def test_the_token_and_the_request_id_go_along(server):
    with Client(server.address, token="secret") as client:  # noqa: S106
        with client.session("sum", request_id="walk-7") as session:
            session.send([1.0])
            session.receive()
        (metadata,) = server.metadata
        assert metadata["authorization"] == "Bearer secret"
        assert metadata["x-request-id"] == "walk-7"


def test_a_session_goes_on_from_the_state_of_another(server):
    with Client(server.address) as client:
        with client.session("sum") as session:
            for value in (1.0, 2.0, 3.0):
                session.send([value])
            assert session.receive().value == 1.0
            assert session.receive().value == 3.0
            state = session.state  # of the answer that was received, not of the one that came
        with client.session("sum", state=state) as session:
            assert session.state == state
            session.send([10.0])
            assert session.receive().value == 13.0
            assert session.steps == 3


@CYGRPC
@pytest.mark.parametrize("answers", [0, 1, 3])
def test_a_server_that_is_lost_costs_nothing(pair, cygrpc, answers, monkeypatch, wait_until):
    if cygrpc == "absent":
        monkeypatch.setattr(grpc_calls, "cygrpc", None)
    with Client(addresses(pair)) as client, client.session("sum") as session:
        wait_for_all_servers(client)
        for value in range(1, answers + 1):
            session.send([float(value)])
            session.receive()
        for one in pair:
            one.hold_answers()
        session.send([10.0])
        session.send([20.0])
        wait_until(lambda: any(one.open_sessions for one in pair))
        first, second = of_session(pair)
        first.stop()
        second.release_answers()
        session.send([30.0])
        before = sum(range(answers + 1))
        assert outcomes(session) == [before + 10, before + 30, before + 60]
        assert session.steps == answers + 3
        assert second.computed == [[[10.0]], [[20.0]], [[30.0]]]


def test_coroutines_go_on_at_another_server(pair):
    async def main():
        async with AsyncClient(addresses(pair)) as client:
            await asyncio.to_thread(wait_for_all_servers, client)
            async with client.session("sum") as session:
                await session.send([1.0])
                await session.receive()
                first, second = of_session(pair)
                first.hold_answers()
                await session.send([2.0])
                answer = asyncio.create_task(session.receive())
                await asyncio.sleep(0.05)
                await asyncio.to_thread(first.stop)
                assert (await answer).value == 3.0
                assert second.computed == [[[2.0]]]

    asyncio.run(main())


def test_a_session_that_waits_for_nothing_outlives_its_server(pair):
    with Client(addresses(pair)) as client, client.session("sum") as session:
        wait_for_all_servers(client)
        session.send([1.0])
        session.receive()
        first, second = of_session(pair)
        first.stop()
        session.send([2.0])
        assert session.receive().value == 3.0
        assert second.starts[0].version == 1


def test_the_only_server_may_come_back(make_server):
    server = make_server()
    with Client(server.address) as client, client.session("sum") as session:
        session.send([1.0])
        session.receive()
        server.stop()
        session.send([2.0])
        again = threading.Timer(0.3, make_server, kwargs={"address": server.address})
        again.start()
        assert session.receive().value == 3.0
        again.join()


def test_a_server_that_ends_sessions_gives_them_up_in_time(pair):
    with Client(addresses(pair)) as client, client.session("sum") as session:
        wait_for_all_servers(client)
        session.send([1.0])
        session.receive()
        first, second = of_session(pair)
        first.end_sessions("server stops")
        assert first.open_sessions == second.open_sessions == 0  # and nothing is lost
        session.send([2.0])
        assert session.receive().value == 3.0
        assert (first.open_sessions, second.open_sessions) == (0, 1)
        second.hold_answers()
        session.send([3.0])
        second.end_sessions("model is being unloaded")
        second.release_answers()
        assert session.receive().value == 6.0
        assert first.open_sessions == 1


def test_an_ending_is_no_failed_attempt(pair):
    with (
        Client(addresses(pair), retries=Retries(max_attempts=1)) as client,
        client.session("sum") as session,
    ):
        wait_for_all_servers(client)
        session.send([0.0])
        session.receive()
        for value in range(1, 6):
            first, second = of_session(pair)
            first.hold_answers()
            session.send([float(value)])
            first.end_sessions("evicted")
            assert session.receive().value == sum(range(value + 1))
            assert second.open_sessions == 1
            first.release_answers()


def test_steps_have_a_timeout_and_are_not_in_the_state_after_it(pair):
    with Client(addresses(pair)) as client, client.session("sum") as session:
        wait_for_all_servers(client)
        session.send([1.0])
        session.receive()
        for one in pair:
            one.hold_answers()
        session.send([2.0], timeout=0.1)  # computed, but not answered in time
        session.send([4.0])
        with pytest.raises(DeadlineExceededError, match="within 0.1 s"):
            session.receive()
        for one in pair:
            one.release_answers()
        assert session.receive().value == 5.0
        assert session.steps == 2
        assert client._base.capacity.in_flight == (0, 0)


def test_the_timeout_is_that_of_the_session_or_of_the_client(server):
    server.hold_answers()
    with Client(server.address, timeout=0.05) as client:
        client.describe("sum", timeout=30)
        for options in ({}, {"timeout": 0.06}):
            with client.session("sum", **options) as session:
                session.send([1.0])
                with pytest.raises(DeadlineExceededError, match="within 0.0[56] s"):
                    session.receive()


def test_without_a_server_the_reason_is_said(make_server):
    server = make_server()
    retries = Retries(unreachable_timeout=0.2)
    with Client(server.address, retries=retries) as client, client.session("sum") as session:
        session.send([1.0])
        session.receive()
        server.stop()
        session.send([2.0])
        session.send([3.0], timeout=60)
        assert outcomes(session) == [UnreachableError, UnreachableError]
        make_server(address=server.address)
        client.wait_until_ready(30)
        session.send([4.0])  # goes on from the last answer
        assert session.receive().value == 5.0
        server.stop()


def test_failures_are_retried_as_often_as_calls_are(server):
    overloaded = Error(code=8, message="queue is full", retry_after_ms=1)
    retries = Retries(max_attempts=3)
    with Client(server.address, retries=retries) as client, client.session("sum") as session:
        server.failures = [overloaded] * 2
        session.send([1.0])
        session.send([2.0])
        assert outcomes(session) == [1.0, 3.0]
        server.failures = [overloaded] * 3
        session.send([3.0])
        assert outcomes(session) == [OverloadedError]
        session.send([4.0])
        assert outcomes(session) == [7.0]
        assert session.steps == 3


def test_overload_that_outlasts_the_timeout_is_the_answer(server):
    server.failures = [Error(code=8, message="queue is full", retry_after_ms=60_000)]
    with Client(server.address) as client, client.session("sum", timeout=5) as session:
        session.send([1.0])
        assert outcomes(session) == [OverloadedError]
        session.send([2.0])
        assert outcomes(session) == [2.0]


def test_a_server_without_the_version_is_passed_over(make_server):
    """As while new versions are rolled out: the state is of the version it began with."""
    servers = [make_server(versions=versions) for versions in ((1,), (2,), (1, 2))]
    with Client(addresses(servers[:1])) as client, client.session("sum") as session:
        session.send([1.0])
        session.receive()
        state = session.state
    with (
        Client(addresses(servers), retries=Retries(initial_backoff=0.001)) as client,
        client.session("sum", version=1, state=state) as session,
    ):
        wait_for_all_servers(client)
        for value in (2.0, 3.0, 4.0):
            session.send([value])
            session.receive()
            used = next(one for one in servers if one.open_sessions)
            assert used is not servers[1]
            used.end_sessions("evicted")
        assert session.steps == 4


def test_a_state_that_no_server_takes_is_an_error(make_server):
    server = make_server()
    with Client(server.address) as client, client.session("sum") as session:
        session.send([1.0])
        session.receive()
        server.versions = (2,)
        server.end_sessions("version 1 is unloaded")
        session.send([2.0])
        with pytest.raises(NotFoundError, match="cannot go on after 1 steps: version 1 not found"):
            session.receive()
        with (
            client.session("sum", state=pack_state(1, 3, [6.0])) as other,
            pytest.raises(InvalidInputError, match="state is of version 1"),
        ):
            predict(other, 1.0)


def test_a_message_that_is_too_large_is_not_sent(server):
    with (
        Client(server.address, max_message_bytes=4096) as client,
        client.session("sum") as session,
    ):
        session.send([1.0])
        with pytest.raises(OverloadedError, match="expected at most 4096"):
            session.send(np.ones((2000, 1), np.float32))
        session.send([1.0])
        assert outcomes(session) == [1.0, 2.0]


def test_sending_waits_while_too_much_is_unanswered(server):
    server.hold_answers()
    with (
        Client(server.address, max_pending_requests=2) as client,
        client.session("sum") as session,
    ):
        session.send([1.0])
        session.send([2.0])
        with pytest.raises(DeadlineExceededError, match="within 0.05 s"):
            session.send([3.0], timeout=0.05)
        server.release_answers()
        session.send([4.0])
        assert outcomes(session) == [1.0, 3.0, 7.0]


def test_a_thread_receives_while_another_sends(server):
    count, received = 300, []
    with Client(server.address) as client, client.session("sum") as session:

        def receive():
            received.extend(session.receive().value for _ in range(count))

        receiver = threading.Thread(target=receive)
        receiver.start()
        for _ in range(count):
            session.send([1.0])
        receiver.join(30)
    assert received == list(range(1, count + 1))


def test_closing_wakes_those_that_wait(server, wait_until):
    server.hold_answers()
    errors = []
    with Client(server.address) as client:

        def wait(session):
            try:
                session.receive()
            except Exception as error:
                errors.append(error)

        sessions = [client.session("sum") for _ in range(3)]
        sessions[0].send([1.0])
        sessions[2].send([1.0])
        threads = [threading.Thread(target=wait, args=[one]) for one in sessions]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.open_sessions == 2)
        sessions[0].close()
        sessions[1].close()
        for thread in threads[:2]:
            thread.join(10)
        wait_until(lambda: server.open_sessions == 1)
        assert [str(one) for one in errors] == ["session closed"] * 2
    threads[2].join(10)
    assert [str(one) for one in errors[2:]] == ["client closed"]
    assert all(isinstance(error, ClosedError) for error in errors)


def test_a_cancelled_coroutine_loses_no_answer(server):
    async def main():
        async with AsyncClient(server.address) as client, client.session("sum") as session:
            server.hold_answers()
            await session.send([1.0])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.receive(), 0.05)
            server.release_answers()
            await session.send([2.0])
            assert [answer.value async for answer in session] == [1.0, 3.0]

    asyncio.run(main())


def test_many_sessions_share_few_connections(make_server, monkeypatch, wait_until):
    """A server that allows fewer streams on a connection than there are sessions."""
    count, limit = 500, session_channels.MAX_STREAMS_PER_CONNECTION
    server = make_server(max_streams=limit)
    threads = threading.active_count()

    async def main():
        async with AsyncClient(server.address, timeout=60) as client:
            sessions = [client.session("sum") for _ in range(count)]

            async def step(session, value):
                await session.send([value])
                return (await session.receive()).value

            for number in (1, 2):
                values = [step(one, float(index)) for index, one in enumerate(sessions)]
                sums = await asyncio.gather(*values)
                assert sums == [number * index for index in range(count)]
            assert server.open_sessions == count
            channels = client._base.pool.endpoints[0].session_channels
            assert len(channels._streams_by_channel) == count / limit
            assert threading.active_count() - threads < count / 4
            await asyncio.gather(*[one.close() for one in sessions])

    asyncio.run(main())
    wait_until(lambda: server.open_sessions == 0)
    assert server.max_open_sessions == count


def test_sessions_are_spread_over_servers(pair):
    with Client(addresses(pair)) as client:
        wait_for_all_servers(client)
        sessions = [client.session("sum") for _ in range(10)]
        for one in sessions:
            one.send([1.0])
            one.receive()
        assert [one.open_sessions for one in pair] == [5, 5]


def test_a_closed_client_opens_no_session(server):
    client = Client(server.address)
    session = client.session("sum")
    client.close()
    for use in (lambda: session.send([1.0]), session.receive, lambda: next(session)):
        with pytest.raises(ClosedError, match="client closed"):
            use()


@pytest.mark.parametrize("begin", ["never", "once"])
def test_a_closed_client_ends_who_waits_for_an_answer(server, begin, wait_until):
    client = Client(server.address)
    session = client.session("sum")
    if begin == "once":  # the session has no stream then, as before its first steps
        session.send([1.0])
        session.receive()
        server.end_sessions("evicted")
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(session.receive)
        wait_until(lambda: session._call._waiters)
        client.close()
        try:
            with pytest.raises(ClosedError, match="client closed"):
                answer.result(10)
        finally:
            session.close()


@pytest.mark.parametrize("seed", range(3))
def test_any_faults_give_the_sums_of_the_steps_that_were_answered(pair, seed):
    """Servers end sessions, lose them, refuse and are overloaded while steps are sent."""
    chance = np.random.default_rng(seed)
    values, received = [], []
    retries = Retries(max_attempts=50, initial_backoff=0.001, max_backoff=0.01)
    with Client(addresses(pair), retries=retries) as client, client.session("sum") as session:
        wait_for_all_servers(client)
        for _ in range(60):
            for value in chance.integers(1, 9, chance.integers(1, 4)):
                values.append(float(value))
                session.send([values[-1]])
            fault = chance.integers(6)
            server = pair[chance.integers(2)]
            if fault == 0:
                server.end_sessions("evicted")
            elif fault == 1:
                server.failures.append(Error(code=3, message="refused"))
            elif fault == 2:
                server.failures.append(Error(code=8, message="full", retry_after_ms=1))
            elif fault == 3:
                server.failures.append(Error(code=14, message="stopping"))
            elif fault == 4:
                for endpoint in client._base.pool.endpoints:
                    endpoint.fail_calls()
            if chance.random() < 0.5:
                received += outcomes(session)
        received += outcomes(session)
    assert len(received) == len(values)
    total = 0.0
    for value, outcome in zip(values, received, strict=True):
        if outcome is InvalidInputError:
            continue
        total += value
        assert outcome == total
