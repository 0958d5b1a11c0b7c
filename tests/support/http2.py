"""HTTP/2 by hand: frames that no gRPC library would send, and the frames of the response."""

import re
import socket
import ssl
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


def encode_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(*headers: tuple[str | bytes, str | bytes]) -> bytes:
    """Encode headers as HPACK literals, neither indexed nor compressed."""
    texts = [text.encode() if isinstance(text, str) else text for pair in headers for text in pair]
    assert max(map(len, texts)) < 127
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs
    )


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """Frame a gRPC message: a flag, a length, the bytes."""
    return struct.pack(">BI", compressed, len(body)) + body


class Connection:
    def __init__(
        self, port: int, *, answer_pings: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect to a port of this machine, with TLS if there is a context for it."""
        self._answer_pings = answer_pings
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="localhost")
        self._streams = 1
        # Without a header table the server's headers are literals too.
        self.send(PREFACE + encode_frame(SETTINGS, 0, 0, struct.pack(">HI", HEADER_TABLE_SIZE, 0)))

    def set_timeout(self, seconds: float) -> None:
        """Raise TimeoutError when the server takes longer for a part."""
        self._socket.settimeout(seconds)

    def send(self, raw: bytes) -> None:
        self._socket.sendall(raw)

    def call(
        self, path: str | bytes, *messages: bytes, end: bool = True, **headers: str | bytes
    ) -> int:
        """Start a call; return its stream's number."""
        stream, self._streams = self._streams, self._streams + 2
        others = [(name.replace("_", "-"), value) for name, value in headers.items()]
        names = block(
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")),
            *(("content-type", "application/grpc"), ("te", "trailers"), *others),
        )
        raw = encode_frame(HEADERS, END_HEADERS, stream, names)
        body = b"".join(messages)
        for start in range(0, len(body), 16384):
            raw += encode_frame(DATA, 0, stream, body[start : start + 16384])
        self.send(raw + (encode_frame(DATA, END_STREAM, stream, b"") if end else b""))
        return stream

    def read(self) -> Frame | None:
        """Return the next frame; None when the server has closed the connection."""
        head = self._read_exactly(9)
        if head is None:
            return None
        length = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = self._read_exactly(length)
        if (kind, flags) == (SETTINGS, 0):
            self.send(encode_frame(SETTINGS, ACK, 0, b""))
        if (kind, flags) == (PING, 0) and self._answer_pings and payload is not None:
            self.send(encode_frame(PING, ACK, 0, payload))
        return None if payload is None else Frame(kind, flags, stream, payload)

    def read_until(self, kind: int, stream: int = 0, *, flags: int = 0) -> Frame:
        """Return the next frame of a kind; skip those before it."""
        while (frame := self.read()) is not None:
            if (frame.kind, frame.stream, frame.flags & flags) == (kind, stream, flags):
                return frame
        raise ConnectionError("the server closed the connection")

    def read_response(self, stream: int) -> bytes:
        """Return the payloads of all frames of a call, up to its end."""
        received = b""
        while (frame := self.read()) is not None:
            if frame.stream == stream:
                received += frame.payload
                if frame.kind == RESET or frame.flags & END_STREAM:
                    return received
        raise ConnectionError("the server closed the connection")

    def read_statuses(self, streams: Iterable[int]) -> dict[int, int]:
        """Return each call's grpc-status, or -1 if it was reset."""
        statuses: dict[int, int] = {}
        pending = set(streams)
        while pending:
            frame = self.read()
            if frame is None:
                raise ConnectionError("the server closed the connection")
            if frame.stream in pending and (frame.kind == RESET or frame.flags & END_STREAM):
                status = re.search(rb"grpc-status.(\d+)", frame.payload)
                statuses[frame.stream] = int(status[1]) if status else -1
                pending.discard(frame.stream)
        return statuses

    def close(self) -> None:
        self._socket.close()

    def _read_exactly(self, length: int) -> bytes | None:
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
