"""Ctrl-C at the worst moments: the call ends, and nobody else waits in vain."""

import threading

import numpy as np
import pytest

from neurona_client import Client

ROW = np.array([1, 2, 3, 4], np.float32)


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("known", [True, False])
def test_while_the_message_is_begun(server, known):
    with Client(f"127.0.0.1:{server.port}", timeout=20) as client:
        client.predict("classifier", ROW)
        client._calls.fleet.endpoints[0].stream._soon = interrupted
        with pytest.raises(KeyboardInterrupt):
            client.predict("classifier", ROW if known else ROW.tolist())
        assert client.predict("classifier", ROW).label == "cat"
        assert client._calls.gate.inside == (0, 0)


def test_while_the_others_wait(make_server, wait_until):
    server = make_server(start_models=False)
    answers = []
    with Client(f"127.0.0.1:{server.port}", timeout=20) as client:

        def ask():
            answers.append(client.predict("classifier", ROW).label)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.count("queue_rows", model="classifier", version="2") == 4)
        stream = client._calls.fleet.endpoints[0].stream
        wait_until(lambda: not stream._writing)
        stream._soon = interrupted
        with pytest.raises(KeyboardInterrupt):
            client.predict("classifier", ROW)
        server.registry.resolve("classifier").start()
        for thread in threads:
            thread.join()
        assert answers == ["cat"] * 4
        assert client._calls.gate.inside == (0, 0)
