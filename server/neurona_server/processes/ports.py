"""What several processes on one port have in common, and what cannot be had with them."""

import contextlib
import errno
import socket
from collections.abc import Sequence

from neurona_server.errors import ConfigError


class ReservedPorts:
    """Ports that are bound, but not listened on, until `close`: whoever shares them comes and
    goes, and they remain the same."""

    def __init__(self, addresses: str, *, shared: bool = False) -> None:
        """`shared`: with other servers too. Raises ConfigError when one cannot be had."""
        self._sockets: list[socket.socket] = []
        try:
            self.addresses = ",".join(self._hold(one, shared) for one in addresses.split(","))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for one in self._sockets:
            one.close()

    def _hold(self, address: str, shared: bool) -> str:
        """The address, with the port that the system chose if it was 0."""
        host, _, text = address.rpartition(":")
        port = int(text)
        refused: OSError | None = None
        held = 0
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error.strerror}") from error
        for family, kind, _, _, place in dict.fromkeys(found):
            try:
                if port and not shared:
                    # Alone, or another server on this port would share our calls.
                    with socket.socket(family, kind) as probe:
                        _bind(probe, socket.SO_REUSEADDR, place, port)
                one = socket.socket(family, kind)
                self._sockets.append(one)
                port = _bind(one, socket.SO_REUSEPORT, place, port)
                held += 1
            except OSError as error:  # a name may have addresses that this machine has not
                refused = error
        if refused is not None and (not held or _is_taken(refused)):
            raise ConfigError(f"cannot listen on {address}: {refused.strerror}") from refused
        return f"{host}:{port}"


def _bind(one: socket.socket, option: int, place: Sequence[object], port: int) -> int:
    if one.family == getattr(socket, "AF_INET6", None):
        with contextlib.suppress(OSError):  # beside the same port of IPv4, not instead of it
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.setsockopt(socket.SOL_SOCKET, option, 1)
    one.bind((place[0], port, *place[2:]))
    return int(one.getsockname()[1])


def _is_taken(error: OSError) -> bool:
    return error.errno in (errno.EADDRINUSE, errno.EACCES)
