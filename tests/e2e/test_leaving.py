"""Shutdown of a real server: accepted calls complete, and connections are closed gracefully."""

import json
import re
import signal
import subprocess

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import http2, onnx_models
from support.server_process import NEURONA_SERVE, LoadGenerator, free_addresses

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
REQUEST = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
ROUND_ROBIN = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # The channel watches each replica's health, and skips one that is NOT_SERVING.
    "healthCheckConfig": {"serviceName": "neurona.v1.Prediction"},
    "methodConfig": [
        {
            "name": [{"service": "neurona.v1.Prediction"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_classifier(root / "m" / "1" / "model.onnx")
    return root


def test_a_draining_server_serves_existing_and_new_connections(models, serve):
    server = serve(models, "--drain-delay-ms", "1500")
    watch = server.health.Watch(HealthCheckRequest(), timeout=60)
    watch_model = server.health.Watch(HealthCheckRequest(service="m/1"), timeout=60)
    assert (next(watch).status, next(watch_model).status) == (SERVING, SERVING)
    server.terminate()
    assert (next(watch).status, next(watch_model).status) == (NOT_SERVING, NOT_SERVING)
    with grpc.insecure_channel(server.address) as new_channel:
        for channel in (server.channel, new_channel):
            assert PredictionStub(channel).Predict(REQUEST, timeout=10).model == "m"
            state = HealthStub(channel).Check(HealthCheckRequest(), timeout=10)
            assert state.status == NOT_SERVING
    assert "neurona_requests_total" in server.metrics()
    assert list(watch) == []
    status, log = server.wait(), server.log
    assert status == 0, log
    assert log.rstrip().endswith("stopped")


def test_an_idle_connection_gets_a_goaway(models, serve):
    server = serve(models)
    connection = http2.Connection(server.port)
    connection.read_until(http2.SETTINGS, flags=http2.ACK)
    server.terminate()
    connection.read_until(http2.GO_AWAY)
    connection.read_until(http2.PING)  # whether the GOAWAY has arrived
    assert server.wait() == 0
    connection.close()


def test_a_signal_before_it_serves_ends_the_server(models, serve):
    server = serve(models)
    server.stop()
    server.start()
    while True:  # until its own handlers are installed, the signal kills the process
        with open(f"/proc/{server.pid}/status") as state:
            handled = next(line for line in state if line.startswith("SigCgt:"))
        if int(handled.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            break
    server.terminate()
    status, log = server.wait(), server.log
    assert status == 0, log
    assert "stopped during start-up" in log


def test_a_unix_socket_is_removed_at_the_end(models, serve, tmp_path):
    path = tmp_path / "transport"
    server = serve(models, "--address", f"unix:{path}")
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert PredictionStub(channel).Predict(REQUEST, timeout=10).model == "m"
    assert server.stop() == 0
    assert not path.exists()


def test_a_rolling_restart_of_two_replicas_loses_no_call(models, serve, wait_until):
    replicas = [serve(models, "--drain-delay-ms", "1000") for _ in range(2)]
    options = [
        ("grpc.service_config", json.dumps(ROUND_ROBIN)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
    ]
    target = "ipv4:" + ",".join(replica.address for replica in replicas)

    def serves(replica):
        """Whether it has served calls of the load since it started."""
        count = re.search(r'requests_total{model="m",outcome="ok".*} (.*)', replica.metrics())
        return count is not None and float(count[1]) > 10

    with (
        grpc.insecure_channel(target, options) as channel,
        LoadGenerator([channel], REQUEST, callers=4) as load,
    ):
        for replica in replicas:
            wait_until(lambda: all(map(serves, replicas)))
            before = load.answered
            assert replica.stop() == 0, replica.log
            replica.start().wait_until_serving()
            assert load.answered > before
        wait_until(lambda: all(map(serves, replicas)))
    assert load.error is None
    assert load.answered > 100


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_server_without_standard_streams(tmp_path, processes):
    onnx_models.save_classifier(tmp_path / "m" / "1" / "model.onnx")
    (address,) = free_addresses(1)
    command = [
        *("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"),
        *(NEURONA_SERVE, "--repository", tmp_path, "--processes", processes),
        *("--address", address, "--metrics-address", "127.0.0.1:0", "--log-format", "json"),
    ]
    process = subprocess.Popen(command)
    try:
        with grpc.insecure_channel(address) as channel:
            answer = PredictionStub(channel).Predict(REQUEST, timeout=60, wait_for_ready=True)
        assert answer.model == "m"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
