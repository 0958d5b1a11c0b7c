"""Reserves the ports that several worker processes share."""

import contextlib
import errno
import socket
from collections.abc import Sequence

from neurona_server.address import UNIX
from neurona_server.config.options import Config
from neurona_server.errors import ConfigError


class ReservedPorts:
    """Ports that are bound, without listening, until `close`.

    The workers that share them are replaced over time; the ports stay the server's.
    """

    def __init__(
        self, addresses: str, *, shared: bool = False, subject: str = "listen", advice: str = ""
    ) -> None:
        """Bind the ports.

        Args:
            addresses: HOST:PORT, or several, separated by commas. Port 0: the system chooses. A
                unix socket is left to the worker.
            shared: Allow other servers on the same ports.
            subject: What the ports are for, for errors: "cannot listen on ...".
            advice: What to do if one is in use, for the error.

        Raises:
            ConfigError: A port is in use, or an address is not of this machine.
        """
        self._sockets: list[socket.socket] = []
        self._subject = subject
        self._advice = advice
        try:
            self.addresses = ",".join(self._reserve(one, shared) for one in addresses.split(","))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for one in self._sockets:
            one.close()

    def _reserve(self, address: str, shared: bool) -> str:
        """Return the address with the port that was bound."""
        if address.startswith(UNIX):
            return address
        host, _, text = address.rpartition(":")
        port = int(text)
        failure: OSError | None = None
        bound = 0
        try:
            resolved = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError(f"cannot {self._subject} on {address}: {error.strerror}") from error
        except UnicodeError as error:  # the resolver takes no empty and no long labels
            raise ConfigError(f"cannot {self._subject} on {address}: no host name") from error
        for family, kind, _, _, socket_address in dict.fromkeys(resolved):
            try:
                if port and not shared:
                    # Without SO_REUSEPORT: fails if another server would share our calls.
                    with socket.socket(family, kind) as probe:
                        _bind(probe, [socket.SO_REUSEADDR], socket_address, port)
                one = socket.socket(family, kind)
                self._sockets.append(one)
                # SO_REUSEADDR: connections of an earlier server that did not share its port may
                # be in TIME_WAIT for a minute. They matter at the binding only; kept, the option
                # would let another server start before a worker of this one listens.
                options = [socket.SO_REUSEADDR, socket.SO_REUSEPORT]
                port = _bind(one, options, socket_address, port)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                bound += 1
            except OSError as error:  # a name may resolve to addresses this machine does not have
                failure = error
        if failure is not None and (not bound or _is_in_use(failure)):
            raise ConfigError(
                f"cannot {self._subject} on {address}: {failure.strerror}{self._advice}"
            ) from failure
        return f"{host}:{port}"


def reserve_ports(config: Config) -> list[ReservedPorts]:
    """Reserve the ports that the workers share: of gRPC, and of HTTP unless it is off.

    Raises:
        ConfigError: A port is in use, or an address is not of this machine.
    """
    advice = " (expected another address)"
    ports = [ReservedPorts(config.address, shared=config.reuse_port, advice=advice)]
    if config.http_address:
        http = ReservedPorts(
            config.http_address,
            shared=config.reuse_port,
            subject="serve HTTP",
            advice=" (expected another http_address, or off)",
        )
        ports.append(http)
    return ports


def _bind(one: socket.socket, options: Sequence[int], address: Sequence[object], port: int) -> int:
    if one.family == getattr(socket, "AF_INET6", None):
        with contextlib.suppress(OSError):  # beside the same port of IPv4, not instead of it
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for option in options:
        one.setsockopt(socket.SOL_SOCKET, option, 1)
    one.bind((address[0], port, *address[2:]))
    return int(one.getsockname()[1])


def _is_in_use(error: OSError) -> bool:
    return error.errno in (errno.EADDRINUSE, errno.EACCES)
