"""Sessions of the client on two server processes, one of which is killed, hangs or stops."""

import asyncio
import contextlib
import signal
import threading
import time

import numpy as np
import onnxruntime
import pytest
from support.recurrent_models import FEATURES, RecurrentModel, save_recurrent
from support.server_process import ServerProcess

from neurona_client import AsyncClient, Client, InvalidInputError

pytestmark = pytest.mark.slow

STEPS = np.random.default_rng(0).normal(size=(60, FEATURES)).astype(np.float32)

OPEN_SESSIONS = 'neurona_sessions_open{model="lstm",version="1"}'


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("recurrent")
    return save_recurrent(
        root / "lstm" / "1" / "model.onnx", RecurrentModel(layers=2, answer="last")
    )


@pytest.fixture(scope="module")
def expected(model_file):
    """The answer after each step, of the model file itself."""
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    return [session.run(None, {"steps": STEPS[None, : count + 1]})[0][0] for count in range(60)]


@pytest.fixture(scope="module")
def started(model_file):
    root = model_file.parents[2]
    flags = ("--log-level", "warning", "--load-check", "false", "--drain-delay-ms", 300)
    with contextlib.ExitStack() as stack:
        servers = [ServerProcess(root, *flags) for _ in range(2)]
        for server in servers:
            stack.callback(server.close)
        yield servers


@pytest.fixture
def servers(started):
    for server in started:
        if not server.is_running:
            server.start()
    for server in started:
        server.wait_until_serving()
    yield started
    for server in started:
        server.send_signal(signal.SIGCONT)


def of_session(servers):
    """The server that has the only session, and the other one."""
    first, second = servers
    return (first, second) if first.sample(OPEN_SESSIONS) else (second, first)


@contextlib.contextmanager
def walking(client, expected, count=60, pause=0.0):
    """A thread that sends and receives step by step, and checks each answer."""
    progress, errors = [], []

    def walk():
        try:
            with client.session("lstm", raw_outputs=True) as session:
                for index in range(count):
                    session.send(STEPS[index])
                    (answer,) = session.receive().outputs.values()
                    np.testing.assert_allclose(answer, expected[index], rtol=1e-4, atol=1e-5)
                    progress.append(time.monotonic())
                    time.sleep(pause)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=walk)
    thread.start()
    yield progress
    thread.join(60)
    assert not thread.is_alive()
    assert errors == []
    assert len(progress) == count


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_a_session_goes_on_with_the_same_answers(servers, expected, signal_number, wait_until):
    addresses = [server.address for server in servers]
    with Client(addresses) as client:
        client.wait_until_ready(60)
        with walking(client, expected, pause=0.01) as progress:
            wait_until(lambda: len(progress) > 10)
            first, second = of_session(servers)
            first.send_signal(signal_number)
            if signal_number == signal.SIGTERM:
                assert first.wait() == 0
        wait_until(lambda: second.sample(OPEN_SESSIONS) == 0)
        assert max(np.diff(progress)) < (10 if signal_number == signal.SIGSTOP else 2)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_sessions_that_wait_for_nothing_outlive_their_server(servers, expected, signal_number):
    """A server that stops does not wait for them."""
    with Client([server.address for server in servers]) as client:
        client.wait_until_ready(60)
        sessions = [client.session("lstm", raw_outputs=True) for _ in range(8)]
        for session in sessions:
            session.send(STEPS[:10])
            session.receive()
        assert [server.sample(OPEN_SESSIONS) for server in servers] == [4, 4]
        begin = time.monotonic()
        servers[0].stop(signal_number)
        assert time.monotonic() - begin < 5
        for session in sessions:
            session.send(STEPS[10])
            (answer,) = session.receive().outputs.values()
            np.testing.assert_allclose(answer, expected[10], rtol=1e-4, atol=1e-5)
            assert session.steps == 11
        assert servers[1].sample(OPEN_SESSIONS) == 8


def test_many_sessions_of_coroutines_go_on(servers, expected):
    """Some wait for answers when the server is killed, others for nothing; all are right."""

    async def walk(client, index, killed):
        async with client.session("lstm", raw_outputs=True) as session:
            for count in range(20):
                if count == 10 and index % 2:
                    await killed.wait()
                if count == 5:
                    await session.send(STEPS[:2, None])  # of two sequences
                    with pytest.raises(InvalidInputError, match="row count changed"):
                        await session.receive()
                await session.send(STEPS[count])
                (answer,) = (await session.receive()).outputs.values()
                np.testing.assert_allclose(answer, expected[count], rtol=1e-4, atol=1e-5)

    async def main():
        killed = asyncio.Event()
        async with AsyncClient([server.address for server in servers]) as client:
            await client.wait_until_ready(60)
            walks = [asyncio.create_task(walk(client, index, killed)) for index in range(300)]
            await asyncio.sleep(0.5)
            await asyncio.to_thread(servers[0].kill)
            killed.set()
            await asyncio.gather(*walks)

    asyncio.run(main())
