"""Names whose addresses cannot be looked up for a while; servers that do not say how they are."""

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from neurona_client import Client, Retries, UnavailableError
from neurona_client.transport import endpoint

ROW = np.array([1, 2, 3, 4], np.float32)


def test_a_name_that_cannot_be_looked_up_for_a_while_keeps_its_addresses(server, monkeypatch):
    lookup = socket.getaddrinfo

    def gone(*_, **__):
        raise socket.gaierror("no name server answers")

    with Client(f"dns:///localhost:{server.port}", timeout=20) as client:
        client.predict("classifier", ROW)
        before = client._calls.fleet.endpoints
        monkeypatch.setattr(socket, "getaddrinfo", gone)
        client._calls.fleet.refresh()
        assert client._calls.fleet.endpoints == before
        assert client.predict("classifier", ROW).label == "cat"
        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        client._calls.fleet.refresh()
        assert client._calls.fleet.endpoints == before


@pytest.mark.parametrize("coalesce", [True, False])
def test_a_call_whose_server_was_just_given_up_is_not_told_that_the_client_is_closed(
    server, coalesce
):
    retries = Retries(attempts=1, patience=0.1)
    with Client(f"127.0.0.1:{server.port}", coalesce=coalesce, retries=retries) as client:
        client.predict("classifier", ROW)
        client._calls.fleet.endpoints[0].close()
        for _ in range(2):
            with pytest.raises(UnavailableError):
                client.predict("classifier", ROW)
        assert client._calls.gate.inside == (0, 0)


class Refusing(grpc.GenericRpcHandler):
    """A server of somebody else's, that does not know health checks."""

    def service(self, _):
        return None


def test_a_server_that_does_not_tell_how_it_is_is_found_to_be_gone(monkeypatch, wait_until):
    monkeypatch.setattr(endpoint, "_LONG_PAUSE", 0.05)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Refusing()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with Client(f"127.0.0.1:{port}") as client:
            only = client._calls.fleet.endpoints[0]
            wait_until(lambda: only.reachable)
            server.stop(0).wait()
            wait_until(lambda: not only.reachable)
