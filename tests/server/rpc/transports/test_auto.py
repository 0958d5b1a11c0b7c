"""Which transport serves, and that the quick one is tried before it is trusted."""

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
from neurona_server.rpc.transports import auto, cygrpc
from neurona_server.rpc.transports.aio import AioListener
from neurona_server.rpc.transports.auto import open_transport, self_test
from neurona_server.rpc.transports.cygrpc import CygrpcCall, CygrpcServer
from neurona_server.rpc.transports.listener import ListenerOptions


class Deaf(CygrpcServer):
    """Does not notice that a caller has gone."""

    def watch(self, call):
        """It should."""


class Broken(CygrpcServer):
    """As with a grpcio that calls things otherwise."""

    def __init__(self, methods, listener_options):
        raise AttributeError("cygrpc has no CompletionQueue")


class Faulty:
    """A stream that echoes, but for one thing that it is asked."""

    def __init__(self, call, fault):
        self.call = call
        self.fault = fault
        self.messages = []
        self.over = False

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "fault"):
            raise ZeroDivisionError(name)
        return object.__getattribute__(self, name)

    def receive(self, message):
        self.messages.append(message)

    def half_close(self):
        self.over = True

    def take(self):
        return self.messages.pop(0) if self.messages else None

    congested = False

    @property
    def finished(self):
        return self.over and not self.messages

    def drain(self):
        self.over = True

    def cancel(self):
        """Nothing is under way."""


def test_the_quick_door_passes_its_trial_here():
    assert self_test() == ""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Deaf, "cancellation: TimeoutError"), (Broken, "starting: AttributeError")],
)
def test_a_door_that_does_not_do_what_it_should_is_not_used(monkeypatch, caplog, kind, reason):
    monkeypatch.setattr(auto, "PATIENCE", 0.5)
    monkeypatch.setattr(auto, "CygrpcServer", kind)
    listener = open_transport("auto", Health().methods(), ListenerOptions())
    listener.start("127.0.0.1:0")
    listener.stop(1.0)
    assert listener.name == "aio"
    assert reason in caplog.text
    assert grpc.__version__ in caplog.text


def test_a_door_can_be_chosen():
    for which, kind in (("cygrpc", CygrpcServer), ("aio", AioListener), ("auto", CygrpcServer)):
        listener = open_transport(which, Health().methods(), ListenerOptions())
        listener.start("127.0.0.1:0")
        listener.stop(1.0)
        assert type(listener) is kind


def test_an_address_that_is_taken_is_named(transport):
    first = open_transport(transport, Health().methods(), ListenerOptions())
    port = first.start("127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            open_transport(transport, Health().methods(), ListenerOptions()).start(
                f"127.0.0.1:{port}"
            )
    finally:
        first.stop(1.0)
        first.stop(1.0)  # a second time does nothing


