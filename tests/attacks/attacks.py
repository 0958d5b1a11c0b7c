"""What callers, models and log readers do to a server, one function for each kind.

    python -m attacks.attacks NAME TARGET_AS_JSON

An attack repeats until it is ended, at a rate that leaves the machine to the server: what is tested
is the server, not the machine's CPUs. Callers with a token use the attacker's own; attacks in
WITHOUT_TOKEN have none. The file is one, of more than 500 lines if need be, because it is a list.
"""

import contextlib
import gzip
import itertools
import os
import random
import shutil
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
from support.http2 import DATA, WINDOW, Connection, encode_frame, message

from attacks.target import DIVISION, ECHO, LOOP, SEQUENCES, SLOW, Target, save_loop
from neurona_protos.prediction_pb2 import (
    PredictRequest,
    PredictStreamRequest,
    Priority,
    StreamedRequest,
    Tensor,
)
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

MIB = 1 << 20
HEALTH = "/grpc.health.v1.Health/Check"
PREDICT = "/neurona.v1.Prediction/Predict"
INFER = "/inference.GRPCInferenceService/"

ATTACKS: dict[str, Callable[[Target], object]] = {}
WITHOUT_TOKEN = set[str]()


def attack(*, token: bool = True) -> Callable[[Callable[[Target], object]], object]:
    """Register an attack under the name of its function."""

    def register(function: Callable[[Target], object]) -> object:
        ATTACKS[function.__name__] = function
        if not token:
            WITHOUT_TOKEN.add(function.__name__)
        return function

    return register


def repeat(rate: float) -> Iterator[int]:
    """Yield numbers for ever, at most `rate` a second."""
    started = time.monotonic()
    for number in itertools.count():
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
        yield number


def ignored_errors() -> contextlib.suppress:
    """Ignore what the server or the network says: the attack goes on."""
    return contextlib.suppress(OSError, grpc.RpcError, grpc.FutureTimeoutError)


