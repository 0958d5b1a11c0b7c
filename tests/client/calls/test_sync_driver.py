"""Ctrl-C at critical moments: the call ends, and no other call is affected."""

import threading

import numpy as np
import pytest

from neurona_client import Client

ROW = np.array([1, 2, 3, 4], np.float32)


def raise_interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("on_fast_path", [True, False])
def test_ctrl_c_while_a_write_starts_ends_the_call(server, on_fast_path):
    with Client(f"127.0.0.1:{server.port}", timeout=20) as client:
        client.predict("classifier", ROW)
        client._base.pool.endpoints[0].stream._schedule_write = raise_interrupt
        with pytest.raises(KeyboardInterrupt):
            client.predict("classifier", ROW if on_fast_path else ROW.tolist())
        assert client.predict("classifier", ROW).label == "cat"
        assert client._base.capacity.in_flight == (0, 0)


def test_ctrl_c_while_others_wait_does_not_affect_them(make_server, wait_until):
    server = make_server(start_models=False)
    labels = []
    with Client(f"127.0.0.1:{server.port}", timeout=20) as client:

        def predict():
            labels.append(client.predict("classifier", ROW).label)

        threads = [threading.Thread(target=predict) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.count("queue_rows", model="classifier", version="2") == 4)
        stream = client._base.pool.endpoints[0].stream
        wait_until(lambda: not stream._writing)
        stream._schedule_write = raise_interrupt
        with pytest.raises(KeyboardInterrupt):
            client.predict("classifier", ROW)
        server.registry.resolve("classifier").start()
        for thread in threads:
            thread.join()
        assert labels == ["cat"] * 4
        assert client._base.capacity.in_flight == (0, 0)
