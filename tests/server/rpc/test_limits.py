"""The limits of requests, responses, messages and connections."""

import contextlib
import gzip
import struct

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import http2

from neurona_protos.prediction_pb2 import (
    PredictRequest,
    PredictStreamRequest,
    PredictStreamResponse,
    StreamedRequest,
    Tensor,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_protos.wire_format import length_delimited
from neurona_server.errors import InvalidArgumentError
from neurona_server.rpc import limits
from neurona_server.rpc.limits import MAX_AXES, Limits
from neurona_server.rpc.transports.listener import ListenerOptions
from neurona_server.rpc.v1.prediction import PREDICT_DATA
from neurona_server.rpc.v1.stream_messages import split_stream_message

PREDICT = "/neurona.v1.Prediction/Predict"


def total(rows=1, steps=3):
    series = np.ones((rows, steps), np.float32)
    return PredictRequest(model="regressor", inputs=[to_tensor("series", series)])


def sums(rows):
    """A request whose response is as large."""
    x = np.ones((rows, 2), np.float32)
    return PredictRequest(model="running_sum", inputs=[to_tensor("x", x)])


def error_of(method, request, **options):
    with pytest.raises(grpc.RpcError) as caught:
        list(method(request, timeout=20, **options))
    return caught.value.code().name, caught.value.details()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            PredictRequest(model="regressor", inputs=[Tensor(name="x")] * 5),
            "the request has 5 tensors (expected at most 4)",
        ),
        (total(rows=8), "the request has 8 rows (expected at most 7)"),
        (
            PredictRequest(
                model="regressor", inputs=[Tensor(name="a\nb", shape=[1] * (MAX_AXES + 1))]
            ),
            r"input 'a\nb' has 33 axes (expected at most 32)",
        ),
        # Sizes whose product is 0 in 64 bits, or negative.
        (
            PredictRequest(
                model="regressor", inputs=[Tensor(name="series", dtype=1, shape=[4, 2**62])]
            ),
            "expected 73786976294838206464 for FLOAT of shape [4, 4611686018427387904]",
        ),
        (
            PredictRequest(
                model="regressor",
                inputs=[Tensor(name="series", dtype=1, shape=[1, 2**61 + 1], data=b"1234")],
            ),
            "'series' has 4 bytes of data",
        ),
    ],
)
def test_a_request_beyond_a_limit_is_rejected_with_size_and_limit(make_server, request_, message):
    server = make_server(limits=Limits(max_tensors=4, max_rows=7))
    code, details = error_of(server.prediction.Predict, request_)
    assert code == "INVALID_ARGUMENT"
    assert message in details
    assert server.prediction.Predict(total(rows=7), timeout=20).regression.rows


EMPTY_GROUP = b"\x7b\x7c"  # of field 15


def many_tensors(count):
    """A message of empty tensors: two bytes each."""
    return PredictRequest(model="regressor", inputs=[Tensor()] * count).SerializeToString()


def long_shape(size):
    shape = Tensor(name="x", shape=[1] * size)
    return PredictRequest(model="regressor", inputs=[shape]).SerializeToString()


