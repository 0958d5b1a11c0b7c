import time

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

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
def test_check_says_the_state(server, name, status):
    response = HealthStub(server.channel).Check(HealthCheckRequest(service=name), timeout=10)
    assert response.status == status


def test_check_of_an_unknown_name_is_not_found(server):
    with pytest.raises(grpc.RpcError) as caught:
        HealthStub(server.channel).Check(HealthCheckRequest(service="gru"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'gru'" in caught.value.details()


def test_watch_says_every_change(server):
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(service="gru"), timeout=30)
    states = [next(watch).status]
    for serving in (True, False, True):
        server.health.set({"gru": serving})
        states.append(next(watch).status)
    assert states == [UNKNOWN, SERVING, NOT_SERVING, SERVING]


def test_a_watcher_that_leaves_is_forgotten(server, wait_until):
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=30)
    next(watch)
    watch.cancel()
    wait_until(lambda: not server.health._watchers)


def test_watchers_are_told_of_the_stop_and_do_not_hold_it_up(server):
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=30)
    assert next(watch).status == SERVING
    server.health.stop()
    assert next(watch).status == NOT_SERVING
    started = time.monotonic()
    server.listener.stop(30.0)
    assert time.monotonic() - started < 10


def test_bytes_that_are_no_request_are_refused(server):
    check = server.channel.unary_unary("/grpc.health.v1.Health/Check")
    with pytest.raises(grpc.RpcError) as caught:
        check(b"\xff", timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
