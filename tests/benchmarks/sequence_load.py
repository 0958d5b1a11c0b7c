"""Requests to a server at random times, from one process that leaves the cores to the server.

    python sequence_load.py < LOAD > ARRIVALS

reads a pickled `Load` and writes pickled `Arrivals`. It speaks HTTP/2 by hand, with the bytes of
all requests prepared: some 20 us for a request and its response, where grpc.aio takes 150. A
request's time counts from when it should have been sent, so that one that is late because of
others is not excused.
"""

import math
import os
import pickle
import random
import re
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PREDICT = "/neurona.v1.Prediction/Predict"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
WINDOW_BYTES = 1 << 30
FIRST_WINDOW_BYTES = 65535
"""Of a connection and of a stream, until the server says otherwise."""
FRAME_BYTES = 16384
CONNECTIONS = 8
OK, OTHER = 0, -1


@dataclass(frozen=True)
class Load:
    """Requests for a while.

    Attributes:
        address: The server's, HOST:PORT.
        bodies: Serialized requests, one of which is drawn for each arrival.
        rate: Requests per second, at random times (a Poisson process).
        in_flight: If not 0, a request is sent for each response instead, so many at first.
        seconds: That are measured.
        warm_up_seconds: Before them, no more than these.
        drain_seconds: After them, to wait for responses.
        seed: Of the times and of what is sent.
        method: The path of the method.
    """

    address: str
    bodies: Sequence[bytes]
    rate: float = 0.0
    in_flight: int = 0
    seconds: float = 1.0
    warm_up_seconds: float = 0.3
    drain_seconds: float = 5.0
    seed: int = 0
    method: str = PREDICT


@dataclass
class Arrivals:
    """What became of the requests of a load, in the order in which they ended.

    Attributes:
        items: The index of what was sent, among the bodies.
        latencies: Seconds from when it should have been sent to its response.
        statuses: 0 for a response, else gRPC's number, -1 for none at all.
        lateness: Seconds from when requests should have been sent until they were.
        seconds: That were measured.
        ended: Responses that came in these seconds.
        total: Responses that came at all, in the warm-up and afterwards too.
        responses: The latest response of each body, as bytes.
        cpu_seconds: Of the process that made the load.
    """

    items: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    seconds: float = 0.0
    ended: int = 0
    total: int = 0
    responses: dict[int, bytes] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    @property
    def failed(self) -> int:
        """The number of requests without a response."""
        return sum(status != OK for status in self.statuses)

    @property
    def rate(self) -> float:
        """Responses per second."""
        return self.ended / self.seconds


def send_load(load: Load) -> Arrivals:
    """Sends a load from a process of its own.

    Raises:
        RuntimeError: The process fails; the message has its error.
    """
    command = [sys.executable, str(Path(__file__).resolve())]
    result = subprocess.run(command, check=False, input=pickle.dumps(load), capture_output=True)
    if result.returncode:
        raise RuntimeError(f"the load failed: {result.stderr.decode(errors='replace')}")
    arrivals: Arrivals = pickle.loads(result.stdout)  # noqa: S301 of our own process
    return arrivals


