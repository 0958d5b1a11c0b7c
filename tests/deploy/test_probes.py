"""A real server with the options of the manifests responds to their probes."""

import http.client

import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import manifests, onnx_models
from support.in_process_server import run_app
from support.manifests import container, of_kind, overlay

import neurona_server.app
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor
from neurona_server.models.onnx.runtime import CPU


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a server with the neurona.toml of an overlay and folders of this test."""
    root = tmp_path_factory.mktemp("pod")
    onnx_models.save_classifier(root / "models" / "m" / "1" / "model.onnx")

    def start(name):
        (options,) = of_kind(overlay(name), "ConfigMap")
        text = options["data"]["neurona.toml"]
        for folder in ("models", "cache"):
            assert f' = "/{folder}/' in text or f'["/{folder}"]' in text
            text = text.replace(f'"/{folder}', f'"{root / folder}')
        (root / "neurona.toml").write_text(text)
        return run_app([], {"NEURONA_CONFIG": str(root / "neurona.toml")})

    return start


def probed_services(name):
    """Returns the health services of the overlay's gRPC probes, by probe."""
    probes = manifests.probes(container(name))
    return {kind: probe["grpc"]["service"] for kind, probe in probes if "grpc" in probe}


def test_every_probed_service_is_serving(start):
    with start("cpu") as server:
        health = HealthStub(server.channel)
        for service in probed_services("cpu").values():
            state = health.Check(HealthCheckRequest(service=service), timeout=10)
            assert state.status == HealthCheckResponse.SERVING, service
        request = PredictRequest(model="m", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
        assert PredictionStub(server.channel).Predict(request, timeout=10).model == "m"


def test_the_startup_probe_checks_that_every_model_runs_on_a_gpu(start, monkeypatch):
    """The health service gpu exists with a GPU: here the CPU provider counts as one."""
    assert probed_services("gpu")["startupProbe"] == "gpu"
    assert probed_services("gpu")["readinessProbe"] == probed_services("cpu")["readinessProbe"]
    monkeypatch.setattr(neurona_server.app, "CPU", f"not {CPU}")
    with start("gpu") as server:
        state = HealthStub(server.channel).Check(HealthCheckRequest(service="gpu"), timeout=10)
        assert state.status == HealthCheckResponse.SERVING


def test_with_tls_the_probes_use_the_metrics_port(start):
    """The kubelet's gRPC probes do not support TLS."""
    assert probed_services("secure") == {}
    paths = {probe["httpGet"]["path"] for _, probe in manifests.probes(container("secure"))}
    with start("secure") as server:
        connection = http.client.HTTPConnection(server.metrics_address, timeout=10)
        for path in paths:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200, path
            assert response.read()
        connection.close()
