"""HTTP/2 by hand, for loads whose process must leave the cores to the server.

A request of a few KB and its response take some 10 us, where grpc.aio takes 150: the bytes of
requests are prepared, nothing is decoded but gRPC's status and the hint when to retry.
"""

import re
import socket
import struct
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
WINDOW_BYTES = 1 << 30
FIRST_WINDOW_BYTES = 65535
"""Of a connection and of a stream, until the server says otherwise."""
FRAME_BYTES = 16384
OK, OTHER = 0, -1

_FRAME = struct.Struct(">HBBBI")  # the length in 16 and 8 bits, kind, flags, stream
_STATUS = re.compile(rb"grpc-status.(\d+)")
_RETRY = re.compile(rb"retry-after-ms.(\d+)")


class PreparedCall(NamedTuple):
    """The frames of a call without the numbers of their stream, and the bytes of its message."""

    frames: tuple[tuple[bytes, bytes], ...]
    """The first five bytes of each, and what follows its stream's number."""
    size: int


class EndedCall(NamedTuple):
    """The end of a call.

    Attributes:
        call: What it was started with.
        status: 0 for a response, else gRPC's number, -1 for none at all.
        retry_after: Seconds of the hint; 0.0 if there is none.
        response: Its bytes.
    """

    call: Hashable
    status: int
    retry_after: float
    response: bytes


