"""L0_metrics: nv_* metrics beside Neurona's own."""

import re

import grpc
import numpy as np
import pytest
from support import triton_models
from support.triton_calls import wait_for

pytestmark = pytest.mark.triton("L0_metrics", cause="nv_* metrics")
COUNTERS = (
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
)


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    for version in (1, 2):
        triton_models.save_add_sub(root / "simple" / str(version) / "model.onnx")
    config = triton_models.add_sub_config(more="version_policy { all {} }")
    triton_models.write_config(root / "simple", config)
    server = serve(root, "--triton-metrics", "true")
    for rows in (1, 3):
        values = np.ones((rows, 16), np.int32)
        server.triton.infer("simple", {f"INPUT{i}": ("INT32", values) for i in range(2)})
    wait_for(lambda: value(server, "nv_inference_request_success") == 2)
    return server


def samples(server, name):
    """Return the value of each series of a metric by its labels."""
    found = {}
    for labels, number in re.findall(rf"(?m)^{name}\{{(.*?)\}} (\S+)$", server.metrics()):
        found[tuple(sorted(re.findall(r'(\w+)="([^"]*)"', labels)))] = float(number)
    return found


def value(server, name, version="2"):
    return sum(
        number
        for labels, number in samples(server, name).items()
        if dict(labels).get("version") == version
    )


@pytest.mark.parametrize("name", COUNTERS)
def test_counters_exist(server, name):
    labels = [dict(labels) for labels in samples(server, name)]
    assert {(label["model"], label["version"]) for label in labels} >= {("simple", "2")}
    assert f"# TYPE {name} counter" in server.metrics()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nv_inference_request_success", 2),
        ("nv_inference_count", 4),
        ("nv_inference_exec_count", 2),
    ],
)
def test_counts(server, name, expected):
    assert value(server, name) == expected


def test_durations(server):
    whole = value(server, "nv_inference_request_duration_us")
    assert whole > 0
    parts = sum(
        value(server, f"nv_inference_{part}_duration_us")
        for part in ("queue", "compute_input", "compute_infer", "compute_output")
    )
    assert 0 < parts <= whole * 1.5


def test_failures_have_reasons(server):
    values = np.ones((1, 15), np.int32)
    with pytest.raises(grpc.RpcError):
        server.triton.infer("simple", {f"INPUT{i}": ("INT32", values) for i in range(2)})
    reasons = {
        dict(labels).get("reason") for labels in samples(server, "nv_inference_request_failure")
    }
    assert reasons <= {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert reasons


def test_pending_requests(server):
    assert value(server, "nv_inference_pending_request_count") == 0
    assert "# TYPE nv_inference_pending_request_count gauge" in server.metrics()


def test_without_the_option(serve, tmp_path):
    triton_models.save_add_sub(tmp_path / "simple" / "1" / "model.onnx")
    assert "nv_inference" not in serve(tmp_path).metrics()
