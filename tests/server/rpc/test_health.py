"""Health: Check, List and Watch, and how names come and go."""

import time

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from neurona_server.rpc import health

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def server(make_server):
    server = make_server()
    server.health.set({"": True, "lstm": True, "rnn": False})
    return server


@pytest.mark.parametrize(
    ("name", "status"), [("", SERVING), ("lstm", SERVING), ("rnn", NOT_SERVING)]
)
def test_check_returns_the_state(server, name, status):
    response = HealthStub(server.channel).Check(HealthCheckRequest(service=name), timeout=10)
    assert response.status == status


def test_check_of_an_unknown_name_is_not_found(server):
    with pytest.raises(grpc.RpcError) as caught:
        HealthStub(server.channel).Check(HealthCheckRequest(service="gru"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'gru'" in caught.value.details()


def test_watch_sends_every_change(server):
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(service="gru"), timeout=30)
    states = [next(watch).status]
    for serving in (True, False, True):
        server.health.set({"gru": serving})
        states.append(next(watch).status)
    assert states == [UNKNOWN, SERVING, NOT_SERVING, SERVING]


def test_list_returns_the_state_of_every_name(server):
    method = server.channel.unary_unary("/grpc.health.v1.Health/List")
    listed = health.HealthListResponse.FromString(method(b"", timeout=10))
    states = {name: entry.status for name, entry in listed.statuses.items()}
    assert states == {"": SERVING, "lstm": SERVING, "rnn": NOT_SERVING}
    with pytest.raises(grpc.RpcError) as caught:
        method(b"\xff", timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_bytes_of_list_are_those_of_the_specification(server):
    """By hand: field 1 holds pairs of a name (1) and a HealthCheckResponse (2)."""
    server.health.replace({"lstm": True, "rnn": False})
    response = server.channel.unary_unary("/grpc.health.v1.Health/List")(b"", timeout=10)
    lstm = b"\x0a\x0a" + b"\x0a\x04lstm" + b"\x12\x02\x08\x01"
    rnn = b"\x0a\x09" + b"\x0a\x03rnn" + b"\x12\x02\x08\x02"
    assert response == lstm + rnn


def test_replaced_names_are_unknown_to_check_and_watch(server):
    stub = HealthStub(server.channel)
    watch = stub.Watch(HealthCheckRequest(service="rnn"), timeout=30)
    states = [next(watch).status]
    server.health.replace({"": True, "gru": True})
    states.append(next(watch).status)
    server.health.replace({"": True, "rnn": True})
    states.append(next(watch).status)
    assert states == [NOT_SERVING, UNKNOWN, SERVING]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(HealthCheckRequest(service="gru"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_name_with_odd_characters_is_escaped_in_the_message(server):
    with pytest.raises(grpc.RpcError) as caught:
        HealthStub(server.channel).Check(HealthCheckRequest(service="a\nb" * 500), timeout=10)
    assert "\n" not in caught.value.details()
    assert len(caught.value.details()) < 200


def test_a_cancelled_watch_is_removed(server, wait_until):
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=30)
    next(watch)
    watch.cancel()
    wait_until(lambda: not server.health._watchers)


def test_watchers_learn_of_the_stop_and_do_not_delay_it(server):
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=30)
    assert next(watch).status == SERVING
    server.health.stop()
    assert next(watch).status == NOT_SERVING
    started = time.monotonic()
    server.listener.stop(30.0)
    assert time.monotonic() - started < 10


def test_invalid_bytes_are_rejected(server):
    check = server.channel.unary_unary("/grpc.health.v1.Health/Check")
    with pytest.raises(grpc.RpcError) as caught:
        check(b"\xff", timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
