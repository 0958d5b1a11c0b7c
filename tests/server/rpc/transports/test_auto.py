"""Which transport serves, and that cygrpc is tested before it is used."""

import grpc
import pytest

from neurona_server.rpc.health import Health
from neurona_server.rpc.transports import auto
from neurona_server.rpc.transports.aio import AioListener
from neurona_server.rpc.transports.auto import open_transport, self_test
from neurona_server.rpc.transports.cygrpc import CygrpcServer
from neurona_server.rpc.transports.listener import ListenerOptions


class IgnoresCancellation(CygrpcServer):
    """Does not notice that a caller has gone."""

    def watch_close(self, call):
        """It should."""


class Incompatible(CygrpcServer):
    """Behaves as with a grpcio whose private API has changed."""

    def __init__(self, methods, listener_options):
        raise AttributeError("cygrpc has no CompletionQueue")


@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:1"])
def test_the_cygrpc_transport_passes_its_self_test_with_the_installed_grpcio(monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    assert self_test() == ""


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (IgnoresCancellation, "cancellation: TimeoutError"),
        (Incompatible, "start: AttributeError"),
    ],
)
def test_a_cygrpc_transport_that_fails_its_self_test_is_not_used(
    monkeypatch, caplog, kind, failure
):
    monkeypatch.setattr(auto, "STEP_TIMEOUT", 0.5)
    monkeypatch.setattr(auto, "CygrpcServer", kind)
    listener = open_transport("auto", Health().methods(), ListenerOptions())
    listener.start("127.0.0.1:0")
    listener.stop(1.0)
    assert listener.name == "aio"
    assert caplog.messages == [
        f"the cygrpc transport failed its self-test with grpcio {grpc.__version__} ({failure}); "
        "falling back to grpc.aio, which is slower"
    ]


def test_a_transport_can_be_chosen():
    for name, kind in (("cygrpc", CygrpcServer), ("aio", AioListener), ("auto", CygrpcServer)):
        listener = open_transport(name, Health().methods(), ListenerOptions())
        listener.start("127.0.0.1:0")
        listener.stop(1.0)
        assert type(listener) is kind