def test_calls_under_way_are_bounded_and_counted(monkeypatch, wait_until):
    monkeypatch.setattr(cygrpc, "MOST_CALLS", 3)
    waiting = []
    methods = {"/t/Wait": Unary(waiting.append, None)}
    listener = CygrpcServer(methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary("/t/Wait")
        calls = [method.future(b"", timeout=20) for _ in range(3)]
        wait_until(lambda: len(waiting) == 3)
        with pytest.raises(grpc.RpcError, match="3 calls are under way") as caught:
            method(b"", timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())["retry-after-ms"] == "1000"
        calls.pop().cancel()
        wait_until(lambda: listener._calls == 2)
        for number, one in enumerate(list(waiting)):  # one of them has ended already
            if number:
                one.reply(b"answer")
            else:
                one.fail(InvalidArgumentError("it is wrong"))
        wait_until(lambda: listener._calls == 0)
        again = method.future(b"", timeout=20)
        wait_until(lambda: len(waiting) == 4)
        waiting[3].reply(b"another")
        assert again.result() == b"another"
    listener.stop(1.0)
    assert listener._calls == 0


@pytest.mark.parametrize("later", [False, True], ids=["at_once", "later"])
@pytest.mark.parametrize(
    ("answer", "code"),
    [("text", "INTERNAL"), (None, "INTERNAL"), (7, "INTERNAL"), (..., "DEADLINE_EXCEEDED")],
    ids=["text", "nothing", "a_number", "no_reply"],
)
def test_a_method_that_does_not_reply_with_bytes_leaves_no_call(answer, code, later, wait_until):
    def start(call):
        if answer is not ...:
            reply = partial(call.reply, answer)
            call.defer(reply) if later else reply()

    listener = CygrpcServer({"/t/Odd": Unary(start, None)}, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Odd")(b"", timeout=20 if code == "INTERNAL" else 0.2)
        assert caught.value.code().name == code
        wait_until(lambda: listener._calls == 0)
    listener.stop(1.0)


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        ("receive", True),
        ("half_close", True),
        ("take", True),
        ("congested", True),
        ("finished", True),
        ("cancel", False),
        ("drain", False),
    ],
)
def test_a_stream_with_a_fault_ends_alone(transport, fault, ends):
    methods = {
        f"/t/{name}": Streaming(partial(Faulty, fault=name), None) for name in (fault, "none")
    }
    listener = open_transport(transport, methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        sent = [b"1", b"2"]
        call = channel.stream_stream(f"/t/{fault}")(iter(sent), timeout=10)
        if ends or transport == "aio":  # where the handler raises whatever the service raised
            with contextlib.suppress(grpc.RpcError):
                assert list(call) == sent
            assert call.code() != grpc.StatusCode.DEADLINE_EXCEEDED
            assert not ends or call.code().name in ("INTERNAL", "UNKNOWN")
        else:
            assert list(call) == sent
        assert list(channel.stream_stream("/t/none")(iter(sent), timeout=10)) == sent
    listener.stop(1.0)


def test_calls_that_gather_while_a_door_is_busy_are_all_answered(transport):
    held, go_on = threading.Event(), threading.Event()

    def hold(call):
        held.set()
        assert go_on.wait(10)
        call.reply(b"")

    methods = {
        "/t/Hold": Unary(hold, None),
        "/t/Echo": Unary(lambda call: call.reply(call.request), None),
    }
    listener = open_transport(transport, methods, ListenerOptions(max_streams=5000))
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        holding = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        assert held.wait(10)
        echo = channel.unary_unary("/t/Echo")
        answers = [echo.future(str(n).encode(), timeout=30) for n in range(4500)]
        time.sleep(0.3)  # most of them have arrived, and those that gRPC gives up are many
        go_on.set()
        assert holding.result() == b""
        assert [answer.result() for answer in answers] == [str(n).encode() for n in range(4500)]
    listener.stop(1.0)


def test_calls_that_came_as_a_busy_door_closed_are_told_to_call_again(caplog):
    held, go_on = threading.Event(), threading.Event()

    def hold(call):
        held.set()
        assert go_on.wait(10)
        call.reply(b"")

    methods = {
        "/t/Hold": Unary(hold, None),
        "/t/Echo": Unary(lambda call: call.reply(call.request), None),
    }
    listener = CygrpcServer(methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        holding = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        assert held.wait(10)
        echo = channel.unary_unary("/t/Echo")
        late = [echo.future(b"", timeout=30) for _ in range(20)]
        time.sleep(0.2)  # they have arrived
        stopping = threading.Thread(target=listener.stop, args=(10.0,))
        stopping.start()
        time.sleep(0.2)  # it has begun to shut down
        go_on.set()
        assert holding.result() == b""
        assert {call.code() for call in late} == {grpc.StatusCode.UNAVAILABLE}
        stopping.join(5)
        assert not stopping.is_alive()
    assert not caplog.records


class ParsedRequest(Faulty):
    """A stream that nothing is wrong with."""

    def __init__(self, calls, call):
        super().__init__(call, "nothing")
        calls.append(call)


def test_an_answer_that_comes_when_the_door_is_shut_is_lost(monkeypatch, wait_until):
    """gRPC would end the process, and with it the tests."""
    calls, streams, outgoing = [], [], queue.SimpleQueue()
    methods = {
        "/t/Wait": Unary(calls.append, None),
        "/t/Stream": Streaming(partial(ParsedRequest, streams), None),
    }
    listener = CygrpcServer(methods, ListenerOptions())
    port = listener.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        unary = channel.unary_unary("/t/Wait").future(b"", timeout=20)
        answers = channel.stream_stream("/t/Stream")(iter(outgoing.get, None), timeout=20)
        wait_until(lambda: calls and streams)
        (call,), (stream,) = calls, streams
        sending, go_on = threading.Event(), threading.Event()
        send = call._send

        def hold(self, *operations):
            sending.set()
            assert go_on.wait(20)
            send(*operations)

        monkeypatch.setattr(CygrpcCall, "_send", hold)
        late = threading.Thread(target=call.reply, args=(b"",))
        late.start()
        assert sending.wait(20)
        listener.stop(0.0)
        go_on.set()
        late.join()
        stream.wake()
        outgoing.put(None)
        for one in (unary, answers):
            assert one.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
