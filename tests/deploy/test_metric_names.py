"""Panels, alerts and runbooks name only metrics that the server exposes."""

import re

import pytest
from prometheus_client import CollectorRegistry
from support import dashboards
from support.fake_nvml import FakeNvml

from neurona_server.processes.multiprocess_collector import MultiprocessCollector
from neurona_server.telemetry.collectors import GpuCollector
from neurona_server.telemetry.metrics import Metrics

SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}

# Exposed for each worker process: see neurona_server.processes.multiprocess_collector.
WORKER_METRICS = {"neurona_process_resident_memory_bytes", "neurona_process_cpu_seconds_total"}


@pytest.fixture(scope="module")
def exposed():
    """Every name of a series that a server can expose, from its registry."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.watch_process()
    metrics.watch_versions(lambda: ())
    metrics.watch_stalls(list)
    families = [
        *registry.collect(),
        *MultiprocessCollector(2).collect(),
        *GpuCollector(FakeNvml()).collect(),
    ]
    names = {
        family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, ("",))
    }
    return names | WORKER_METRICS | dashboards.PROMETHEUS_SERIES | dashboards.recorded_names()


def test_metric_names_are_extracted():
    expr = 'sum(rate(neurona_a_total{job="neurona_b"}[5m])) / neurona:c:d > scalar(up)'
    assert dashboards.metric_names(expr) == {"neurona_a_total", "neurona:c:d", "up"}


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS)
def test_metrics_of_panels_and_annotations_exist(exposed, dashboard):
    every = [*dashboards.panel_queries(), *dashboards.annotation_queries()]
    queries = [query for query in every if query.dashboard == dashboard]
    unknown = {
        (query.panel, name)
        for query in queries
        for name in dashboards.metric_names(query.expr) - exposed
    }
    assert unknown == set()
    assert any(dashboards.metric_names(query.expr) for query in queries)


def test_metrics_of_variables_exist(exposed):
    for dashboard in dashboards.DASHBOARDS.values():
        for variable in dashboard["templating"]["list"]:
            assert dashboards.metric_names(variable["query"]) <= exposed


def test_metrics_of_rules_exist(exposed):
    for rule in dashboards.rules():
        assert dashboards.metric_names(rule["expr"]) <= exposed, rule


def test_metrics_of_runbooks_and_tests_of_rules_exist(exposed):
    pages = [*(dashboards.DEPLOY / "runbooks").glob("*.md")]
    pages += (dashboards.DEPLOY / "prometheus" / "tests").glob("*.yml")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        names = set(re.findall(r"\b(?:neurona|process)_[a-z0-9_]+\b", text))
        assert names <= exposed, page.name


def test_every_metric_is_used_by_a_panel_or_an_alert(exposed):
    exprs = [one.expr for one in dashboards.panel_queries()]
    exprs += [rule["expr"] for rule in dashboards.rules()]
    shown = {name for expr in exprs for name in dashboards.metric_names(expr)}
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in exposed}
    shown = {re.sub("_(total|bucket|sum|count)$", "", name) for name in shown}
    ours = {name for name in families if name.startswith("neurona_")}
    assert ours - shown == set()
