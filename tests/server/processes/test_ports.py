"""Ports that are reserved without a server behind them."""

import socket

import pytest

from neurona_server.errors import ConfigError
from neurona_server.processes.ports import ReservedPorts


def test_a_free_port_is_chosen_once_and_can_be_shared():
    ports = ReservedPorts("127.0.0.1:0,127.0.0.1:0")
    first, second = ports.addresses.split(",")
    assert first != second
    port = int(first.rpartition(":")[2])
    with listen(port, shared=True), listen(port, shared=True):
        pass
    ports.close()


def test_a_port_is_reserved_while_no_worker_listens():
    ports = ReservedPorts("127.0.0.1:0")
    port = int(ports.addresses.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        listen(port)
    ports.close()
    listen(port).close()


@pytest.mark.parametrize("shared", [True, False])
def test_the_port_of_another_server_is_rejected(shared):
    with listen(0, shared=shared) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"cannot listen on {address}: .*in use"):
            ReservedPorts(address)
        if shared:  # allowed by an option
            ReservedPorts(address, shared=True).close()


@pytest.mark.parametrize("shared", [True, False])
def test_connections_in_time_wait_of_an_earlier_server_do_not_matter(shared):
    with listen(0, shared=shared) as earlier:
        address = earlier.getsockname()
        with socket.create_connection(address) as caller:
            earlier.accept()[0].close()  # who closes first waits
            assert caller.recv(1) == b""
    ports = ReservedPorts(f"127.0.0.1:{address[1]}")
    with pytest.raises(ConfigError, match="in use"):  # another server that starts now
        ReservedPorts(f"127.0.0.1:{address[1]}")
    with listen(address[1], shared=True), pytest.raises(ConfigError, match="in use"):
        ReservedPorts(f"127.0.0.1:{address[1]}")
    ports.close()


def test_an_address_of_another_machine_is_rejected():
    address = "192.0.2.1:0"
    with pytest.raises(ConfigError, match=f"cannot listen on {address}"):
        ReservedPorts(address)


def test_a_name_with_ipv4_and_ipv6_addresses_gets_one_port():
    ports = ReservedPorts("localhost:0")
    assert int(ports.addresses.removeprefix("localhost:")) > 0
    ports.close()


def listen(port, *, shared=False):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    try:
        one.bind(("127.0.0.1", port))
        one.listen()
    except OSError:
        one.close()
        raise
    return one


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".com", ".a"])
def test_an_address_that_is_no_host_name_is_an_error(host):
    with pytest.raises(ConfigError, match=r"cannot listen on .*:1: "):
        ReservedPorts(f"{host}:1", shared=False)
