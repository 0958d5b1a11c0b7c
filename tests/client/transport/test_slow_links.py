"""A slow connection is no server that hangs: what is written to it takes its time to arrive.

Nor is a server whose handshakes are slow, because it is far away or its machine is busy.
"""

import contextlib
import socket
import threading
import time

import numpy as np
import pytest
from support.certificates import CertificateAuthority
from support.server_process import ServerProcess

from neurona_client import Client, InvalidInputError, Retries, Tls
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.transports.listener import ListenerOptions

BYTES_PER_SECOND = 1 << 20
PART_BYTES = 16 << 10


@contextlib.contextmanager
def slow_link(target, rate=1 << 30, delay=0.0):
    """An address that passes what it gets to `target`, and back.

    Args:
        target: The server's address.
        rate: Bytes per second towards the server.
        delay: Seconds that each part takes, either way.
    """
    host, _, port = target.rpartition(":")
    sockets = []

    def copy(source, sink, rate):
        with contextlib.suppress(OSError):
            while part := source.recv(PART_BYTES):
                time.sleep(delay)
                sink.sendall(part)
                time.sleep(len(part) / rate)
            sink.shutdown(socket.SHUT_WR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                sockets.append(near)
                far = socket.create_connection((host, int(port)))
                sockets.append(far)
                for ends in ((near, far, rate), (far, near, 1 << 30)):
                    threading.Thread(target=copy, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # which ends accept
            accepting.join()
            for one in sockets:
                one.close()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalescing", "unary"])
def test_a_large_request_arrives(repository, coalesce):
    with (
        ServerProcess(repository, "--log-level", "warning") as server,
        slow_link(server.address, BYTES_PER_SECOND) as first,
        slow_link(server.address, BYTES_PER_SECOND) as second,
        Client([first, second], coalesce=coalesce, retries=Retries(max_attempts=1)) as client,
    ):
        client.wait_until_ready(60)
        started = time.monotonic()
        with pytest.raises(InvalidInputError):  # far too many rows: an answer of the server
            client.predict("classifier", np.ones((3 << 18, 4), np.float32))
        assert time.monotonic() - started > 6  # 12 MiB
        assert not any(one.hanging for one in client._base.pool.endpoints)


@pytest.mark.slow
def test_a_slow_handshake_is_not_abandoned(make_server, tmp_path):
    authority = CertificateAuthority(tmp_path, "authority")
    certificates = Certificates(*authority.issue("server"))
    server = make_server(options=ListenerOptions(certificates=certificates))
    with (
        slow_link(f"127.0.0.1:{server.port}", delay=0.6) as address,
        Client(address, tls=Tls(authority.certificate)) as client,
    ):
        assert client.predict("classifier", np.ones(4, np.float32)).label == "cat"
