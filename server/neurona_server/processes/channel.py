"""How a supervisor and a worker talk: short messages over a socket that both have.

| to the worker | |
|---|---|
| page | send a page of metrics |
| stop | stop as at SIGTERM |
| (the end) | the supervisor is gone |

| to the supervisor | |
|---|---|
| hello | it can be asked for pages |
| ready | it listens |
| page | the page that it was asked for, as `metrics_page` encodes it |
| last | a page that it sends before it ends |
"""

import contextlib
import socket
import struct
import threading

_HEAD = struct.Struct("<BI")  # the length of the kind, and of the content


class Channel:
    """Any thread may send; one receives."""

    def __init__(self, own: socket.socket) -> None:
        self._socket = own
        self._sending = threading.Lock()

    def send(self, kind: str, content: bytes = b"") -> None:
        """Nothing if the other one is gone: whoever receives learns that."""
        name = kind.encode()
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(_HEAD.pack(len(name), len(content)) + name + content)

    def receive(self) -> tuple[str, bytes] | None:
        """The next message, as soon as it is there; None if the other one is gone."""
        head = self._read(_HEAD.size)
        if head is None:
            return None
        kind, content = map(self._read, _HEAD.unpack(head))
        return None if kind is None or content is None else (kind.decode(), content)

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(size - len(parts))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
