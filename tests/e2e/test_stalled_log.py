"""A reader of standard error that stalls stops neither the server nor its end."""

import contextlib
import os
import signal
import socket
import subprocess
import time

import grpc
import numpy as np
import pytest
from support import http2
from support.server_process import NEURONA_SERVE, free_addresses

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

PREDICT = "/neurona.v1.Prediction/Predict"
SECRET = b"Bearer sesame-open-now"

pytestmark = pytest.mark.slow


class StalledServer:
    """A server whose standard error is a pipe that nobody reads until `read_log`."""

    def __init__(self, repository, *flags):
        self.address, self.metrics_address = free_addresses(2)
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        command = [NEURONA_SERVE, "--repository", repository, "--address", self.address]
        command += ["--metrics-address", self.metrics_address, *flags]
        self.process = subprocess.Popen([str(one) for one in command], stderr=writer)
        # Opened anew, since the server's descriptor must stay one that blocks.
        self._filler = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
        os.close(writer)
        self.channel = grpc.insecure_channel(self.address)
        self.port = int(self.address.rpartition(":")[2])

    def predict(self, timeout):
        series = np.ones((1, 3), np.float32)
        request = PredictRequest(model="regressor", inputs=[to_tensor("series", series)])
        PredictionStub(self.channel).Predict(request, timeout=timeout, wait_for_ready=True)

    def fill_log(self):
        with contextlib.suppress(BlockingIOError):
            while os.write(self._filler, b"-" * 4095 + b"\n"):
                pass

    def read_log(self):
        """Read until the server has ended."""
        os.close(self._filler)
        parts = []
        while True:
            try:
                part = os.read(self._reader, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if not part:
                return b"".join(parts)
            parts.append(part)

    def close(self):
        self.channel.close()
        self.process.kill()
        self.process.wait()
        os.close(self._reader)


@pytest.fixture
def start(repository):
    servers = []

    def start(*flags):
        server = StalledServer(repository, *flags)
        servers.append(server)
        server.predict(60)
        server.fill_log()
        return server

    yield start
    for server in servers:
        server.close()


def send_undecodable_metadata(port, calls):
    """Calls whose metadata value is a token with a byte that is not UTF-8: gRPC logs each."""
    connection = http2.Connection(port)
    names = http2.block(
        *((":method", "POST"), (":scheme", "http"), (":path", PREDICT), (":authority", "test")),
        *(("content-type", "application/grpc"), ("te", "trailers")),
    )
    value = SECRET + b"\xff"
    names += b"\x00\x0dauthorization" + bytes([len(value)]) + value
    for number in range(calls):
        stream, body = 2 * number + 1, http2.message(b"")
        frames = http2.encode_frame(http2.HEADERS, http2.END_HEADERS, stream, names)
        connection.send(frames + http2.encode_frame(http2.DATA, http2.END_STREAM, stream, body))
        if number % 50 == 49:
            connection.read_response(stream)
    connection.close()


def send_invalid_timeouts(port, calls):
    """Calls whose timeout is invalid: gRPC's core writes a line to standard error for each."""
    for _ in range(calls):
        connection = http2.Connection(port)
        connection.call(PREDICT, grpc_timeout="nonsense")
        connection.close()


@pytest.mark.parametrize("transport", ["cygrpc", "aio"])
@pytest.mark.parametrize("log_format", ["human", "json"])
def test_callers_are_served_and_the_server_stops_while_nobody_reads_its_log(
    start, transport, log_format
):
    server = start("--transport", transport, "--log-format", log_format)
    send_undecodable_metadata(server.port, 200)
    send_invalid_timeouts(server.port, 20)
    for _ in range(3):
        server.predict(20)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert b"sesame" not in server.read_log()


@pytest.mark.parametrize("transport", ["cygrpc", "aio"])
def test_what_callers_cause_is_logged_once_without_their_tokens(serve, repository, transport):
    server = serve(repository, "--transport", transport)
    send_undecodable_metadata(server.port, 100)
    send_invalid_timeouts(server.port, 20)
    assert server.stop() == 0
    assert "sesame" not in server.log
    assert server.log.count("Invalid encoding") == 1
    assert server.log.count("grpc-timeout") == 1


def test_several_processes_share_a_log_that_nobody_reads(start):
    server = start("--processes", "2")
    send_undecodable_metadata(server.port, 100)
    for _ in range(3):
        server.predict(20)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


def test_a_second_signal_ends_the_server_while_nobody_reads(start):
    server = start()
    connection = socket.create_connection(("127.0.0.1", server.port))
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 1
    connection.close()
