"""Calls end as they should: beyond limits, with faults of services, and when the server stops."""

import contextlib
import queue
import threading
import time
from functools import partial

import grpc
import pytest

from neurona_server.errors import ConfigError, InvalidArgumentError
from neurona_server.rpc.call import Streaming, Unary
from neurona_server.rpc.health import Health
from neurona_server.rpc.transports import cygrpc
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.cygrpc import CygrpcCall, CygrpcServer
from neurona_server.rpc.transports.listener import ListenerOptions


class FaultyStream:
    """A `Stream` that echoes, and raises when its attribute `fault` is used."""

    def __init__(self, call, fault):
        self.call = call
        self.fault = fault
        self.messages = []
        self.half_closed = False

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "fault"):
            raise ZeroDivisionError(name)
        return object.__getattribute__(self, name)

    def receive(self, message):
        self.messages.append(message)

    def half_close(self):
        self.half_closed = True

    def take_message(self):
        return self.messages.pop(0) if self.messages else None

    congested = False
    buffered_bytes = 0

    @property
    def finished(self):
        return self.half_closed and not self.messages

    def drain(self):
        self.half_closed = True

    def cancel(self):
        """Nothing is in flight."""


def test_an_address_in_use_is_named(transport):
    first = open_transport(transport, Health().methods(), ListenerOptions())
    port = first.start("127.0.0.1:0")
    try:
        with pytest.raises(
            ConfigError, match=f"cannot listen on 127.0.0.1:{port}: .*expected another address"
        ):
            open_transport(transport, Health().methods(), ListenerOptions()).start(
                f"127.0.0.1:{port}"
            )
    finally:
        first.stop(1.0)
        first.stop(1.0)  # a second time does nothing


