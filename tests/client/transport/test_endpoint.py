"""Endpoints: names that cannot be resolved for a while, and servers without health checks."""

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from neurona_client import Client, Retries, UnavailableError
from neurona_client.transport import endpoint

ROW = np.array([1, 2, 3, 4], np.float32)


def test_a_name_that_cannot_be_resolved_for_a_while_keeps_its_addresses(server, monkeypatch):
    resolve = socket.getaddrinfo

    def fail(*_, **__):
        raise socket.gaierror("no name server answers")

    with Client(f"dns:///localhost:{server.port}", timeout=20) as client:
        client.predict("classifier", ROW)
        before = client._base.pool.endpoints
        monkeypatch.setattr(socket, "getaddrinfo", fail)
        client._base.pool.resolve()
        assert client._base.pool.endpoints == before
        assert client.predict("classifier", ROW).label == "cat"
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        client._base.pool.resolve()
        assert client._base.pool.endpoints == before


@pytest.mark.parametrize("coalesce", [True, False])
def test_a_call_to_a_removed_endpoint_does_not_report_a_closed_client(server, coalesce):
    retries = Retries(max_attempts=1, unreachable_timeout=0.1)
    with Client(f"127.0.0.1:{server.port}", coalesce=coalesce, retries=retries) as client:
        client.predict("classifier", ROW)
        client._base.pool.endpoints[0].close()
        for _ in range(2):
            with pytest.raises(UnavailableError):
                client.predict("classifier", ROW)
        assert client._base.capacity.in_flight == (0, 0)


class WithoutHealthService(grpc.GenericRpcHandler):
    """A server of another program, without health checks."""

    def service(self, _):
        return None


def test_a_stopped_server_without_health_service_is_detected(monkeypatch, wait_until):
    monkeypatch.setattr(endpoint, "_WATCH_ERROR_RETRY_SECONDS", 0.05)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[WithoutHealthService()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with Client(f"127.0.0.1:{port}") as client:
            only_endpoint = client._base.pool.endpoints[0]
            wait_until(lambda: only_endpoint.reachable)
            server.stop(0).wait()
            wait_until(lambda: not only_endpoint.reachable)
