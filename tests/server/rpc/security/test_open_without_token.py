"""The manual lists all that is open to callers without a token."""

import hashlib
import http.client
import re
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.transports.listener import ListenerOptions
from neurona_server.web.metrics_server import MetricsServer

MANUAL = Path(__file__).parents[4] / "server" / "docs" / "security.md"
FULL = "a-token-of-many-letters"


def open_paths(port):
    """The paths in the manual's table."""
    paths = re.findall(rf"^\| {port} \| `(/[^`]*)` \|", MANUAL.read_text(), re.MULTILINE)
    assert len(paths) == len(set(paths)) > 0
    return set(paths)


@pytest.fixture
def server(make_server, tmp_path):
    digest = hashlib.sha256(FULL.encode()).hexdigest()
    file = tmp_path / "tokens.toml"
    file.write_text(f'[[tokens]]\nname = "a"\nsha256 = "{digest}"\nrights = ["predict"]\n')
    return make_server(options=ListenerOptions(1 << 20, access=Access(file)))


def status_of(call):
    """The status of a call that gets an empty request."""
    try:
        next(call, None)  # a stream like Watch does not end
    except grpc.RpcError as error:
        return error.code()
    call.cancel()
    return grpc.StatusCode.OK


def test_every_method_that_needs_no_token_is_in_the_manual(server):
    answered = set()
    for path in server.methods:
        call = server.channel.stream_stream(path)(iter([b""]), timeout=20)
        if status_of(call) != grpc.StatusCode.UNAUTHENTICATED:
            answered.add(path)
    assert answered == open_paths("gRPC")
    assert len(server.methods) > 20


def test_unknown_methods_are_unknown_with_and_without_a_token(server):
    for path in ("/neurona.v1.Prediction/None", "/", "//", "/a/b/c", "/neurona.v1.Prediction"):
        for metadata in (None, [("authorization", f"Bearer {FULL}")]):
            method = server.channel.stream_stream(path)
            call = method(iter([b""]), timeout=20, metadata=metadata)
            assert status_of(call) == grpc.StatusCode.UNIMPLEMENTED


def test_every_path_of_the_metrics_port_is_in_the_manual():
    server = MetricsServer("127.0.0.1:0", CollectorRegistry(), lambda: "SERVING")

    def get(path):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body

    try:
        status, text = get("/none")
        assert status == 404
        paths = text.partition("available paths: ")[2].strip().split(", ")
        assert set(paths) == open_paths("metrics")
        assert {get(path)[0] for path in paths} == {200}
    finally:
        server.close()
