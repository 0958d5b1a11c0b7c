"""The metrics port of a real server, from its start to its end."""

import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from support import onnx_models

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor


def get(server, path, **headers):
    request = urllib.request.Request(f"http://{server.metrics_address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health(server):
    """Returns the status and text of /healthz; 0 and "" while the port is closed."""
    try:
        return get(server, "/healthz")
    except (OSError, TimeoutError):
        return 0, ""


@pytest.mark.parametrize("processes", [1, 2])
def test_health_and_metrics_are_served_from_start_to_end(start_server, tmp_path, processes):
    onnx_models.save_slow(tmp_path / "models" / "slow" / "1" / "model.onnx")
    flags = ["--drain-delay-ms", "700", "--processes", str(processes)]
    server = start_server(tmp_path / "models", *flags)
    statuses = {}
    end = time.monotonic() + 120
    while health(server)[1] != "SERVING\n":
        assert time.monotonic() < end, statuses
        status, word = health(server)
        if word == "STARTING\n" and word not in statuses and processes == 1:
            assert "\nneurona_serving 0.0\n" in get(server, "/metrics")[1]
        statuses[word] = status
    assert statuses["STARTING\n"] == 503
    assert statuses.keys() <= {"", "STARTING\n", "SERVING\n"}
    server.wait_until_serving()
    assert health(server) == (200, "SERVING\n")
    server.terminate()
    end = time.monotonic() + 30
    while health(server)[1] == "SERVING\n":
        assert time.monotonic() < end
    assert health(server) == (503, "NOT_SERVING\n")
    assert get(server, "/metrics")[0] == 200
    status, log = server.wait(), server.log
    assert status == 0, log


@pytest.fixture(scope="module")
def server(serve_for_module, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_classifier(root / "m" / "1" / "model.onnx")
    return serve_for_module(root)


def test_all_metrics_are_valid_openmetrics(server):
    request = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
    PredictionStub(server.channel).Predict(request, timeout=10)
    text = get(server, "/metrics", Accept="application/openmetrics-text")[1]
    families = {family.name: family for family in openmetrics(text)}
    build = families["neurona_build_info"].samples[0].labels
    assert set(build) == {"version", "python", "onnxruntime", "grpcio"}
    assert all(build.values())
    assert families["neurona_serving"].samples[0].value == 1
    assert families["process_cpu_seconds"].samples[0].value > 0
    assert families["process_resident_memory_bytes"].samples[0].value > 1 << 20
    assert "python_gc_collections" in families
    names = [name for name in families if name.startswith("neurona_")]
    assert len(names) > 35
    assert all(families[name].documentation.endswith(".") for name in names)


@pytest.mark.parametrize("processes", [1, 2])
def test_metrics_can_be_selected_by_name(serve, tmp_path, processes):
    onnx_models.save_classifier(tmp_path / "m" / "1" / "model.onnx")
    server = serve(tmp_path, "--processes", str(processes))
    names = ["neurona_version_state", "neurona_requests_total", "neurona_batch_rows_count"]
    text = get(server, "/metrics?" + "&".join(f"name[]={name}" for name in names))[1]
    assert {line.split("{")[0] for line in text.splitlines() if line[0] != "#"} == set(names)
    assert 'neurona_version_state{model="m",state="ready",version="1"} 1.0\n' in text


def test_metrics_are_served_under_load(server):
    request = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((16, 4), np.float32))])
    stop, models = threading.Event(), []

    def call():
        stub = PredictionStub(server.channel)
        while not stop.is_set():
            calls = [stub.Predict.future(request, timeout=60) for _ in range(50)]
            models.extend([each.result().model for each in calls])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        scrapes = 0
        while len(models) < 1000 or scrapes < 5:
            assert get(server, "/metrics")[0] == 200
            assert health(server) == (200, "SERVING\n")
            scrapes += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_idle_connections_do_not_block_the_port(server):
    host, _, port = server.metrics_address.rpartition(":")
    connections = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        assert get(server, "/metrics")[0] == 200
        assert health(server) == (200, "SERVING\n")
    finally:
        for connection in connections:
            connection.close()
