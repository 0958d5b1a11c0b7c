"""A path that is not UTF-8 ends its own call, and a transport that ended listens again."""

import asyncio
import contextlib
import threading

import grpc
import numpy as np
import pytest
from support import http2

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor
from neurona_server.rpc.transports import aio_server

UNIMPLEMENTED = 12


def total():
    series = np.ones((1, 3), np.float32)
    return PredictRequest(model="regressor", version=1, inputs=[to_tensor("series", series)])


def predict(channel, **options):
    return PredictionStub(channel).Predict(total(), timeout=30, **options)


def call_path(connection, path):
    """Start a call of any path; return its stream."""
    stream = connection._streams
    connection._streams += 2
    names = http2.block(
        *((":method", "POST"), (":scheme", "http"), (":authority", "test")),
        *(("content-type", "application/grpc"), ("te", "trailers")),
    )
    names += b"\x00\x05:path" + bytes([len(path)]) + path
    connection.send(http2.encode_frame(http2.HEADERS, http2.END_HEADERS, stream, names))
    return stream


PATHS = (b"/\x88", b"\xff", b"/neurona.v1.Prediction/Predict\x80", b"/\xed\xa0\x80", b"/\xc3")


def test_paths_that_are_not_utf8_are_unknown_methods(make_server):
    server = make_server()
    for _ in range(3):
        connection = http2.Connection(server.port)
        streams = [call_path(connection, path) for path in PATHS]
        assert connection.read_statuses(streams) == dict.fromkeys(streams, UNIMPLEMENTED)
        connection.close()
        predict(server.channel)


def test_a_flood_of_such_paths_disturbs_nobody(make_server):
    server = make_server()
    stopping, sent = threading.Event(), []

    def flood():
        while not stopping.is_set():
            connection = http2.Connection(server.port)
            with contextlib.suppress(OSError):
                for _ in range(20):
                    connection.read_response(call_path(connection, PATHS[0]))
                    sent.append(None)
            connection.close()

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        while len(sent) < 200:
            predict(server.channel)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def test_strict_decoding_elsewhere_stays_strict(make_server):
    make_server()
    for decode in (b"\xff".decode, lambda: str(b"\xff", "ascii")):
        with pytest.raises(UnicodeDecodeError):
            decode()
    with pytest.raises(UnicodeEncodeError):
        "\ud800".encode()


@pytest.fixture
def failing(transport, make_server, monkeypatch):
    """A server of the aio transport that such a path makes stop accepting."""
    if transport != "aio":
        pytest.skip("of the aio transport only")
    server = make_server(start_models=False)
    aio_server._loop_threads.clear()
    return server


def test_a_server_that_stopped_accepting_listens_again_and_answers_what_it_had(
    failing, wait_until, caplog
):
    in_flight = PredictionStub(failing.channel).Predict.future(total(), timeout=60)
    counts = {"model": "regressor", "version": "1"}
    wait_until(lambda: failing.count("queue_rows", **counts) == 1)
    restarting = failing.listener._server
    for _ in range(3):
        failed = restarting._server
        connection = http2.Connection(failing.port)
        with contextlib.suppress(ConnectionError):
            connection.read_response(call_path(connection, PATHS[0]))
        connection.close()
        wait_until(lambda failed=failed: restarting._server is not failed)
    for model in failing.registry.models():
        model.start()
    assert in_flight.result().regression.rows[0].values[0] == 3
    with grpc.insecure_channel(f"127.0.0.1:{failing.port}") as channel:
        predict(channel, wait_for_ready=True)
    assert "gRPC has stopped accepting calls; listening again" in caplog.text


def test_a_server_that_cannot_listen_again_ends_the_process(failing, monkeypatch):
    statuses, ended = [], threading.Event()

    def exit_process(status):
        statuses.append(status)
        ended.set()
        raise asyncio.CancelledError  # ends its task

    monkeypatch.setattr(aio_server, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(aio_server, "bind", refuse)
    monkeypatch.setattr(aio_server.os, "_exit", exit_process)
    connection = http2.Connection(failing.port)
    call_path(connection, PATHS[0])
    assert ended.wait(30)
    connection.close()
    assert statuses[0] == 1


def refuse(*_):
    raise aio_server.ConfigError("cannot listen")
