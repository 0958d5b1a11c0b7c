"""Connections that are slow, broken or many."""

import contextlib
import socket
import time

import pytest
from support.http_caller import PREDICT

from neurona_server.web.connection import _Body

HEAD = (
    b"POST /neurona.v1.Models/List HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\n"
)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", b"400"),
        (HEAD + b"Content-Length: +2\r\n\r\n{}", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 2x\r\n\r\n{}", b"400"),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{}", b"400"),
        (HEAD + b"Content-Length: 9999999999\r\n\r\n{}", b"413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}", b"400"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 10_000, b"431"),
        (HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n", b"400"),
        (HEAD + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n", b"400"),
        (HEAD + b"X: a\nY: b\r\nContent-Length: 0\r\n\r\n", b"400"),
        (HEAD + b"Content-Length : 2\r\n\r\n{}", b"400"),
        (HEAD + b"Host: other\r\nContent-Length: 0\r\n\r\n", b"400"),
        (HEAD + b"X: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (HEAD + b"X: " + b"x" * 300_000, b"431"),
        (HEAD + b"X: y\r\n" * 10_000 + b"\r\n", b"431"),
        (b"GET /" + b"x" * 300_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"400"),  # a handshake of TLS
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET http://localhost/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /%68ealthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /healthz%2F HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /../healthz HTTP/1.0\r\n\r\n", b"404"),
        (b"TRACE /healthz HTTP/1.0\r\n\r\n", b"405"),
    ],
)
def test_a_malformed_request_gets_a_status_and_ends_the_connection(caller, raw, status):
    answer = caller.send_raw(raw)
    assert answer.split(b" ", 2)[1] == status
    assert answer.count(b"HTTP/1.1 ") == 1


def test_an_upgrade_is_ignored(caller):
    for protocol in (b"websocket", b"h2c"):
        raw = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: "
        answer = caller.send_raw(raw + protocol + b"\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1


def test_pipelined_requests_are_answered_in_their_order_and_bounded(caller):
    request = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = caller.send_raw(request % b"one" + request % b"healthz" + request % b"two" + last)
    parts = [answer.index(word) for word in (b"/one", b"SERVING", b"/two", b"/last")]
    assert parts == sorted(parts)
    answer = caller.send_raw((request % b"healthz") * 5000)
    assert 1 <= answer.count(b"SERVING") < 5000


def test_connections_are_kept_for_further_requests(caller):
    with caller.connect() as one:
        for _ in range(3):
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(1 << 16).endswith(b"SERVING\n")


def test_a_body_is_sent_after_100_continue(caller):
    with caller.connect() as one:
        one.sendall(HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert one.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        one.sendall(b"{}")
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    with caller.connect() as one:
        one.sendall(HEAD + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_small_chunks_take_no_more_memory_than_their_bytes(caller):
    body = b"{" + b" " * 9_998 + b"}"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"0\r\nHost: attacker.com\r\n\r\n"
    assert caller.send_raw(head + chunks + trailers).startswith(b"HTTP/1.1 200 ")
    received = _Body()
    for byte in body:
        received.append(bytes([byte]) * 2)
    assert len(received.parts) < 4
    assert b"".join(received.parts) == b"".join(bytes([byte]) * 2 for byte in body)


def test_an_early_error_reaches_a_caller_that_still_sends(caller):
    with caller.connect() as one:
        head = HEAD.replace(b"Models/List", b"Models/Nothing") + b"Content-Length: 900000\r\n\r\n"
        one.sendall(head + bytes(900_000))
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 404 ")


@pytest.fixture
def limits(caller):
    """The bounds of the server; the test may change them."""
    limits = caller.app.app._http._server.limits
    before = vars(limits).copy()
    yield limits
    vars(limits).update(before)


def test_a_slow_head_and_a_slow_body_end_the_connection(caller, limits):
    limits.head_timeout = limits.body_grace = 0.2
    for raw in (b"", b"GET /heal", HEAD + b"Content-Length: 10\r\n\r\n{"):
        assert caller.send_raw(raw) == b""


def test_bytes_that_trickle_do_not_keep_a_connection(caller, limits):
    limits.head_timeout = limits.body_grace = 0.3
    for raw in (b"GET /", HEAD + b"Content-Length: 1000\r\n\r\n"):
        with caller.connect() as one:
            one.sendall(raw)
            end = time.monotonic() + 20
            with contextlib.suppress(OSError):
                while time.monotonic() < end:
                    one.sendall(b"x")
                    time.sleep(0.02)
            assert time.monotonic() < end


def test_a_caller_that_does_not_read_loses_its_connection(caller, limits):
    limits.body_grace, limits.min_rate = 0.2, 1e9
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with caller.connect() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.settimeout(0.5)
        end = time.monotonic() + 60
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                one.sendall(request * 4)
        assert time.monotonic() < end


def test_silent_connections_make_room_for_others(caller, limits):
    limits.max_connections, limits.crowd_head_seconds = 8, 0.01
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(caller.connect()) for _ in range(30)]
        assert caller.send("/healthz")[0] == 200
        assert idle[0].recv(1) == b""  # the oldest
        for one in idle[-3:]:  # which are between two requests
            with contextlib.suppress(OSError):
                one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                one.recv(1 << 16)
        assert caller.send("/healthz")[0] == 200


def test_many_wrong_requests_write_no_log(caller, caplog):
    for _ in range(50):
        caller.send_raw(b"nonsense\r\n\r\n")
        caller.send_raw(b"GET /healthz HTTP/1.1\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        caller.post_json(PREDICT, b"{")
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
