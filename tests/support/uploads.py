"""Calls whose request messages stay incomplete, within HTTP/2's flow control.

`http2.Connection` sends regardless of windows, which is enough for small messages only.
"""

import re
import select
import socket
import struct
import time

from support import http2

FRAME_BYTES = 16384
WINDOW_SETTING = 4


class Uploads:
    """Several calls of one connection, each with all of its message but the last byte."""

    def __init__(self, port: int, path: str, calls: int, size: int, **headers: str) -> None:
        self.statuses: dict[int, tuple[int, bytes]] = {}
        """By stream, of the calls that have ended: the status, and the frame with all headers."""
        self.sent = 0
        self.closed = False
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._socket.setblocking(False)
        self._received = b""
        self._connection_window = self._initial_window = 65535
        settings = struct.pack(">HI", http2.HEADER_TABLE_SIZE, 0)
        self._unsent = bytearray(http2.PREFACE + http2.encode_frame(http2.SETTINGS, 0, 0, settings))
        names = http2.block(
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")),
            *(("content-type", "application/grpc"), ("te", "trailers"), *headers.items()),
        )
        self._windows: dict[int, int] = {}
        self._missing: dict[int, int] = {}
        for stream in range(1, 2 * calls, 2):
            self._unsent += http2.encode_frame(http2.HEADERS, http2.END_HEADERS, stream, names)
            self._unsent += http2.encode_frame(http2.DATA, 0, stream, struct.pack(">BI", 0, size))
            self._windows[stream] = self._initial_window - 5
            self._missing[stream] = size - 1
            self._connection_window -= 5

    def run(self, seconds: float) -> None:
        """Send until all calls have ended or the connection is closed, at most for `seconds`."""
        end = time.monotonic() + seconds
        while self._windows and not self.closed and time.monotonic() < end:
            self._add_data()
            writable = [self._socket] if self._unsent else []
            readable, writable, _ = select.select([self._socket], writable, [], 0.05)
            try:
                if writable:
                    del self._unsent[: self._socket.send(self._unsent[: 1 << 18])]
                if readable:
                    self._receive()
            except OSError:
                self.closed = True

    def close(self) -> None:
        self._socket.close()

    def _add_data(self) -> None:
        for stream in self._windows:
            while len(self._unsent) < 1 << 20:
                windows = self._windows[stream], self._connection_window
                size = min(FRAME_BYTES, *windows, self._missing[stream])
                if size <= 0:
                    break
                self._unsent += http2.encode_frame(http2.DATA, 0, stream, b"\x0a" * size)
                self._windows[stream] -= size
                self._connection_window -= size
                self._missing[stream] -= size
                self.sent += size

    def _receive(self) -> None:
        received = self._socket.recv(1 << 18)
        self.closed = not received
        self._received += received
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self._received[3:9])
            payload = self._received[9 : 9 + length]
            self._received = self._received[9 + length :]
            self._handle(http2.Frame(kind, flags, stream, payload))

    def _handle(self, frame: http2.Frame) -> None:
        if frame.kind == http2.WINDOW:
            (size,) = struct.unpack(">I", frame.payload)
            if frame.stream == 0:
                self._connection_window += size
            elif frame.stream in self._windows:
                self._windows[frame.stream] += size
        elif frame.kind == http2.SETTINGS and not frame.flags & http2.ACK:
            for name, value in struct.iter_unpack(">HI", frame.payload):
                if name == WINDOW_SETTING:
                    for stream in self._windows:
                        self._windows[stream] += value - self._initial_window
                    self._initial_window = value
            self._unsent += http2.encode_frame(http2.SETTINGS, http2.ACK, 0, b"")
        elif frame.kind == http2.PING and not frame.flags & http2.ACK:
            self._unsent += http2.encode_frame(http2.PING, http2.ACK, 0, frame.payload)
        elif frame.stream in self._windows and (
            frame.kind == http2.RESET or frame.flags & http2.END_STREAM
        ):
            status = re.search(rb"grpc-status.(\d+)", frame.payload)
            self.statuses[frame.stream] = int(status[1]) if status else -1, frame.payload
            del self._windows[frame.stream]
