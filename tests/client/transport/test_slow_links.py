"""A slow connection is no server that hangs: what is written to it takes its time to arrive."""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest
from support.server_process import ServerProcess

from neurona_client import Client, InvalidInputError, Retries

BYTES_PER_SECOND = 1 << 20
PART_BYTES = 16 << 10


@contextlib.contextmanager
def slow_link(target):
    """An address that passes what it gets to `target`, at a limited rate, and back."""
    host, _, port = target.rpartition(":")
    sockets = []

    def copy(source, sink, rate):
        with contextlib.suppress(OSError):
            while part := source.recv(PART_BYTES):
                sink.sendall(part)
                time.sleep(len(part) / rate)
            sink.shutdown(socket.SHUT_WR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection((host, int(port)))
                sockets.extend((near, far))
                for ends in ((near, far, BYTES_PER_SECOND), (far, near, 1 << 30)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    for one in sockets:
        one.close()


@pytest.mark.slow
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])
def test_a_large_request_arrives(repository, coalesce):
    with (
        ServerProcess(repository, "--log-level", "warning") as server,
        slow_link(server.address) as first,
        slow_link(server.address) as second,
        Client([first, second], coalesce=coalesce, retries=Retries(max_attempts=1)) as client,
    ):
        client.wait_until_ready(60)
        started = time.monotonic()
        with pytest.raises(InvalidInputError):  # far too many rows: an answer of the server
            client.predict("classifier", np.ones((3 << 18, 4), np.float32))
        assert time.monotonic() - started > 6  # 12 MiB
        assert not any(one.hanging for one in client._base.pool.endpoints)