def field(number: int, data: bytes) -> bytes:
    """Encode a field of bytes or of a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def call_once(target: Target, path: str, body: bytes, timeout: float = 30.0) -> None:
    """Send one message over a connection of its own."""
    with target.channel() as channel, ignored_errors():
        channel.unary_unary(path)(body, timeout=timeout, metadata=target.metadata())


# Connections


@attack(token=False)
def handshakes(target: Target) -> None:
    """Connections that send no, half or wrong beginnings, of TLS or of HTTP/2."""
    half_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    beginnings = [b"", half_hello, os.urandom(300), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI"]
    for number in repeat(100):
        address = ("127.0.0.1", target.port)
        with ignored_errors(), socket.create_connection(address, timeout=2) as connection:
            connection.sendall(beginnings[number % len(beginnings)])


@attack(token=False)
def short_connections(target: Target) -> None:
    """Well-behaved callers that connect, ask once and leave."""
    for _ in repeat(20):
        call_once(target, HEALTH, b"", timeout=5)


@attack(token=False)
def connection_flood(target: Target) -> None:
    """Connections that are opened and closed, or opened and kept."""
    kept: list[socket.socket] = []
    for number in repeat(500):
        with ignored_errors():
            connection = socket.create_connection(("127.0.0.1", target.port), timeout=2)
            if number % 5:
                connection.close()
            else:
                kept.append(connection)
        if len(kept) > 800:
            for connection in kept:
                connection.close()
            kept.clear()


# Bytes


@attack(token=False)
def unfinished_bodies(target: Target) -> None:
    """Calls that announce 60 MiB to an open method, and send what flow control lets them."""
    for _ in repeat(0.2):
        with ignored_errors():
            connection = target.connection()
            head = struct.pack(">BI", 0, 60 * MIB)
            streams = [connection.call(HEALTH, head, end=False) for _ in range(16)]
            _upload(connection, streams, seconds=4.0)
            connection.close()


def _upload(connection: Connection, streams: list[int], seconds: float) -> None:
    """Send zeros on the streams, as the windows allow, without an end.

    One thread sends and reads: OpenSSL allows no two at one connection.
    """
    windows = dict.fromkeys([0, *streams], 65535 - 5)
    zeros = bytes(16384)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stream = max(streams, key=lambda one: windows[one])
        size = min(windows[0], windows[stream], MIB) // 16384 * 16384
        if size > 0:
            windows[0] -= size
            windows[stream] -= size
            connection.send(encode_frame(DATA, 0, stream, zeros) * (size // 16384))
            continue
        connection.set_timeout(left)
        frame = connection.read()
        if frame is None:
            return
        if frame.kind == WINDOW and frame.stream in windows:
            windows[frame.stream] += int.from_bytes(frame.payload, "big")


@attack()
def large_messages(target: Target) -> None:
    """Valid requests of tens of MiB, each of a length that the server has not seen."""
    with target.channel() as channel:
        call = channel.unary_unary(PREDICT)
        for number in repeat(0.5):
            tensor = Tensor(name="x", dtype=1, shape=[1, 8 * MIB + number, 1])
            tensor.data = bytes(4 * (8 * MIB + number))
            request = PredictRequest(model=SEQUENCES, inputs=[tensor])
            with ignored_errors():
                call(request.SerializeToString(), timeout=10, metadata=target.metadata())


@attack()
def field_bombs(target: Target) -> None:
    """Messages of a few MiB that would take many times their size once parsed."""
    group = b"\x7b\x7c"
    tensors = field(1, ECHO.encode()) + field(4, b"") * (4 * MIB)
    entries = b"".join(field(1, field(1, b"%07d" % number)) for number in range(400_000))
    loads = b"".join(field(3, field(1, b"%07d" % number)) for number in range(400_000))
    tensor = field(1, b"x") + field(2, b"INT64") + field(5, field(3, b"\x01" * (8 * MIB)))
    letters = b"\x01\0\0\0a" * (8 * MIB // 5)
    strings = field(1, b"x") + b"\x10\x08" + field(3, b"\x01" + _varint(len(letters) // 5))
    bombs = [
        (PREDICT, tensors),
        (PREDICT, group + tensors),
        (PREDICT, field(1, ECHO.encode()) + field(4, strings + field(4, letters))),
        ("/neurona.v1.Prediction/PredictStream", group + field(1, b"") * (4 * MIB)),
        (INFER + "ModelInfer", group + field(1, ECHO.encode()) + field(5, b"") * (4 * MIB)),
        (INFER + "ModelInfer", field(1, ECHO.encode()) + field(5, tensor)),
        (INFER + "ModelStreamInfer", group + field(5, b"") * (4 * MIB)),
        (INFER + "LogSettings", entries),
        (INFER + "TraceSetting", entries),
        (INFER + "RepositoryModelLoad", loads),
        ("/neurona.v1.Models/List", b"\x08\x01" * (4 * MIB)),
        (HEALTH, b"\x10\x01" * (4 * MIB)),
    ]
    for number in repeat(1):
        call_once(target, *bombs[number % len(bombs)])


@attack(token=False)
def compression_bombs(target: Target) -> None:
    """Small compressed messages of up to 1 GiB of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(MIB)
    bomb = b"".join(packer.compress(zeros) for _ in range(1024)) + packer.flush()
    bodies = [gzip.compress(bytes(32 * MIB)), bomb]
    for number in repeat(0.5):
        with ignored_errors():
            connection = target.connection()
            stream = connection.call(HEALTH, end=False, grpc_encoding="gzip")
            body = message(bodies[number % 2], compressed=True)
            for start in range(0, min(len(body), 65535), 16384):
                connection.send(encode_frame(DATA, 0, stream, body[start : start + 16384][:16383]))
            time.sleep(0.2)
            connection.close()


@attack()
def unread_streams(target: Target) -> None:
    """Streams whose responses nobody reads."""
    tensor = to_tensor("x", np.full((64, 64), b"x" * 64, object))
    request = PredictRequest(model=ECHO, inputs=[tensor])
    frames = [StreamedRequest(id=number, request=request) for number in range(4)]
    body = PredictStreamRequest(requests=frames).SerializeToString()
    for _ in repeat(0.5):
        with target.channel() as channel, ignored_errors():
            endless = itertools.repeat(body, 500)
            stream = channel.stream_stream("/neurona.v1.Prediction/PredictStream")
            call = stream(endless, timeout=1.5, metadata=target.metadata())
            time.sleep(1.5)
            call.cancel()


# Runs


@attack()
def endless_loops(target: Target) -> None:
    """Requests whose run never ends, with and without a deadline."""
    with target.channel() as channel:
        stub = PredictionStub(channel)

        def request(steps: int) -> PredictRequest:
            count = to_tensor("n", np.array([steps]))
            x = to_tensor("x", np.ones(1, np.float32))
            return PredictRequest(model=LOOP, inputs=[x, count])

        for number in repeat(2):
            with ignored_errors():
                for _ in range(5):
                    stub.Predict(request(3), timeout=1, metadata=target.metadata())
                endless = stub.Predict.future(
                    request(2**62), timeout=(0.2, 1.0, None)[number % 3], metadata=target.metadata()
                )
                time.sleep(0.5)
                endless.cancel()


