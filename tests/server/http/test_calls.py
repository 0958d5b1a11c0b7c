"""Deadlines, cancellation, shared batches, and the end of a server."""

import http.client
import re
import threading
import time

import numpy as np
import pytest
from support.http_caller import PREDICT, PROTOBUF, Caller, serve
from support.server_process import ServerProcess, free_addresses, run_neurona_serve

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

SLOW = PredictRequest(model="slow", inputs=[to_tensor("x", np.ones(1, np.float32))])
HEAD = (
    f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF}\r\n"
    f"Content-Length: {SLOW.ByteSize()}\r\n"
)


@pytest.fixture(scope="module", params=["cygrpc", "aio"])
def slow_caller(request, slow_repository):
    with serve(slow_repository, "--transport", request.param) as caller:
        yield caller


def predict_slow(caller, **headers):
    return caller.send(PREDICT, SLOW.SerializeToString(), Content_Type=PROTOBUF, **headers)


def test_a_deadline_ends_a_request(slow_caller):
    before = slow_caller.app.count("neurona_requests_total", outcome="expired")
    threads = [threading.Thread(target=predict_slow, args=[slow_caller]) for _ in range(4)]
    for thread in threads:
        thread.start()
    status, _, content = predict_slow(slow_caller, x_request_timeout_ms="40")
    for thread in threads:
        thread.join()
    assert status == 504
    assert b"DEADLINE_EXCEEDED" in content
    assert slow_caller.app.count("neurona_requests_total", outcome="expired") > before


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "nan", "inf", "1e99", "1_000", "5S"])
def test_a_deadline_that_is_none_is_rejected(slow_caller, text):
    status, _, content = predict_slow(slow_caller, x_request_timeout_ms=text)
    assert status == 400
    assert b"x-request-timeout-ms" in content


def test_a_caller_that_leaves_cancels_its_request(slow_caller, wait_until):
    def count():
        return slow_caller.app.count("neurona_requests_total", outcome="cancelled")

    before = count()
    connections = [slow_caller.connect() for _ in range(4)]
    for one in connections:
        one.sendall(HEAD.encode() + b"\r\n" + SLOW.SerializeToString())
    time.sleep(0.05)
    for one in connections:
        one.close()
    wait_until(lambda: count() > before)
    assert predict_slow(slow_caller)[0] == 200


def test_a_caller_that_leaves_cancels_its_request_before_one_in_the_pipeline(
    slow_caller, wait_until
):
    def count():
        return slow_caller.app.count("neurona_requests_total", outcome="cancelled")

    before = count()
    connections = [slow_caller.connect() for _ in range(3)]
    for one in connections:
        one.sendall(HEAD.encode() + b"\r\n" + SLOW.SerializeToString())
    time.sleep(0.05)
    for one in connections:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    time.sleep(0.05)
    for one in connections:
        one.close()
    wait_until(lambda: count() >= before + 2)  # the first one may have run


def test_a_response_says_how_long_its_request_waited_and_ran(slow_caller):
    timing = predict_slow(slow_caller)[1]["Server-Timing"]
    seconds = dict(re.findall(r"(\w+);dur=([0-9.]+)", timing))
    assert seconds.keys() == {"queue", "run", "total"}
    assert float(seconds["queue"]) < float(seconds["run"]) < float(seconds["total"])


def test_a_response_says_with_how_many_rows_its_request_ran(caller):
    message = PredictRequest(model="classifier", inputs=[to_tensor("x", np.ones((3, 4), "f4"))])
    headers = caller.send(PREDICT, message.SerializeToString(), Content_Type=PROTOBUF)[1]
    assert "batch;desc=3" in headers["Server-Timing"]


def test_requests_of_both_protocols_are_answered_side_by_side(caller):
    message = PredictRequest(model="classifier", inputs=[to_tensor("x", np.ones((1, 4), "f4"))])
    stub, stopping, answers = PredictionStub(caller.app.channel), threading.Event(), []

    def call():
        while not stopping.is_set():
            answers.append(stub.Predict(message, timeout=30).version)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    statuses = []

    def post():
        connection = http.client.HTTPConnection("127.0.0.1", caller.port, timeout=30)
        for _ in range(50):
            body = message.SerializeToString()
            connection.request("POST", PREDICT, body, {"Content-Type": PROTOBUF})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()

    posting = [threading.Thread(target=post) for _ in range(4)]
    for thread in posting:
        thread.start()
    for thread in posting:
        thread.join()
    stopping.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 200
    assert set(answers) == {2}


@pytest.mark.parametrize("transport", ["cygrpc", "aio"])
def test_requests_in_flight_are_answered_when_the_server_stops(slow_repository, transport):
    results = []
    with serve(slow_repository, "--transport", transport) as caller:
        idle = http.client.HTTPConnection("127.0.0.1", caller.port, timeout=30)
        idle.request("GET", "/healthz")
        idle.getresponse().read()
        threads = [
            threading.Thread(target=lambda: results.append(predict_slow(caller)[0]))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        while caller.app.app._http.connection_count < 4:
            time.sleep(0.005)
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert results == [200] * 3
    assert idle.sock.recv(1) == b""
    idle.close()


def test_requests_on_their_way_are_answered_when_the_server_stops(repository):
    with serve(repository) as caller:
        server = caller.app.app._http._server
        kept = caller.connect()
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(1 << 16).endswith(b"SERVING\n")
        waiting = []

        def connect_and_stop():
            # While this runs, the connections wait in the kernel.
            waiting.extend(caller.connect() for _ in range(3))
            server._drain_seconds = 30.0
            server._draining.set()

        server.loop.call_soon_threadsafe(connect_and_stop)
        while not server.closes_connections:
            time.sleep(0.001)
        for one in (kept, *waiting):
            with one:
                one.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
                answer = b"".join(iter(lambda one=one: one.recv(1 << 16), b""))
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert b"connection: close" in answer


@pytest.mark.slow
def test_worker_processes_share_the_port(repository):
    (http_address,) = free_addresses(1)
    flags = ["--processes", "2", "--http-address", http_address]
    with ServerProcess(repository, *flags) as server:
        caller = Caller(http_address)
        assert [caller.predict()[0] for _ in range(20)] == [200] * 20
        assert f"serving HTTP on {http_address} with 2 processes" in server.log
        assert server.stop() == 0
    with pytest.raises(OSError, match="refused"):
        caller.send("/healthz")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_port_in_use_is_an_error(repository, caller, processes):
    address = caller.address
    result = run_neurona_serve(
        *("--repository", repository, "--http-address", address, "--processes", processes)
    )
    assert result.returncode == 1
    assert f"cannot serve HTTP on {address}: Address already in use" in result.stderr
    assert "http_address" in result.stderr