def test_calls_in_flight_are_limited_and_counted(monkeypatch, wait_until):
    monkeypatch.setattr(cygrpc, "MAX_CALLS", 3)
    waiting = []
    methods = {"/t/Wait": Unary(waiting.append, None)}
    listener = CygrpcServer(methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary("/t/Wait")
        calls = [method.future(b"", timeout=20) for _ in range(3)]
        wait_until(lambda: len(waiting) == 3)
        with pytest.raises(grpc.RpcError, match="3 calls are in flight") as caught:
            method(b"", timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())["retry-after-ms"] == "1000"
        calls.pop().cancel()
        wait_until(lambda: listener._open_calls == 2)
        for number, call in enumerate(list(waiting)):  # one of them has ended already
            if number:
                call.reply(b"response")
            else:
                call.fail(InvalidArgumentError("invalid"))
        wait_until(lambda: listener._open_calls == 0)
        next_call = method.future(b"", timeout=20)
        wait_until(lambda: len(waiting) == 4)
        waiting[3].reply(b"another")
        assert next_call.result() == b"another"
    listener.stop(1.0)
    assert listener._open_calls == 0


@pytest.mark.parametrize("deferred", [False, True], ids=["immediately", "deferred"])
@pytest.mark.parametrize(
    ("response", "code"),
    [("text", "INTERNAL"), (None, "INTERNAL"), (7, "INTERNAL"), (..., "DEADLINE_EXCEEDED")],
    ids=["text", "none", "number", "no_reply"],
)
def test_a_call_ends_if_its_service_does_not_reply_with_bytes(response, code, deferred, wait_until):
    def start(call):
        if response is not ...:
            reply = partial(call.reply, response)
            call.defer(reply) if deferred else reply()

    listener = CygrpcServer({"/t/Odd": Unary(start, None)}, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Odd")(b"", timeout=20 if code == "INTERNAL" else 0.2)
        assert caught.value.code().name == code
        wait_until(lambda: listener._open_calls == 0)
    listener.stop(1.0)


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        ("receive", True),
        ("half_close", True),
        ("take_message", True),
        ("congested", True),
        ("finished", True),
        ("cancel", False),
        ("drain", False),
    ],
)
def test_a_faulty_stream_does_not_end_others(transport, fault, ends):
    methods = {
        f"/t/{name}": Streaming(partial(FaultyStream, fault=name), None) for name in (fault, "none")
    }
    listener = open_transport(transport, methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        requests = [b"1", b"2"]
        call = channel.stream_stream(f"/t/{fault}")(iter(requests), timeout=10)
        if ends or transport == "aio":  # where the handler raises the service's exception
            with contextlib.suppress(grpc.RpcError):
                assert list(call) == requests
            assert call.code() != grpc.StatusCode.DEADLINE_EXCEEDED
            assert not ends or call.code().name in ("INTERNAL", "UNKNOWN")
        else:
            assert list(call) == requests
        assert list(channel.stream_stream("/t/none")(iter(requests), timeout=10)) == requests
    listener.stop(1.0)


def test_calls_that_arrive_while_the_transport_is_busy_are_all_answered(transport):
    blocked, unblock = threading.Event(), threading.Event()

    def block(call):
        blocked.set()
        assert unblock.wait(10)
        call.reply(b"")

    methods = {
        "/t/Block": Unary(block, None),
        "/t/Echo": Unary(lambda call: call.reply(call.request), None),
    }
    listener = open_transport(transport, methods, ListenerOptions(max_streams=5000))
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        blocking = channel.unary_unary("/t/Block").future(b"", timeout=30)
        assert blocked.wait(10)
        echo = channel.unary_unary("/t/Echo")
        calls = [echo.future(str(n).encode(), timeout=30) for n in range(4500)]
        time.sleep(0.3)  # most of them have arrived, and gRPC would have cancelled many
        unblock.set()
        assert blocking.result() == b""
        assert [call.result() for call in calls] == [str(n).encode() for n in range(4500)]
    listener.stop(1.0)


def test_calls_that_arrive_while_a_busy_transport_stops_end_unavailable(caplog):
    blocked, unblock = threading.Event(), threading.Event()

    def block(call):
        blocked.set()
        assert unblock.wait(10)
        call.reply(b"")

    methods = {
        "/t/Block": Unary(block, None),
        "/t/Echo": Unary(lambda call: call.reply(call.request), None),
    }
    listener = CygrpcServer(methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        blocking = channel.unary_unary("/t/Block").future(b"", timeout=30)
        assert blocked.wait(10)
        echo = channel.unary_unary("/t/Echo")
        late = [echo.future(b"", timeout=30) for _ in range(20)]
        time.sleep(0.2)  # gRPC has accepted them
        stopping = threading.Thread(target=listener.stop, args=(10.0,))
        stopping.start()
        time.sleep(0.2)  # it has begun to shut down
        unblock.set()
        assert blocking.result() == b""
        assert {call.code() for call in late} == {grpc.StatusCode.UNAVAILABLE}
        stopping.join(5)
        assert not stopping.is_alive()
    assert not caplog.records


class EchoStream(FaultyStream):
    """Has no fault; adds its call to `calls`."""

    def __init__(self, calls, call):
        super().__init__(call, "nothing")
        calls.append(call)


def test_a_response_after_the_queue_is_closed_is_dropped(monkeypatch, wait_until):
    """gRPC would abort the process, and with it the tests."""
    calls, streams, outgoing = [], [], queue.SimpleQueue()
    methods = {
        "/t/Wait": Unary(calls.append, None),
        "/t/Stream": Streaming(partial(EchoStream, streams), None),
    }
    listener = CygrpcServer(methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        unary = channel.unary_unary("/t/Wait").future(b"", timeout=20)
        responses = channel.stream_stream("/t/Stream")(iter(outgoing.get, None), timeout=20)
        wait_until(lambda: calls and streams)
        (call,), (stream,) = calls, streams
        sending, unblock = threading.Event(), threading.Event()
        send = call._send

        def blocked_send(self, *operations):
            sending.set()
            assert unblock.wait(20)
            send(*operations)

        monkeypatch.setattr(CygrpcCall, "_send", blocked_send)
        late = threading.Thread(target=call.reply, args=(b"",))
        late.start()
        assert sending.wait(20)
        listener.stop(0.0)
        unblock.set()
        late.join()
        stream.wake()
        outgoing.put(None)
        for call in (unary, responses):
            assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