@attack()
def long_sequences(target: Target) -> None:
    """Sequences of millions of steps for a model that is fast for short ones."""
    with target.channel() as channel:
        stub = PredictionStub(channel)

        def request(steps: int) -> PredictRequest:
            x = np.zeros((1, steps, 1), np.float32)
            return PredictRequest(model=SEQUENCES, inputs=[to_tensor("x", x)])

        for number in repeat(1):
            with ignored_errors():
                for _ in range(20):
                    stub.Predict(request(8), timeout=1, metadata=target.metadata())
                long = request(1_000_000 + number)
                stub.Predict(long, timeout=0.5, metadata=target.metadata())


@attack()
def integer_overflow(target: Target) -> None:
    """The smallest integer divided by -1, at which ONNX Runtime ends the process (SIGFPE)."""
    inputs = [to_tensor("a", np.array([-(2**31)], np.int32)), to_tensor("b", np.int32([-1]))]
    for _ in repeat(1 / 20):
        with target.channel() as channel, ignored_errors():
            request = PredictRequest(model=DIVISION, inputs=inputs)
            PredictionStub(channel).Predict(request, timeout=5, metadata=target.metadata())


@attack()
def low_priority_flood(target: Target) -> None:
    """Far more requests of low priority than a slow model can answer."""
    x = to_tensor("x", np.ones(1, np.float32))
    request = PredictRequest(model=SLOW, inputs=[x], priority=Priority.PRIORITY_LOW)
    with target.channel() as channel:
        stub = PredictionStub(channel)
        for _ in repeat(100):
            with ignored_errors():
                stub.Predict.future(request, timeout=5, metadata=target.metadata())


@attack()
def cancelled_calls(target: Target) -> None:
    """Calls that are cancelled at once, or whose deadline is one millisecond."""
    tensor = to_tensor("x", np.full((1, 2), b"text", object))
    request = PredictRequest(model=ECHO, inputs=[tensor])
    with target.channel() as channel:
        stub = PredictionStub(channel)
        for number in repeat(100):
            with ignored_errors():
                timeout = 0.001 if number % 2 else 5
                call = stub.Predict.future(request, timeout=timeout, metadata=target.metadata())
                if not number % 2:
                    call.cancel()


# Log and metrics


@attack(token=False)
def invalid_metadata(target: Target) -> None:
    """Metadata, bearer tokens and paths that are no UTF-8: libraries log each of them."""
    for number in repeat(5):
        with ignored_errors():
            connection = target.connection()
            for _ in range(40):
                connection.call(PREDICT, x_a=b"\xe9\xff")
                connection.call(PREDICT, authorization=b"Bearer \xe9secret")
                connection.call(b"/\x88")
                connection.call(b"/neurona.v1.Prediction/\xff\xfe")
            if number % 2:
                time.sleep(0.05)
            connection.close()


@attack(token=False)
def abandoned_pages(target: Target) -> None:
    """Requests for the metrics whose reader leaves, or never reads, or never finishes asking."""
    unfinished: list[socket.socket] = []
    for number in repeat(20):
        with ignored_errors():
            connection = socket.create_connection(("127.0.0.1", target.metrics_port), timeout=2)
            lines = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(lines + (b"" if number % 4 == 3 else b"\r\n"))
            if number % 4 < 2:
                connection.close()
            else:
                unfinished.append(connection)
        if len(unfinished) > 50:
            unfinished.pop(0).close()


# Models


@attack(token=False)
def model_files(target: Target) -> None:
    """Files that never finish loading, end the process that loads them, or are damaged."""
    repository = Path(target.repository)
    good = (repository / ECHO / "1" / "model.onnx").read_bytes()
    for number in repeat(1 / 10):
        name = f"new{number % 3}"
        made = repository.parent / "made" / name
        shutil.rmtree(made, ignore_errors=True)
        if number % 3 == 0:
            save_loop(made / "1" / "model.onnx")
        else:
            damaged = bytearray(good)
            for _ in range(3):
                damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)  # noqa: S311
            (made / "1").mkdir(parents=True)
            (made / "1" / "model.onnx").write_bytes(damaged)
        shutil.rmtree(repository / name, ignore_errors=True)
        made.rename(repository / name)


def main() -> None:
    name, target = sys.argv[1], Target.from_json(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.nice(10)
    ATTACKS[name](target)


if __name__ == "__main__":
    main()
