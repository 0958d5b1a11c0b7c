"""Tens of thousands of invalid requests to a real server, which rejects them and keeps serving.

The environment variable FUZZ_INPUTS is the number of inputs; the seed is fixed.
"""

import collections
import gzip
import os
import random
import re
import socket
import struct

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import http2, onnx_models
from support.damage import damage

from neurona_protos.prediction_pb2 import (
    PredictRequest,
    PredictStreamRequest,
    StreamedRequest,
    Tensor,
)
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

COUNT = int(os.environ.get("FUZZ_INPUTS", "20000"))
UNARY = "/neurona.v1.Prediction/Predict"
STREAM = "/neurona.v1.Prediction/PredictStream"
GROWTH = 24 << 20
"""Bytes by which the server's memory may grow: pages of buffers and of allocators' arenas,
whatever the number of inputs."""

OK, CANCELLED, INVALID, EXPIRED, NOT_FOUND, FULL = 0, 1, 3, 4, 5, 8
EDGES = [*(0, 1, -1, 2, 4, 2**31 - 1, 2**31, -(2**31), 2**32), *(2**61, 2**62, 2**63 - 1, -(2**63))]


def valid_request():
    series = to_tensor("series", np.array([[1, 2, 3]], np.float32))
    return PredictRequest(model="regressor", inputs=[series])


@pytest.fixture(scope="module")
def server(tmp_path_factory, serve_for_module):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_regressor(root / "regressor" / "1" / "model.onnx")
    onnx_models.save_classifier(root / "classifier" / "1" / "model.onnx")
    return serve_for_module(root, "--max-message-bytes", str(1 << 20))


def port_of(server):
    return server.port


def memory(server, line="VmRSS"):
    """Returns the resident memory of the server in bytes; with line VmHWM, its maximum."""
    with open(f"/proc/{server.pid}/status") as status:
        return int(re.search(rf"{line}:\s+(\d+) kB", status.read())[1]) << 10


def assert_serving(server):
    assert server.is_running, "the server has ended"
    answer = PredictionStub(server.channel).Predict(valid_request(), timeout=20)
    assert answer.regression.rows[0].values[0] == 6


def random_number(rng):
    return rng.choice(EDGES) if rng.random() < 0.5 else rng.randrange(-5, 20)


def invalid_request(rng):
    """Returns a request that must be rejected."""
    request = valid_request()
    tensor = request.inputs[0]
    kind = rng.randrange(8)
    if kind == 0:  # a shape that the data contradicts
        tensor.shape[:] = [random_number(rng) for _ in range(rng.randrange(5))]
        if list(tensor.shape) in ([1, 3], [3, 1]):
            tensor.shape[:] = []
    elif kind == 1:
        tensor.dtype = rng.choice([0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 77, -1])
    elif kind == 2:  # too few bytes, or too many
        tensor.data = bytes(rng.choice([0, 1, 11, 13, 400]))
    elif kind == 3:
        tensor.name = rng.choice(["", "serie", "series\n", "x" * 300, "🦖" * 99])
    elif kind == 4:
        request.model = rng.choice(["", "nobody", "../regressor", "a\x00b", "m" * 999])
    elif kind == 5:
        request.version = rng.choice([edge for edge in EDGES if edge not in (0, 1)])
    elif kind == 6:
        request.inputs.extend([Tensor(name="series")] * rng.choice([1, 2, 400]))
    else:
        request.priority = rng.choice([3, 99, -1])
    return request


def invalid_requests(server, rng, count):
    """Sends streams in which each invalid request is rejected and the valid one succeeds."""
    stub = PredictionStub(server.channel)
    for start in range(0, count, 500):
        requests = [
            StreamedRequest(id=i, request=invalid_request(rng))
            for i in range(min(500, count - start))
        ]
        requests.append(StreamedRequest(id=500, request=valid_request()))
        stream = stub.PredictStream(iter([PredictStreamRequest(requests=requests)]), timeout=60)
        answers = {one.id: one for response in stream for one in response.responses}
        assert len(answers) == len(requests)
        assert answers.pop(500).response.regression.rows[0].values[0] == 6
        for one in answers.values():
            assert one.error.code in (INVALID, NOT_FOUND), requests[one.id]
            assert 0 < len(one.error.message) <= 2000


def damaged_messages(server, rng, path, count, frame, **headers):
    """Sends damaged messages, fifty calls on each connection, and counts their statuses."""
    statuses = collections.Counter()
    for start in range(0, count, 50):
        connection = http2.Connection(port_of(server))
        calls = range(min(50, count - start))
        streams = [connection.call(path, frame(rng), **headers) for _ in calls]
        statuses.update(connection.read_statuses(streams).values())
        connection.close()
    return statuses


