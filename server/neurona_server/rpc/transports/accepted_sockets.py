"""The TCP connections that this process has accepted, with what the kernel counts about each.

gRPC gives no access to its sockets, so all descriptors of the process are tried. They are only
read here: a socket that gRPC closes meanwhile, and a descriptor that is used again, do no harm,
since the kernel numbers sockets (SO_COOKIE). The C functions are called without releasing the
interpreter's lock: none of them waits, and a thread that gives the lock away a thousand times per
scan waits a thousand times to get it back.

Source: man 5 proc; man 7 socket; man 7 tcp; linux/tcp.h for `struct tcp_info`.
"""

import ctypes
import ipaddress
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

CHUNK = 512
"""Descriptors that are read before other threads get a turn."""

PAUSE = 0.0002
"""Seconds of that turn."""

_TABLE_SIZE = re.compile(rb"^FDSize:\s*(\d+)", re.MULTILINE)
_SO_COOKIE = 57
_TCP_INFO = 11
_BYTES_RECEIVED = 128
"""Offset of tcpi_bytes_received, of 64 bits."""

_INFO_SIZE = 232
_ADDRESS_SIZE = 128
_buffer = ctypes.create_string_buffer(_INFO_SIZE)
_COOKIE = struct.Struct("=Q")
_PORT = struct.Struct("!H")


@dataclass(slots=True)
class AcceptedSocket:
    """One connection."""

    descriptor: int
    cookie: int
    """The kernel's number of the socket, never used twice."""
    peer: str
    """The caller's address and port, as gRPC's calls spell it: "ipv4:127.0.0.1:4711"."""
    address: str
    """The caller's address alone."""
    accepted: float = field(default_factory=time.monotonic)
    """When it was seen first, in seconds of the monotonic clock."""


class AcceptedSockets:
    """Finds the accepted connections of some listening ports. Only one thread may use it."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = frozenset(ports)
        self._by_descriptor: dict[int, AcceptedSocket] = {}
        self._others: dict[int, int] = {}  # cookies of sockets that are no accepted connections
        self._by_peer: dict[str, AcceptedSocket] = {}

    @property
    def sockets(self) -> list[AcceptedSocket]:
        """The connections of the last scan, the oldest first."""
        return sorted(self._by_descriptor.values(), key=lambda each: each.accepted)

    def __len__(self) -> int:
        return len(self._by_descriptor)

    def scan(self, pause: Callable[[float], object] = time.sleep) -> None:
        """Look for new and for closed connections."""
        if _libc is None:
            return
        connections: dict[int, AcceptedSocket] = {}
        others: dict[int, int] = {}
        for descriptor in range(_count_descriptors()):
            if descriptor % CHUNK == CHUNK - 1:
                pause(PAUSE)
            cookie = _cookie_of(descriptor)
            if cookie is None:
                continue
            connection = self._by_descriptor.get(descriptor)
            if connection is not None and connection.cookie == cookie:
                connections[descriptor] = connection
            elif self._others.get(descriptor) == cookie:
                others[descriptor] = cookie
            elif (accepted := self._examine(descriptor, cookie)) is not None:
                connections[descriptor] = accepted
            else:
                others[descriptor] = cookie
        self._by_descriptor, self._others = connections, others
        self._by_peer = {each.peer: each for each in connections.values()}

    def peers(self) -> Collection[str]:
        """Return the callers of the last scan, as `AcceptedSocket.peer`."""
        return self._by_peer.keys()

    def find(self, peer: str) -> AcceptedSocket | None:
        """Return the connection of a caller, as `AcceptedSocket.peer`, of the last scan."""
        return self._by_peer.get(peer)

    @staticmethod
    def bytes_received(connection: AcceptedSocket) -> int | None:
        """Return the bytes that have arrived so far; None if the connection is closed."""
        descriptor = connection.descriptor
        received = _bytes_received(descriptor)
        return received if _cookie_of(descriptor) == connection.cookie else None

    @staticmethod
    def shut_down(connection: AcceptedSocket) -> bool:
        """End a connection; return whether it was still open."""
        # gRPC may close the socket meanwhile, but not the duplicate of its descriptor.
        duplicate = _libc.dup(connection.descriptor)
        if duplicate < 0:
            return False
        try:
            same = _cookie_of(duplicate) == connection.cookie
            return same and not _libc.shutdown(duplicate, socket.SHUT_RDWR)
        finally:
            _libc.close(duplicate)

    def _examine(self, descriptor: int, cookie: int) -> AcceptedSocket | None:
        own = _address(descriptor, _libc.getsockname)
        if own is None or own[1] not in self._ports:
            return None
        peer = _address(descriptor, _libc.getpeername)
        if peer is None:  # it listens itself, or the caller has left already
            return None
        host, port = peer
        if ":" in host:
            name = f"ipv6:{quote(f'[{host}]', safe=':')}:{port}"
        else:
            name = f"ipv4:{host}:{port}"
        return AcceptedSocket(descriptor, cookie, name, host)


def _count_descriptors() -> int:
    """Return a number that is larger than all descriptors of this process, 0 if it is unknown.

    Listing /proc/self/fd would give the interpreter's lock away for each entry.
    """
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        if (match := _TABLE_SIZE.search(file.read())) is not None:
            return int(match[1])
    return 0


def _cookie_of(descriptor: int) -> int | None:
    """Return the kernel's number of a socket; None if the descriptor is none."""
    size = _option(descriptor, socket.SOL_SOCKET, _SO_COOKIE, _COOKIE.size)
    return _COOKIE.unpack_from(_buffer)[0] if size == _COOKIE.size else None


def _bytes_received(descriptor: int) -> int:
    size = _option(descriptor, socket.IPPROTO_TCP, _TCP_INFO, _INFO_SIZE)
    if size < _BYTES_RECEIVED + _COOKIE.size:
        return 0
    return int(_COOKIE.unpack_from(_buffer, _BYTES_RECEIVED)[0])


def _option(descriptor: int, level: int, name: int, size: int) -> int:
    """Write the value of a socket's option to the buffer; return its size, 0 if it has none."""
    length = ctypes.c_uint32(size)
    failed = _libc.getsockopt(descriptor, level, name, _buffer, ctypes.byref(length))
    return 0 if failed else length.value


def _address(descriptor: int, function: Callable[..., int]) -> tuple[str, int] | None:
    """Return the IP address and the port that a function of C reports for a socket."""
    length = ctypes.c_uint32(_ADDRESS_SIZE)
    if function(descriptor, _buffer, ctypes.byref(length)):
        return None
    raw = _buffer.raw
    family = int.from_bytes(raw[:2], sys.byteorder)
    (port,) = _PORT.unpack_from(raw, 2)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[4:8])), port
    if family == socket.AF_INET6:
        address = ipaddress.IPv6Address(raw[8:24])
        # A socket for both kinds of addresses; gRPC spells these as IPv4 too.
        return str(address.ipv4_mapped or address), port
    return None


_libc: Any = ctypes.PyDLL(None) if sys.platform == "linux" else None
