"""Triton's metrics have the counts of the server's own, on both pages."""

import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.fake_nvml import FakeNvml

from neurona_server.telemetry.collectors import GpuCollector
from neurona_server.telemetry.metrics import OUTCOMES, Metrics
from neurona_server.telemetry.triton_metrics import REASONS
from neurona_server.web.endpoints import render_metrics


class Queue:
    rows = nbytes = max_rows = max_batch_rows = 8
    request_count = 3

    def oldest_age(self):
        return 0.0


class CostModel:
    batch_sizes = ()


@pytest.fixture
def metrics():
    metrics = Metrics(CollectorRegistry(auto_describe=True))
    metrics.watch_process(GpuCollector(FakeNvml()), triton_metrics=True)
    model = metrics.for_version("m", 7)
    model.watch_batching(Queue(), CostModel())
    for seconds in (0.25, 0.5):
        model.record_request("ok", seconds)
    model.record_queue_waits([0.125, 0.125])
    model.record_run(6, 2, 2, (0.0625, 0.25, 0.03125), 0.0)
    for number, outcome in enumerate(OUTCOMES[1:], 1):
        for _ in range(number):
            model.record_request(outcome, 0.5)
    return metrics


def page_of(metrics, *, open_metrics=False):
    content, _ = render_metrics(metrics.registry, open_metrics=open_metrics, compressed=False)
    return content.decode()


def values(page):
    return dict(re.findall(r"(?m)^(nv_\S+) (\S+)$", page))


VERSION = '{model="m",version="7"}'
EXPECTED = {
    f"nv_inference_request_success{VERSION}": 2,
    f"nv_inference_count{VERSION}": 6,
    f"nv_inference_exec_count{VERSION}": 1,
    f"nv_inference_request_duration_us{VERSION}": 750_000,
    f"nv_inference_queue_duration_us{VERSION}": 250_000,
    f"nv_inference_compute_input_duration_us{VERSION}": 125_000,
    f"nv_inference_compute_infer_duration_us{VERSION}": 500_000,
    f"nv_inference_compute_output_duration_us{VERSION}": 62_500,
    f"nv_inference_pending_request_count{VERSION}": 3,
    'nv_inference_request_failure{model="m",reason="REJECTED",version="7"}': 3,
    'nv_inference_request_failure{model="m",reason="CANCELED",version="7"}': 3,
    'nv_inference_request_failure{model="m",reason="OTHER",version="7"}': 4,
    'nv_inference_request_failure{model="m",reason="BACKEND",version="7"}': 5,
    'nv_gpu_utilization{gpu_uuid="GPU-0f00"}': 0.37,
    'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1f00"}': 3 << 30,
}


@pytest.mark.parametrize("open_metrics", [False, True])
def test_values(metrics, open_metrics):
    samples = values(page_of(metrics, open_metrics=open_metrics))
    assert {name: float(samples[name]) for name in EXPECTED} == EXPECTED


def test_types(metrics):
    page = page_of(metrics)
    for name in {re.split("[{ ]", line)[0] for line in values(page)}:
        gauge = name.startswith("nv_gpu") or "pending" in name
        assert f"# TYPE {name} {'gauge' if gauge else 'counter'}\n" in page
    # OpenMetrics has no counters without a suffix; the page must be valid nevertheless.
    page = page_of(metrics, open_metrics=True)
    families = {family.name: family.type for family in text_string_to_metric_families(page)}
    assert families["nv_inference_count"] == "unknown"
    assert families["neurona_requests"] == "counter"


def test_some_can_be_selected(metrics):
    names = frozenset(["nv_inference_count", "nv_gpu_utilization"])
    selected = metrics.registry.restricted_registry(names)
    content, _ = render_metrics(selected, open_metrics=False, compressed=False)
    assert {name.partition("{")[0] for name in values(content.decode())} == names
    assert b"# TYPE nv_inference_count counter\n" in content


def test_every_failure_has_a_reason():
    assert set(REASONS) == {*OUTCOMES} - {"ok"}


def test_series_end_with_their_version(metrics):
    metrics.for_version("m", 7).release()  # a second reference
    assert VERSION in page_of(metrics)
    metrics.release_version("m", "7")
    assert "nv_inference_count{" not in page_of(metrics)
