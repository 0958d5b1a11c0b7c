"""A timeout that passes while no server is reachable: the error says why none is."""

import asyncio
import socket
import threading

import numpy as np
import pytest
from support.certificates import CertificateAuthority

from neurona_client import AsyncClient, Client, DeadlineExceededError, Tls
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.transports.listener import ListenerOptions

ROW = np.ones(4, np.float32)
TIMEOUT = 3.0
"""Below the 5 s that a client waits for servers; all clients wait at the same time."""


@pytest.fixture
def http_address():
    """Where a server of HTTP/1 answers, such as that of metrics."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_the_error_says_why_no_server_is_reachable(make_server, tmp_path, http_address):
    authority = CertificateAuthority(tmp_path, "authority")
    stranger = CertificateAuthority(tmp_path, "stranger")
    certificates = Certificates(*authority.issue("server"), None)
    plain = f"127.0.0.1:{make_server().port}"
    secure = f"127.0.0.1:{make_server(options=ListenerOptions(certificates=certificates)).port}"
    trusted = Tls(authority.certificate)
    cases = [
        ("127.0.0.1:1", None, "Connection refused"),
        (["127.0.0.1:1", "127.0.0.1:2"], None, "at 127.0.0.1:1, 127.0.0.1:2 within 3 s: "),
        (f"unix:{tmp_path}/absent", None, "No such file or directory"),
        ("absent.invalid:8001", None, "absent.invalid"),
        ("dns:///absent.invalid:8001", None, "absent.invalid"),
        (secure, None, "a server that requires TLS closes connections without it"),
        (plain, trusted, "the server does not use TLS there"),
        (secure, Tls(stranger.certificate), "no authority that the client trusts"),
        (secure, Tls(authority.certificate, server_name="other"), "its certificate is for another"),
        (http_address, None, "HTTP/1 is spoken there"),
    ]

    async def error_of(target, tls):
        async with AsyncClient(target, tls=tls, timeout=TIMEOUT) as client:
            with pytest.raises(DeadlineExceededError) as raised:
                await client.predict("classifier", ROW)
            return str(raised.value)

    async def all_errors():
        return await asyncio.gather(*(error_of(target, tls) for target, tls, _ in cases))

    for message, (_, _, reason) in zip(asyncio.run(all_errors()), cases, strict=True):
        assert "no server reachable at" in message
        assert reason in message, message


def test_threads_and_waiting_for_readiness_say_it_too():
    with Client("127.0.0.1:1", timeout=1.5) as client:
        with pytest.raises(DeadlineExceededError, match=r"127.0.0.1:1 within 1.5 s: .*refused"):
            client.predict("classifier", ROW)
        with pytest.raises(DeadlineExceededError, match="not ready within 1 s: .*refused"):
            client.wait_until_ready(1.0)


def test_the_reason_is_that_of_the_last_outage(make_server):
    server = make_server()
    with Client(f"127.0.0.1:{server.port}", timeout=20) as client:
        assert client.predict("classifier", ROW).label == "cat"
        server.listener.stop(0.0)
        with pytest.raises(DeadlineExceededError, match="refused"):
            client.predict("classifier", ROW, timeout=2)
