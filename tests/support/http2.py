"""HTTP/2 by hand: what no gRPC library would send, and the frames that come back."""

import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS = 1, 3


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*headers: tuple[str, str]) -> bytes:
    """Headers as HPACK literals, none of them indexed or compressed."""
    texts = [text.encode() for header in headers for text in header]
    assert max(map(len, texts)) < 127
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs
    )


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """As gRPC frames one: a flag, a length, the bytes."""
    return struct.pack(">BI", compressed, len(body)) + body


class Connection:
    def __init__(self, port: int, *, deaf: bool = False) -> None:
        """`deaf`: it answers no ping."""
        self._deaf = deaf
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._streams = 1
        # Without a table of headers, those that come back are literals too.
        self.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", HEADER_TABLE_SIZE, 0)))

    def send(self, raw: bytes) -> None:
        self._socket.sendall(raw)

    def call(self, path: str, *messages: bytes, end: bool = True, **headers: str) -> int:
        """Starts a call; its stream's number."""
        stream, self._streams = self._streams, self._streams + 2
        own = [(name.replace("_", "-"), value) for name, value in headers.items()]
        names = block(
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")),
            *(("content-type", "application/grpc"), ("te", "trailers"), *own),
        )
        raw = frame(HEADERS, END_HEADERS, stream, names)
        body = b"".join(messages)
        for start in range(0, len(body), 16384):
            raw += frame(DATA, 0, stream, body[start : start + 16384])
        self.send(raw + (frame(DATA, END_STREAM, stream, b"") if end else b""))
        return stream

    def read(self) -> Frame | None:
        """The next frame; None when the server has closed the connection."""
        head = self._exactly(9)
        if head is None:
            return None
        length = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = self._exactly(length)
        if (kind, flags) == (SETTINGS, 0):
            self.send(frame(SETTINGS, ACK, 0, b""))
        if (kind, flags) == (PING, 0) and not self._deaf and payload is not None:
            self.send(frame(PING, ACK, 0, payload))
        return None if payload is None else Frame(kind, flags, stream, payload)

    def until(self, kind: int, stream: int = 0, *, flags: int = 0) -> Frame:
        """The next frame of a kind; those before it are passed over."""
        while (came := self.read()) is not None:
            if (came.kind, came.stream, came.flags & flags) == (kind, stream, flags):
                return came
        raise ConnectionError("the server closed the connection")

    def ended(self, stream: int) -> bytes:
        """All that a call was answered with, as it stood on the wire."""
        received = b""
        while (came := self.read()) is not None:
            if came.stream == stream:
                received += came.payload
                if came.kind == RESET or came.flags & END_STREAM:
                    return received
        raise ConnectionError("the server closed the connection")

    def statuses(self, streams: Iterable[int]) -> dict[int, int]:
        """How each call ended: its grpc-status, or -1 when it was reset."""
        ended: dict[int, int] = {}
        waiting = set(streams)
        while waiting:
            came = self.read()
            if came is None:
                raise ConnectionError("the server closed the connection")
            if came.stream in waiting and (came.kind == RESET or came.flags & END_STREAM):
                status = re.search(rb"grpc-status.(\d+)", came.payload)
                ended[came.stream] = int(status[1]) if status else -1
                waiting.discard(came.stream)
        return ended

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, length: int) -> bytes | None:
        received = b""
        while len(received) < length:
            try:
                part = self._socket.recv(length - len(received))
            except ConnectionResetError:
                return None
            if not part:
                return None
            received += part
        return received
