"""How many connections may be open, and which are closed when there are too many."""

import resource
import socket
import time
import urllib.request

import grpc
import pytest
from support import http2
from support.server_process import ServerProcess

from neurona_server import resources
from neurona_server.rpc.transports.connection_guard import ConnectionLimits
from neurona_server.rpc.transports.listener import RESERVED_DESCRIPTORS, connection_limits

HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture
def start(repository, transport):
    servers = []

    def start(*flags):
        server = ServerProcess(repository, "--transport", transport, *flags)
        servers.append(server)
        return server.start().wait_until_serving()

    yield start
    for server in servers:
        server.close()


def connect(server, count):
    return [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(count)]


def is_closed(connection):
    """Return whether the server has closed a connection."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def count_closed(connections):
    return sum(map(is_closed, connections))


def call(channel):
    return channel.unary_unary(HEALTH)(b"", timeout=20)


def test_connections_beyond_the_limit_are_closed_and_the_others_served(start, wait_until):
    server = start("--max-connections", 20)
    connections = connect(server, 50)
    wait_until(lambda: count_closed(connections) >= 31)  # the channel of the test has one
    call(server.channel)
    with urllib.request.urlopen(f"http://{server.metrics_address}/healthz", timeout=5) as page:
        assert page.status == 200
    for each in connections:
        each.close()


def test_the_newest_connections_of_an_address_are_closed(start, wait_until):
    server = start("--max-connections-per-address", 10)
    connections = [http2.Connection(server.port) for _ in range(30)]
    sockets = [each._socket for each in connections]
    wait_until(lambda: count_closed(sockets) >= 21)
    call(server.channel)
    assert 'neurona_closed_connections_total{reason="per_address"} 2' in server.metrics()
    assert server.log.count("max_connections_per_address") == 1  # not one line for each
    for each in connections:
        each.close()


def test_connections_without_a_call_leave_room_for_others(start, wait_until):
    server = start("--max-connections", 20)
    unused = connect(server, 18)
    wait_until(lambda: count_closed(unused) >= 9)
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as other:
        call(other)
    call(server.channel)
    assert 'neurona_closed_connections_total{reason="never_called"}' in server.metrics()
    for each in unused:
        each.close()


@pytest.mark.long
@pytest.mark.slow
def test_a_connection_has_to_finish_its_handshake(start):
    server = start()
    silent, preface_only = connect(server, 2)
    preface_only.sendall(http2.PREFACE)
    end = time.monotonic() + 20
    while count_closed([silent, preface_only]) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    call(server.channel)
    silent.close()
    preface_only.close()


def test_the_number_of_connections_is_a_metric(start, wait_until):
    server = start()
    connections = connect(server, 7)
    wait_until(lambda: "neurona_connections 8.0" in server.metrics())
    for each in connections:
        each.close()
    wait_until(lambda: "neurona_connections 1.0" in server.metrics())


def test_descriptors_are_kept_for_other_uses(monkeypatch):
    """As with `ulimit -n 1000`, of which each of two addresses gets a part."""
    limits = [(256, 1000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert connection_limits(0, 0, 2).total == (1000 - RESERVED_DESCRIPTORS) // 2
    assert limits[-1] == (1000, 1000)
    assert connection_limits(50, 7, 2) == ConnectionLimits(50, 7)
    limits[-1] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert resources.raise_descriptor_limit(5000) == 5000