def encode_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns the bytes of a frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def encode_headers(method: str) -> bytes:
    """Returns the headers of a call as HPACK literals, which need no table."""
    pairs = (
        *((":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "load")),
        *(("content-type", "application/grpc"), ("te", "trailers")),
    )
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in pairs
    )


def encode_message(body: bytes) -> bytes:
    """Returns a message of gRPC: a flag, its length, its bytes."""
    return struct.pack(">BI", 0, len(body)) + body


class Connection:
    """A connection to a server, its open calls, and the server's flow control."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.calls: dict[int, tuple[int, float]] = {}
        """By stream: what was sent, and when it should have been."""
        self._answers: dict[int, list[bytes]] = {}
        self._stream = 1
        self._window = FIRST_WINDOW_BYTES
        self._received = 0
        self._unsent = bytearray()
        self._waiting: deque[bytes] = deque()
        """Data frames for which the window is too small, in order."""
        settings = struct.pack(">HIHI", HEADER_TABLE_SIZE, 0, INITIAL_WINDOW_SIZE, WINDOW_BYTES)
        self._write(
            PREFACE
            + encode_frame(SETTINGS, 0, 0, settings)
            + encode_frame(WINDOW, 0, 0, struct.pack(">I", WINDOW_BYTES))
        )
        self._buffer = bytearray()

    @property
    def wants_to_write(self) -> bool:
        """Whether the socket was full."""
        return bool(self._unsent)

    def call(self, headers: bytes, message: bytes, item: int, due: float) -> None:
        """Starts a call and sends its only message, as far as the server allows."""
        stream = self._stream
        self._stream += 2
        self.calls[stream] = item, due
        raw = encode_frame(HEADERS, END_HEADERS, stream, headers)
        frames = [
            encode_frame(
                DATA,
                END_STREAM if start + FRAME_BYTES >= len(message) else 0,
                stream,
                message[start : start + FRAME_BYTES],
            )
            for start in range(0, len(message), FRAME_BYTES)
        ]
        self._send(len(message), raw, *frames)

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
        """Writes what the socket did not take before."""
        unsent, self._unsent = bytes(self._unsent), bytearray()
        self._write(unsent)

    def read(self) -> list[tuple[int, int, float, bytes]]:
        """Reads what has come; returns what was sent, status, due time and response of each end.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        ended = []
        for kind, flags, stream, payload in self.read_frames():
            if kind == DATA:
                self._answers.setdefault(stream, []).append(payload)
            if (kind in (DATA, HEADERS) and flags & END_STREAM) or kind == RESET:
                item, due = self.calls.pop(stream)
                answer = b"".join(self._answers.pop(stream, ()))
                status = OK if answer else parse_status(kind, payload)
                ended.append((item, status, due, answer[5:]))
        return ended

    def read_frames(self) -> list[tuple[int, int, int, bytes]]:
        """Reads what has come; returns kind, flags, stream and bytes of the frames of streams.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        try:
            received = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        if not received:
            raise ConnectionError("the server closed the connection")
        self._received += len(received)
        if self._received > WINDOW_BYTES // 4:
            self._write(encode_frame(WINDOW, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        buffer = self._buffer
        buffer += received
        frames = []
        start, size = 0, len(buffer)
        while size - start >= 9:
            stop = start + 9 + (buffer[start] << 16 | buffer[start + 1] << 8 | buffer[start + 2])
            if stop > size:
                break
            kind, flags = buffer[start + 3], buffer[start + 4]
            stream = int.from_bytes(buffer[start + 5 : start + 9], "big") & 0x7FFFFFFF
            payload = bytes(buffer[start + 9 : stop])
            if stream == 0:
                self._control(kind, flags, payload)
            elif kind in (DATA, HEADERS, RESET):
                frames.append((kind, flags, stream, payload))
            start = stop
        del buffer[:start]
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
        if not self._unsent:
            try:
                sent = self.socket.send(raw)
            except BlockingIOError:
                sent = 0
            raw = raw[sent:]
        self._unsent += raw


def parse_status(kind: int, payload: bytes) -> int:
    """Returns gRPC's status in the last frame of a call, OTHER if it has none."""
    if kind == HEADERS and (match := re.search(rb"grpc-status.(\d+)", payload)):
        return int(match[1])
    return OTHER


def make_load(load: Load) -> Arrivals:
    """Sends a load from this process and returns what became of it."""
    generator = random.Random(load.seed)  # noqa: S311 a repeatable load
    connections = [Connection(load.address) for _ in range(CONNECTIONS)]
    by_socket = {one.socket: one for one in connections}
    headers = encode_headers(load.method)
    messages = [encode_message(body) for body in load.bodies]
    draw = generator.randrange
    arrivals = Arrivals()
    begin = time.perf_counter() + 0.05
    measured_from = begin + min(load.warm_up_seconds, load.seconds)
    until = measured_from + load.seconds
    due = begin + generator.expovariate(load.rate) if load.rate else math.inf
    unanswered = number = 0

    def send(due: float) -> None:
        nonlocal unanswered, number
        item = draw(len(messages))
        connections[number % CONNECTIONS].call(headers, messages[item], item, due)
        number += 1
        unanswered += 1

    for _ in range(load.in_flight):
        send(time.perf_counter())
    while unanswered or due < until:
        now = time.perf_counter()
        while due <= now and due < until:
            send(due)
            if due >= measured_from:
                arrivals.lateness.append(now - due)
            due += generator.expovariate(load.rate)
        if now > until + load.drain_seconds:
            break
        wait = max(0.0, (due if due < until else until + load.drain_seconds) - time.perf_counter())
        writers = [one.socket for one in connections if one.wants_to_write]
        readable, writable, _ = select.select(by_socket, writers, (), min(wait, 1.0))
        for ready in writable:
            by_socket[ready].write_unsent()
        for ready in readable:
            for item, status, was_due, answer in by_socket[ready].read():
                now = time.perf_counter()
                unanswered -= 1
                if status == OK:
                    arrivals.responses[item] = answer
                    arrivals.total += 1
                    arrivals.ended += measured_from <= now < until
                if measured_from <= was_due < until:
                    arrivals.items.append(item)
                    arrivals.latencies.append(now - was_due)
                    arrivals.statuses.append(status)
                if load.in_flight and now < until:
                    send(now)
    for one in connections:
        for item, was_due in one.calls.values():  # no response came in time
            if measured_from <= was_due < until:
                arrivals.items.append(item)
                arrivals.latencies.append(math.inf)
                arrivals.statuses.append(OTHER)
        one.socket.close()
    arrivals.seconds = load.seconds
    arrivals.cpu_seconds = sum(os.times()[:2])
    return arrivals


if __name__ == "__main__":
    # Pickled, the classes have the name of the module that others import.
    sys.modules["sequence_load"] = sys.modules["__main__"]
    for one in (Load, Arrivals):
        one.__module__ = "sequence_load"
    load = pickle.load(sys.stdin.buffer)  # noqa: S301 of the process that started this one
    sys.stdout.buffer.write(pickle.dumps(make_load(load)))
