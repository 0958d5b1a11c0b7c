"""Connections: addresses, sharing, compression, pings, age, and what remains after calls."""

import asyncio
import gc
import gzip
import queue
import socket
import struct
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import http2, in_process_server

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor
from neurona_protos.wire_format import length_delimited
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import ConfigError
from neurona_server.rpc.health import Health
from neurona_server.rpc.transports.aio import AioListener
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.cygrpc import CygrpcCall, CygrpcStreamCall
from neurona_server.rpc.transports.listener import MAX_COMPRESSED_BYTES, ListenerOptions

DESCRIBE = "/neurona.v1.Models/Describe"


def total(number=1):
    series = np.full((1, 3), number, np.float32)
    return PredictRequest(model="regressor", version=1, inputs=[to_tensor("series", series)])


def predict(channel, number=1):
    response = PredictionStub(channel).Predict(total(number), timeout=20)
    return response.regression.rows[0].values[0]


def options(**changed):
    return ListenerOptions(max_message_bytes=1 << 20, **changed)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_unix_socket(make_server, tmp_path):
    address = f"unix:{tmp_path}/transport"
    server = make_server(address=address)
    with grpc.insecure_channel(address) as channel:
        assert predict(channel) == 3
    with pytest.raises(
        ConfigError, match="cannot listen on unix:.*transport: another server uses the socket"
    ):
        make_server(address=address)
    with grpc.insecure_channel(address) as channel:
        assert predict(channel) == 3  # it has kept its socket
    server.stop()


def test_an_unused_unix_socket_is_taken_over(make_server, tmp_path):
    path = tmp_path / "transport"
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(str(path))
    make_server(address=f"unix:{path}")
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert predict(channel) == 3


def test_a_file_that_is_no_socket_is_not_replaced(make_server, tmp_path):
    path = tmp_path / "transport"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="cannot listen on unix:"):
        make_server(address=f"unix:{path}")
    assert path.read_text() == "mine"


@pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")
def test_ipv6(make_server):
    server = make_server(address="[::1]:0")
    with grpc.insecure_channel(f"[::1]:{server.port}") as channel:
        assert predict(channel) == 3


def test_several_addresses(make_server, tmp_path):
    server = make_server(address=f"127.0.0.1:0,unix:{tmp_path}/transport")
    assert predict(server.channel) == 3
    with grpc.insecure_channel(f"unix:{tmp_path}/transport") as channel:
        assert predict(channel) == 3


def test_a_port_is_shared_only_if_both_servers_allow_it():
    first, second, third = (
        open_transport(in_process_server.TRANSPORT, Health().methods(), options(reuse_port=shared))
        for shared in (True, True, False)
    )
    port = first.start("127.0.0.1:0")
    assert second.start(f"127.0.0.1:{port}") == port
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        third.start(f"127.0.0.1:{port}")
    for listener in (first, second, third):
        listener.stop(0)


@pytest.mark.parametrize(
    ("accepted", "compressed"), [("identity", 0), ("identity,gzip", 1), (None, 0)]
)
def test_responses_are_compressed_for_callers_that_accept_it(make_server, accepted, compressed):
    server = make_server(options=options(compress_responses=True))
    headers = {} if accepted is None else {"grpc_accept_encoding": accepted}
    connection = http2.Connection(server.port)
    stream = connection.call(DESCRIBE, http2.message(b"\x0a\x0aclassifier"), **headers)
    assert connection.read_until(http2.DATA, stream).payload[0] == compressed
    connection.close()
    assert predict(server.channel) == 3


