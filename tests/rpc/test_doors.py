"""Which door serves, and that the quick one is tried before it is trusted."""

import grpc
import pytest

from neurona_server.errors import ConfigError
from neurona_server.rpc import core_listener, doors
from neurona_server.rpc.aio_listener import AioListener
from neurona_server.rpc.call import Unary
from neurona_server.rpc.core_listener import CoreListener
from neurona_server.rpc.doors import open_door, why_not_core
from neurona_server.rpc.health import Health
from neurona_server.rpc.listening import ListenerOptions


class Deaf(CoreListener):
    """Does not notice that a caller has gone."""

    def watch(self, call):
        """It should."""


class Broken(CoreListener):
    """As with a grpcio that calls things otherwise."""

    def __init__(self, methods, listener_options):
        raise AttributeError("cygrpc has no CompletionQueue")


def test_the_quick_door_passes_its_trial_here():
    assert why_not_core() == ""


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Deaf, "cancellation: TimeoutError"), (Broken, "starting: AttributeError")],
)
def test_a_door_that_does_not_do_what_it_should_is_not_used(monkeypatch, caplog, kind, reason):
    monkeypatch.setattr(doors, "PATIENCE", 0.5)
    monkeypatch.setattr(doors, "CoreListener", kind)
    listener = open_door("auto", Health().methods(), ListenerOptions())
    listener.start("127.0.0.1:0")
    listener.stop(1.0)
    assert listener.name == "aio"
    assert reason in caplog.text
    assert grpc.__version__ in caplog.text


def test_a_door_can_be_chosen():
    for which, kind in (("core", CoreListener), ("aio", AioListener), ("auto", CoreListener)):
        listener = open_door(which, Health().methods(), ListenerOptions())
        listener.start("127.0.0.1:0")
        listener.stop(1.0)
        assert type(listener) is kind


def test_an_address_that_is_taken_is_named(door):
    first = open_door(door, Health().methods(), ListenerOptions())
    port = first.start("127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            open_door(door, Health().methods(), ListenerOptions()).start(f"127.0.0.1:{port}")
    finally:
        first.stop(1.0)
        first.stop(1.0)  # a second time does nothing


def test_calls_under_way_are_bounded_and_counted(monkeypatch, wait_until):
    monkeypatch.setattr(core_listener, "MOST_CALLS", 3)
    waiting = []
    methods = {"/t/Wait": Unary(waiting.append, None)}
    listener = CoreListener(methods, ListenerOptions())
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
        waiting[0].reply(b"answer")
        waiting[1].fail(RuntimeError("a fault of ours"))
        wait_until(lambda: listener._calls == 0 or len(waiting) > 3)
        again = method.future(b"", timeout=20)
        wait_until(lambda: len(waiting) == 4)
        waiting[3].reply(b"another")
        assert again.result() == b"another"
    listener.stop(1.0)
    assert listener._calls == 0