def to_stream_message(request):
    return length_delimited(1, b"\x08\x01" + length_delimited(2, request))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (many_tensors(3_000_000), "more than 11264 fields"),
        (many_tensors(12_000), "more than 11264 fields"),
        (EMPTY_GROUP + many_tensors(3_000_000), "a field of wire type 3 (expected no groups)"),
        (long_shape(5_000_000), "more than 65536 bytes besides the data of its tensors"),
        (b"\x50\x01" * 3_000_000, "more than 11264 fields"),
    ],
)
def test_a_large_message_of_small_fields_is_rejected_before_it_is_parsed(
    make_server, body, message
):
    server = make_server(options=ListenerOptions(max_message_bytes=16 << 20))
    unary = server.channel.unary_unary(PREDICT)
    code, details = error_of(unary, body)
    assert (code, message in details) == ("INVALID_ARGUMENT", True), details
    messages = iter([to_stream_message(body)])
    stream = server.channel.stream_stream("/neurona.v1.Prediction/PredictStream")
    (response,) = [PredictStreamResponse.FromString(one) for one in stream(messages, timeout=20)]
    assert response.responses[0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert message in response.responses[0].error.message


def test_a_large_message_of_large_fields_is_answered(make_server):
    server = make_server(options=ListenerOptions(max_message_bytes=16 << 20))
    request = total(steps=2_000_000)
    assert request.ByteSize() > limits.LARGE_MESSAGE
    assert server.prediction.Predict(request, timeout=20).regression.rows[0].values[0] == 2e6
    many = [StreamedRequest(id=i, request=total(steps=1000)) for i in range(1500)]
    message = PredictStreamRequest(requests=many)
    assert message.ByteSize() > limits.LARGE_MESSAGE
    stream = server.prediction.PredictStream(iter([message]), timeout=60)
    responses = [each for message in stream for each in message.responses]
    assert {each.response.regression.rows[0].values[0] for each in responses} == {1000}
    assert len(responses) == 1500


@pytest.mark.parametrize("seed", range(3))
def test_reading_the_fields_of_random_bytes_ends(seed):
    rng = np.random.default_rng(seed)
    body = rng.integers(0, 256, limits.LARGE_MESSAGE + 7, np.uint8).tobytes()
    truncated = b"\x22\xff\xff\xff\xff\x7f" + body  # a tensor with more bytes than the message
    for text in (body, truncated, b"\xff" * limits.LARGE_MESSAGE, b"\x22" * (5 << 20)):
        with contextlib.suppress(InvalidArgumentError):
            Limits().detach_data(text, PREDICT_DATA.paths)
        with contextlib.suppress(InvalidArgumentError):
            split_stream_message(text)


def test_a_response_that_is_too_large_is_an_error(make_server):
    server = make_server(
        limits=Limits(max_message_bytes=1000), options=ListenerOptions(max_message_bytes=2000)
    )
    code, details = error_of(server.prediction.Predict, classes(60))
    assert code == "RESOURCE_EXHAUSTED"
    assert "expected at most 2000, the option max_message_bytes): send fewer rows" in details


def classes(rows):
    x = np.ones((rows, 4), np.float32)
    return PredictRequest(model="classifier", top_k=3, inputs=[to_tensor("x", x)])


def test_in_a_stream_only_the_response_that_is_too_large_is_an_error(make_server):
    limits = Limits(max_message_bytes=1500)
    server = make_server(limits=limits, options=ListenerOptions(max_message_bytes=20000))
    requests = [StreamedRequest(id=rows, request=classes(rows)) for rows in (1, 10, 200, 11, 12)]
    stream = server.prediction.PredictStream(
        iter([PredictStreamRequest(requests=requests)]), timeout=20
    )
    messages = list(stream)
    assert all(message.ByteSize() <= 1500 for message in messages)
    answered = {each.id: each for message in messages for each in message.responses}
    assert answered.keys() == {1, 10, 200, 11, 12}
    assert answered[200].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert not answered[200].error.retry_after_ms
    assert "expected at most 1500" in answered[200].error.message
    assert len(answered[12].response.classification.rows) == 12


def test_a_message_that_is_too_large_is_rejected_in_either_direction(server):
    code, details = error_of(server.prediction.Predict, sums(200_000))
    assert code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in details
    assert to_array(server.prediction.Predict(sums(1000)).outputs[0]).shape == (1000, 2)


def test_a_message_that_decompresses_beyond_the_limit_is_rejected(server):
    bomb = gzip.compress(bytes(60 << 20))
    assert len(bomb) < 65536
    connection = http2.Connection(server.port)
    stream = connection.call(PREDICT, http2.message(bomb, compressed=True), grpc_encoding="gzip")
    assert b"larger than max" in connection.read_response(stream)
    connection.close()
    assert server.prediction.Predict(total(), timeout=20).regression.rows


@pytest.mark.parametrize(
    "body",
    [b"", b"no gzip at all", gzip.compress(bytes(1000), mtime=0)[:-9]],
    ids=["empty", "not gzip", "truncated"],
)
def test_a_message_that_cannot_be_decompressed_ends_its_call_only(server, body):
    connection = http2.Connection(server.port)
    stream = connection.call(PREDICT, http2.message(body, compressed=True), grpc_encoding="gzip")
    assert connection.read_response(stream)
    valid = connection.call(PREDICT, http2.message(total().SerializeToString()))
    assert b"total" in connection.read_response(valid)
    connection.close()


def test_a_request_may_be_compressed(server):
    request = total(steps=10_000)
    response = server.prediction.Predict(request, timeout=20, compression=grpc.Compression.Gzip)
    assert response.regression.rows[0].values[0] == 10_000


def test_metadata_that_are_too_large_are_rejected(make_server):
    server = make_server(options=ListenerOptions(max_metadata_bytes=4096))
    metadata = [(f"key-{i}", "v" * 100) for i in range(40)]
    code, details = error_of(server.prediction.Predict, total(), metadata=metadata)
    assert code == "RESOURCE_EXHAUSTED"
    assert "metadata" in details
    assert server.prediction.Predict(total(), timeout=20, metadata=metadata[:20])


def test_the_calls_of_a_connection_are_limited(make_server):
    server = make_server(options=ListenerOptions(max_streams=2))
    stub = HealthStub(server.channel)
    watches = [stub.Watch(HealthCheckRequest(), timeout=60) for _ in range(2)]
    for watch in watches:
        next(watch)
    with pytest.raises(grpc.RpcError) as caught:
        server.prediction.Predict(total(), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    watches[0].cancel()
    assert server.prediction.Predict(total(), timeout=20).regression.rows


def test_calls_beyond_the_limit_of_a_connection_are_reset(make_server, wait_until):
    server = make_server(options=ListenerOptions(max_streams=2))
    connection = http2.Connection(server.port)
    settings = connection.read_until(http2.SETTINGS).payload
    pairs = [struct.unpack_from(">HI", settings, at) for at in range(0, len(settings), 6)]
    assert dict(pairs)[http2.MAX_CONCURRENT_STREAMS] == 2
    connection.read_until(http2.SETTINGS, flags=http2.ACK)
    watch = "/grpc.health.v1.Health/Watch"
    streams = [connection.call(watch, http2.message(b""), end=False) for _ in range(3)]
    (reason,) = struct.unpack(">I", connection.read_until(http2.RESET, streams[2]).payload)
    assert reason in (7, 11)  # REFUSED_STREAM, ENHANCE_YOUR_CALM
    connection.send(http2.encode_frame(http2.RESET, 0, streams[0], struct.pack(">I", 8)))
    request = http2.message(total().SerializeToString())
    wait_until(lambda: b"total" in connection.read_response(connection.call(PREDICT, request)))
    connection.close()