def encode_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns the bytes of a frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def encode_headers(method: str, *more: tuple[str, str]) -> bytes:
    """Returns the headers of a call as HPACK literals, which need no table."""
    pairs = (
        *((":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "load")),
        *(("content-type", "application/grpc"), ("te", "trailers"), *more),
    )
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in pairs
    )


def encode_message(body: bytes) -> bytes:
    """Returns a message of gRPC: a flag, its length, its bytes."""
    return struct.pack(">BI", 0, len(body)) + body


def prepare_call(headers: bytes, message: bytes) -> PreparedCall:
    """Returns a call of one message that can be started many times."""
    starts = range(0, len(message), FRAME_BYTES)
    frames = [encode_frame(HEADERS, END_HEADERS, 0, headers)]
    for start in starts:
        flags = END_STREAM if start == starts[-1] else 0
        frames.append(encode_frame(DATA, flags, 0, message[start : start + FRAME_BYTES]))
    return PreparedCall(tuple((frame[:5], frame[9:]) for frame in frames), len(message))


def parse_status(kind: int, payload: bytes) -> int:
    """Returns gRPC's status in the last frame of a call, OTHER if it has none."""
    if kind == HEADERS and (match := _STATUS.search(payload)):
        return int(match[1])
    return OTHER


def parse_retry_after(payload: bytes) -> float:
    """Returns the hint in the last frame of a call in seconds, 0.0 if there is none."""
    match = _RETRY.search(payload)
    return int(match[1]) / 1000 if match else 0.0


class Connection:
    """A connection to a server, its open calls, and the server's flow control.

    Attributes:
        socket: Its socket, which does not block.
        calls: What the open calls were started with, by stream.
        corked: Whether what is sent waits for `write_unsent`, so that many calls are one write.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.calls: dict[int, Hashable] = {}
        self.corked = False
        self._answers: dict[int, bytes] = {}
        self._stream = 1
        self._window = FIRST_WINDOW_BYTES
        self._received = 0
        self._unsent = bytearray()
        self._waiting: deque[bytes] = deque()
        """Frames for which the window is too small, in order."""
        self._rest = b""
        """The beginning of a frame whose end has not come."""
        settings = struct.pack(">HIHI", HEADER_TABLE_SIZE, 0, INITIAL_WINDOW_SIZE, WINDOW_BYTES)
        self._write(
            PREFACE
            + encode_frame(SETTINGS, 0, 0, settings)
            + encode_frame(WINDOW, 0, 0, struct.pack(">I", WINDOW_BYTES))
        )

    @property
    def wants_to_write(self) -> bool:
        """Whether the socket was full, or is corked and has something to write."""
        return bool(self._unsent)

    def call(self, prepared: PreparedCall, call: Hashable) -> None:
        """Starts a call and sends its only message, as far as the server allows."""
        stream = self._stream
        self._stream = stream + 2
        self.calls[stream] = call
        number = stream.to_bytes(4, "big")
        frames = [head + number + rest for head, rest in prepared.frames]
        if self.corked and not self._waiting and prepared.size <= self._window:
            self._window -= prepared.size
            for frame in frames:
                self._unsent += frame
        else:
            self._send(prepared.size, *frames)

    def open_stream(self, headers: bytes) -> int:
        """Starts a call of many messages and returns its stream."""
        stream = self._stream
        self._stream += 2
        self._send(0, encode_frame(HEADERS, END_HEADERS, stream, headers))
        return stream

    def send_message(self, stream: int, message: bytes) -> None:
        """Sends a message of a call, shorter than a frame; all of them than a stream's window."""
        self._send(len(message), encode_frame(DATA, 0, stream, message))

    def write_unsent(self) -> None:
        """Writes what was corked, and what the socket did not take before."""
        if self._unsent:
            try:
                sent = self.socket.send(self._unsent)
            except BlockingIOError:
                return
            del self._unsent[:sent]

    def read(self) -> list[EndedCall]:
        """Reads what has come, and returns the calls that have ended.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        ended = []
        answers, calls = self._answers, self.calls
        for kind, flags, stream, payload in self.read_frames():
            if kind == DATA:
                answers[stream] = answers[stream] + payload if stream in answers else payload
            # Once a call has ended, its stream is reset if the server did not read all of it.
            if (flags & END_STREAM or kind == RESET) and stream in calls:
                answer = answers.pop(stream, b"")
                if answer:
                    ended.append(EndedCall(calls.pop(stream), OK, 0.0, answer[5:]))
                else:
                    status, hint = parse_status(kind, payload), parse_retry_after(payload)
                    ended.append(EndedCall(calls.pop(stream), status, hint, b""))
        return ended

    def read_frames(self) -> list[tuple[int, int, int, bytes]]:
        """Reads what has come; returns kind, flags, stream and bytes of the frames of streams.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        try:
            received = self.socket.recv(1 << 18)
        except BlockingIOError:
            return []
        if not received:
            raise ConnectionError("the server closed the connection")
        self._received += len(received)
        if self._received > WINDOW_BYTES // 4:
            self._write(encode_frame(WINDOW, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        if self._rest:
            received = self._rest + received
        frames = []
        start, size = 0, len(received)
        unpack = _FRAME.unpack_from
        while size - start >= 9:
            high, low, kind, flags, stream = unpack(received, start)
            stop = start + 9 + (high << 8 | low)
            if stop > size:
                break
            if not stream:
                self._control(kind, flags, received[start + 9 : stop])
            elif kind in (DATA, HEADERS, RESET):
                frames.append((kind, flags, stream, received[start + 9 : stop]))
            start = stop
        self._rest = received[start:]
        return frames

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._write(encode_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._write(encode_frame(PING, ACK, 0, payload))
        elif kind == WINDOW:
            self._window += int.from_bytes(payload, "big")
            self._write_waiting()
        elif kind == GO_AWAY:
            raise ConnectionError("the server takes no more calls")

    def _send(self, size: int, *frames: bytes) -> None:
        """Sends frames that count `size` bytes for the server's window, once it has room."""
        if not self._waiting and size <= self._window:
            self._window -= size
            self._write(b"".join(frames))
            return
        self._waiting.extend(frames)
        self._write_waiting()

    def _write_waiting(self) -> None:
        ready = bytearray()
        while self._waiting:
            size = len(self._waiting[0]) - 9 if self._waiting[0][3] == DATA else 0
            if size > self._window:
                break
            self._window -= size
            ready += self._waiting.popleft()
        if ready:
            self._write(bytes(ready))

    def _write(self, raw: bytes) -> None:
        if not self._unsent and not self.corked:
            try:
                sent = self.socket.send(raw)
            except BlockingIOError:
                sent = 0
            raw = raw[sent:]
        self._unsent += raw
