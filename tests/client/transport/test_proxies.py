"""The proxy of the environment: connections to this machine do not go through it."""

import asyncio
import socket
import subprocess
import threading

import numpy as np
import pytest
from support.cli import NEURONA, environment

from neurona_client import AsyncClient, Client, Retries, UnavailableError
from neurona_client.cli.metrics_page import read_metrics_page

ROW = np.ones(4, np.float32)
VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class RecordingProxy:
    """A proxy that refuses all connections, and keeps the first line of each request."""

    def __init__(self):
        self.requests = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(4096).decode().splitlines()[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    def close(self):
        self._socket.close()


@pytest.fixture
def proxy(monkeypatch):
    proxy = RecordingProxy()
    for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in VARIABLES:
        monkeypatch.setenv(name, proxy.url)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "dns:///localhost:{}"])
def test_calls_to_this_machine_do_not_go_through_it(server, proxy, form):
    address = form.format(server.port)

    async def predict():
        async with AsyncClient(address, timeout=20) as client:
            return await client.predict("classifier", ROW)

    with Client(address, timeout=20) as client:
        assert client.predict("classifier", ROW).label == "cat"
    assert asyncio.run(predict()).label == "cat"
    assert proxy.requests == []


def test_calls_to_a_unix_socket_do_not_go_through_it(make_server, proxy, tmp_path):
    address = f"unix:{tmp_path}/socket"
    make_server(address=address)
    with Client(address, timeout=20) as client:
        assert client.predict("classifier", ROW).label == "cat"
    assert proxy.requests == []


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_other_machines_are_reached_through_it_unless_excluded(proxy, monkeypatch, variable):
    retries = Retries(unreachable_timeout=0.1)
    with Client("models.invalid:8001", retries=retries) as client, pytest.raises(UnavailableError):
        client.predict("classifier", ROW)
    assert "CONNECT models.invalid:8001 HTTP/1.1" in proxy.requests
    proxy.requests.clear()
    monkeypatch.setenv(variable, ".invalid")
    with (
        Client("models.invalid:8001", retries=retries) as client,
        pytest.raises(UnavailableError, match="models.invalid"),
    ):
        client.predict("classifier", ROW)
    assert proxy.requests == []


def test_the_health_check_does_not_go_through_it(server, proxy):
    server.health.set({"": True})
    address = f"127.0.0.1:{server.port}"
    variables = dict.fromkeys(VARIABLES, proxy.url)
    done = subprocess.run(
        [NEURONA, "health", "--address", address],
        check=False,
        env=environment(**variables),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
    assert proxy.requests == []


def test_metrics_are_not_read_through_it(proxy):
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\n"
    with socket.create_server(("127.0.0.1", 0)) as metrics:

        def serve():
            connection, _ = metrics.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(page)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{metrics.getsockname()[1]}"
        assert read_metrics_page(address, timeout=20).total("a") == 1
        thread.join()
    assert proxy.requests == []