def unary_frame(rng):
    message = rng.randbytes(rng.randrange(300)) if rng.random() < 0.3 else valid_request()
    if isinstance(message, PredictRequest):
        message = damage(rng, message.SerializeToString())
    return http2.message(message)


def stream_frame(rng):
    requests = [StreamedRequest(id=i, request=valid_request()) for i in range(rng.randrange(1, 4))]
    message = PredictStreamRequest(requests=requests).SerializeToString()
    return http2.message(damage(rng, message))


def invalid_frame(rng):
    """Returns a gRPC frame whose header has a wrong length or a wrong compression flag."""
    body = rng.randbytes(rng.randrange(60))
    size = rng.choice([len(body) + 1, 2**32 - 1, 2**31, 1 << 20])
    return struct.pack(">BI", rng.choice([0, 1, 2, 255]), size) + body


def random_connections(server, rng, count):
    """Sends bytes to the port that are random, or HTTP/2 with random frames."""
    for _ in range(count):
        frames = [
            http2.encode_frame(
                rng.randrange(12), rng.randrange(256), rng.randrange(9), rng.randbytes(8)
            )
            for _ in range(rng.randrange(1, 6))
        ]
        raw = http2.PREFACE + http2.encode_frame(http2.SETTINGS, 0, 0, b"") + b"".join(frames)
        if rng.random() < 0.5:
            raw = rng.randbytes(rng.randrange(1, 400))
        elif rng.random() < 0.5:
            raw = damage(rng, raw)
        with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as connection:
            connection.sendall(raw)


@pytest.mark.slow
def test_invalid_input_is_rejected(server):
    rng = random.Random(7)  # noqa: S311
    assert_serving(server)
    statuses = collections.Counter()
    after_first = 0
    for part in range(5):
        statuses += damaged_messages(server, rng, UNARY, COUNT * 5 // 100, unary_frame)
        stream = damaged_messages(server, rng, STREAM, COUNT * 1 // 100, stream_frame)
        # gRPC waits for the length of a frame's header until the deadline.
        invalid = damaged_messages(
            server, rng, UNARY, COUNT // 200, invalid_frame, grpc_timeout="200m"
        )
        assert invalid.keys() <= {CANCELLED, EXPIRED, INVALID, NOT_FOUND, FULL}, invalid
        assert stream.keys() <= {OK, INVALID}, stream
        random_connections(server, rng, COUNT // 500)
        invalid_requests(server, rng, COUNT * 14 // 100)
        assert_serving(server)
        if part == 0:
            after_first = memory(server)
    assert memory(server) - after_first < GROWTH
    # A damaged message may still be a valid request, but never an internal error.
    assert statuses.keys() <= {OK, INVALID, NOT_FOUND}, statuses
    assert statuses[INVALID] > statuses[OK]


def test_decompression_bombs_do_not_fill_the_memory(server):
    assert_serving(server)
    before = memory(server, "VmHWM")
    bomb = http2.message(gzip.compress(bytes(60 << 20)), compressed=True)
    for _ in range(20):
        connection = http2.Connection(port_of(server))
        stream = connection.call(UNARY, bomb, grpc_encoding="gzip")
        assert connection.read_statuses([stream]) == {stream: FULL}
        connection.close()
    assert memory(server, "VmHWM") - before < GROWTH
    assert_serving(server)


tensors = st.builds(
    Tensor,
    name=st.sampled_from(["series", "x", ""]),
    dtype=st.sampled_from(range(20)),
    shape=st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 6)), max_size=4),
    data=st.binary(max_size=96),
)
requests = st.builds(
    PredictRequest,
    model=st.sampled_from(["regressor", "classifier", "nobody"]),
    inputs=st.lists(tensors, max_size=3),
    top_k=st.integers(0, 2**32 - 1),
    raw_outputs=st.booleans(),
    priority=st.integers(0, 3),
)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(request_=requests)
def test_any_request_succeeds_or_is_rejected(server, request_):
    call = PredictionStub(server.channel).Predict.future(request_, timeout=20)
    assert call.code().name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND")
    if call.code() == grpc.StatusCode.OK:
        assert call.result().model == request_.model
        assert request_.inputs[0].shape[0] >= 1
    else:
        assert call.details()


def test_input_is_not_written_to_the_log(server):
    connection = http2.Connection(port_of(server))
    reason = struct.pack(">II", 0, 2) + b"so long\n2026-01-01 INFO forged"
    connection.send(http2.encode_frame(http2.GO_AWAY, 0, 0, reason))
    connection.send(http2.encode_frame(http2.PING, 0, 0, b"received"))
    connection.read_until(http2.PING, flags=http2.ACK)
    connection.close()
    assert_serving(server)
    status, log = server.stop(), server.log
    assert status == 0
    assert "Traceback" not in log
    assert "forged" not in log
    assert len(log.splitlines()) < 30, log[-3000:]
