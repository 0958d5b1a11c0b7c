"""No message stops the server or fills its memory, whatever its method: others are answered."""

import functools
import re
import threading
import time
from pathlib import Path

import grpc
import pytest
from support import onnx_models

from neurona_protos import open_inference_pb2, prediction_pb2, reflection_pb2
from neurona_protos.wire_format import length_delimited, varint
from neurona_server.rpc import health
from neurona_server.rpc.reflection import PACKAGES, SERVICE

pytestmark = pytest.mark.slow

SIZE = 16 << 20
"""Bytes of each message."""

MAX_WAIT = 2.0
"""Seconds that another caller may wait; it is a tenth of that on an idle machine."""

MAX_GROWTH = 7 * SIZE
"""Bytes of memory that a message may take: gRPC has up to three copies of it, and a decoded one is
as large."""

GROUP = b"\x7b\x7c"  # of field 15
LETTERS = SIZE // 5


def methods():
    """Yields the path of each method, and whether callers stream."""
    for file in (prediction_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR, health.FILE):
        for service in file.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method.client_streaming
    assert reflection_pb2.DESCRIPTOR.package == PACKAGES[0]
    for package in PACKAGES:
        yield f"/{package}.{SERVICE}/ServerReflectionInfo", True


def repeat(part):
    return part * (SIZE // len(part))


@functools.cache
def entries(field):
    return b"".join(
        length_delimited(field, length_delimited(1, b"%07d" % number))
        for number in range(SIZE // 11)
    )


def infer(model, datatype, shape, *fields):
    """A ModelInferRequest with one input, whose contents are `fields`."""
    sizes = b"".join(map(varint, shape))
    described = length_delimited(1, b"x") + length_delimited(2, datatype)
    described += length_delimited(3, sizes) + length_delimited(5, b"".join(fields))
    return length_delimited(1, model) + length_delimited(5, described)


def predict(dtype, shape, data):
    x = length_delimited(1, b"x") + b"\x10" + varint(dtype)
    x += length_delimited(3, b"".join(map(varint, shape))) + length_delimited(4, data)
    return length_delimited(1, b"echo_BYTES") + length_delimited(4, x)


def bombs_for_all():
    for n in range(1, 8):
        yield f"empty fields {n}", repeat(length_delimited(n, b""))
    yield "a group before empty fields", GROUP + repeat(length_delimited(4, b""))
    yield "a group before empty inputs", GROUP + repeat(length_delimited(5, b""))
    yield "groups in groups", repeat(b"\x7b")
    yield "unknown numbers", repeat(b"\x50\x01")
    yield "known numbers", repeat(b"\x10\x01")
    yield "entries of a map 1", entries(1)
    yield "entries of a map 3", entries(3)
    yield "one entry of a map", length_delimited(4, repeat(length_delimited(1, b"")))
    yield "a long name", length_delimited(1, repeat(b"a"))
    yield "a message in a message", length_delimited(4, length_delimited(4, repeat(b"\x22\0")))


def letters():
    return predict(8, [1, LETTERS], repeat(b"\x01\0\0\0a"))


def predictions():
    yield "letters", letters()
    yield "too few letters", predict(8, [1, 4 * LETTERS], repeat(b"\x01\0\0\0a"))
    yield "a long shape", length_delimited(4, length_delimited(3, repeat(b"\x01")))
    yield "a shape of fields", length_delimited(4, repeat(b"\x18\x01"))
    yield "data again and again", length_delimited(4, repeat(length_delimited(4, b"abc")))


def streamed():
    yield (
        "one request",
        length_delimited(1, b"\x08\x01" + length_delimited(2, letters())),
    )
    yield "a request of numbers", length_delimited(1, repeat(b"\x08\x01"))
    yield (
        "requests of empty tensors",
        length_delimited(1, length_delimited(2, repeat(length_delimited(4, b"")))),
    )
    yield "requests", repeat(length_delimited(1, b"\x08\x01"))
    yield "a group before requests", GROUP + repeat(length_delimited(1, b""))
    yield "small requests", length_delimited(1, length_delimited(2, b"\x0a\x01a" * 1000)) * 4096


def inferences():
    yield (
        "packed integers",
        infer(b"echo_INT64", b"INT64", [1, SIZE], length_delimited(3, repeat(b"\x01"))),
    )
    yield "integers", infer(b"echo_INT64", b"INT64", [1, SIZE // 2], repeat(b"\x18\x01"))
    yield (
        "packed small integers",
        infer(b"echo_INT8", b"INT8", [1, SIZE], length_delimited(2, repeat(b"\x01"))),
    )
    yield (
        "long integers",
        infer(
            b"echo_INT64",
            b"INT64",
            [1, SIZE // 10],
            length_delimited(3, repeat(b"\x81" * 9 + b"\x01")),
        ),
    )
    yield (
        "packed floats",
        infer(b"echo_FP32", b"FP32", [1, SIZE // 4], length_delimited(6, repeat(b"abcd"))),
    )
    yield "floats", infer(b"echo_FP32", b"FP32", [1, SIZE // 5], repeat(b"\x35abcd"))
    yield "booleans", infer(b"echo_BOOL", b"BOOL", [1, SIZE], length_delimited(1, repeat(b"\x01")))
    yield "letters", infer(b"echo_BYTES", b"BYTES", [1, SIZE // 3], repeat(b"\x42\x01a"))
    yield "other contents", infer(b"echo_FP32", b"FP32", [1, 1], repeat(b"\x42\x01a"))
    yield "contents again and again", length_delimited(5, repeat(b"\x2a\0"))
    yield "raw contents", length_delimited(1, b"echo_FP32") + repeat(length_delimited(7, b"abcd"))


def bombs_of(path):
    yield from bombs_for_all()
    if path.endswith(("/Predict", "/Classify", "/Regress")):
        yield from predictions()
    if path.endswith("/PredictStream"):
        yield from streamed()
    if path.endswith("Infer"):
        yield from inferences()


@pytest.fixture(scope="module", params=["cygrpc", "aio"])
def server(request, tmp_path_factory, serve_for_module):
    root = onnx_models.save_echoes(tmp_path_factory.mktemp("models"))
    onnx_models.save_regressor(root / "regressor" / "1" / "model.onnx")
    return serve_for_module(root, "--transport", request.param)


class SecondCaller:
    """Checks the health of the server all the time; `worst` is what it waited longest."""

    def __init__(self, server):
        self.worst = 0.0
        self.errors = []
        self._channel = grpc.insecure_channel(
            server.address, [("grpc.use_local_subchannel_pool", 1)]
        )
        self._check = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        self._check(b"", timeout=20)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()
        self._channel.close()

    def _run(self):
        while not self._stopping.wait(0.005):
            started = time.monotonic()
            try:
                self._check(b"", timeout=30)
            except grpc.RpcError as error:
                self.errors.append(error)
            self.worst = max(self.worst, time.monotonic() - started)


def memory(server, line):
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.search(rf"{line}:\s+(\d+) kB", status)[1]) << 10


def send(server, path, message, *, streams):
    """Sends one message; returns the code of the call's status, None if it succeeded."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options) as channel:
        try:
            if streams:
                list(channel.stream_stream(path)(iter([message]), timeout=60))
            else:
                channel.unary_unary(path)(message, timeout=60)
        except grpc.RpcError as error:
            return error.code()
    return None


@pytest.mark.parametrize(("path", "streams"), [*methods()])
def test_others_are_answered_and_memory_stays(server, path, streams):
    offences = []
    for name, message in bombs_of(path):
        before = memory(server, "VmRSS")
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # VmHWM starts again
        with SecondCaller(server) as caller:
            code = send(server, path, message, streams=streams)
        growth = memory(server, "VmHWM") - before
        if caller.errors or caller.worst > MAX_WAIT or growth > MAX_GROWTH:
            offences.append((name, caller.worst, growth >> 20, caller.errors))
        if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL):
            offences.append((name, code))
    assert not offences
    assert server.is_running, server.log
    assert "Traceback" not in server.log