@pytest.mark.parametrize("streamed", [False, True])
def test_a_large_response_is_not_compressed(make_server, streamed):
    policy = BatchPolicy(max_queue_rows=1 << 20)
    server = make_server(policy, options=options(compress_responses=True))
    headers = {"grpc_encoding": "gzip", "grpc_accept_encoding": "identity,gzip"}
    for rows, compressed in ((100, 1), (MAX_COMPRESSED_BYTES // 8, 0)):
        x = to_tensor("x", np.ones((rows, 2), np.float32))
        body = PredictRequest(model="running_sum", inputs=[x]).SerializeToString()
        if streamed:
            body = length_delimited(1, length_delimited(2, body))
        connection = http2.Connection(server.port)
        path = "/neurona.v1.Prediction/Predict" + ("Stream" if streamed else "")
        message = http2.message(gzip.compress(body), compressed=True)
        stream = connection.call(path, message, **headers)
        assert connection.read_until(http2.DATA, stream).payload[0] == compressed
        connection.close()


def test_responses_are_not_compressed_by_default(server):
    connection = http2.Connection(server.port)
    stream = connection.call(
        DESCRIBE, http2.message(b"\x0a\x0aclassifier"), grpc_accept_encoding="gzip"
    )
    assert connection.read_until(http2.DATA, stream).payload[0] == 0
    connection.close()


def test_an_idle_connection_is_pinged_and_closed_without_a_reply(make_server):
    server = make_server(options=options(keepalive=0.1, keepalive_timeout=0.3))
    connection = http2.Connection(server.port, answer_pings=False)
    for _ in range(3):  # answered, so it stays open
        ping = connection.read_until(http2.PING)
        connection.send(http2.encode_frame(http2.PING, http2.ACK, 0, ping.payload))
    connection.read_until(http2.PING)
    with pytest.raises(ConnectionError, match="the server closed the connection"):
        connection.read_until(http2.DATA)  # until it is closed
    connection.close()


def survives_pings(server, pings, interval):
    """Whether a connection without a call stays open under pings at this interval, in seconds."""
    connection = http2.Connection(server.port)
    try:
        for number in range(pings):
            connection.send(http2.encode_frame(http2.PING, 0, 0, struct.pack(">Q", number)))
            connection.read_until(http2.PING, flags=http2.ACK)
            time.sleep(interval)
    except OSError:
        return False
    finally:
        connection.close()
    return True


def test_callers_may_ping_without_calls_but_not_too_often(make_server):
    tolerant = make_server(options=options(min_ping_interval=0.05))
    assert survives_pings(tolerant, pings=8, interval=0.1)
    assert not survives_pings(make_server(), pings=50, interval=0.01)


# gRPC's own thread that watches a channel may find it closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_old_connections_are_closed_without_failing_a_call(make_server):
    server = make_server(options=options(max_connection_age=0.3, max_connection_age_grace=20.0))
    states = []
    server.channel.subscribe(states.append, try_to_connect=True)
    number = 0
    while states.count(grpc.ChannelConnectivity.READY) < 4:  # until it has connected four times
        assert predict(server.channel, number) == 3 * number
        number += 1
    server.channel.unsubscribe(states.append)
    assert number > 10


def test_a_stream_ends_before_its_connection_is_closed_and_all_is_answered(make_server):
    server = make_server(options=options(max_connection_age=0.2, max_connection_age_grace=2.0))
    outgoing = queue.SimpleQueue()
    stream = server.prediction.PredictStream(iter(outgoing.get, None), timeout=60)
    started = answered = 0
    with pytest.raises(grpc.RpcError) as caught:  # noqa: PT012
        while True:
            outgoing.put(PredictStreamRequest(requests=[StreamedRequest(id=1, request=total())]))
            started += 1
            answered += len(next(stream).responses)
    outgoing.put(None)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "has reached its maximum age; call again" in caught.value.details()
    assert answered >= started - 1 > 10  # the last request may have come too late


def test_a_watch_ends_before_its_connection_is_closed(make_server):
    server = make_server(options=options(max_connection_age=0.1, max_connection_age_grace=0.3))
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=60)
    assert len(list(watch)) == 1  # and no error


def open_calls(listener):
    """The number of a transport's objects for calls: tasks of its loop, or call objects."""
    if isinstance(listener, AioListener):
        return len(asyncio.all_tasks(listener._loop))
    gc.collect()
    # Not isinstance: objects of some libraries warn when their __class__ is read.
    return sum(type(each) in (CygrpcCall, CygrpcStreamCall) for each in gc.get_objects())


@pytest.mark.parametrize("how", ["cancelled", "timed out", "disconnected"])
def test_calls_that_end_early_leave_no_objects(make_server, wait_until, how):
    """One call of every method has an incomplete request, and one waits in a queue."""
    server = make_server(start_models=False)
    idle = open_calls(server.listener)
    connection = http2.Connection(server.port)
    # A busy machine takes long to queue the requests, which must not have expired by then.
    deadline = {"grpc_timeout": "3S"} if how == "timed out" else {}
    unary, streamed = total(), PredictStreamRequest(requests=[StreamedRequest(request=total())])
    streams = []
    for path in server.methods:
        request = streamed if path.endswith("Stream") else unary
        bodies = (http2.message(b"")[:3], http2.message(request.SerializeToString()))
        streams += [connection.call(path, body, end=False, **deadline) for body in bodies]
    counts = {"model": "regressor", "version": "1"}
    wait_until(lambda: server.count("queue_rows", **counts) >= 2)
    if how == "cancelled":
        for stream in streams:
            connection.send(http2.encode_frame(http2.RESET, 0, stream, struct.pack(">I", 8)))
    elif how == "disconnected":
        connection.close()
    wait_until(lambda: server.count("queue_rows", **counts) == 0)
    wait_until(lambda: open_calls(server.listener) == idle)
    assert not server.listener._streams
    assert not server.health._watchers
    connection.close()


def test_connections_may_live_forever(make_server):
    assert ListenerOptions(max_connection_age=0).max_stream_age == float("inf")
    names = dict(ListenerOptions(max_connection_age=0).arguments())
    assert "grpc.max_connection_age_ms" not in names
    server = make_server(options=options(max_connection_age=0, keepalive=0))
    assert predict(server.channel) == 3
