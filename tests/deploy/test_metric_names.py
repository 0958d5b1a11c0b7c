"""Panels, alerts and runbooks name metrics that the server really has."""

import re

import pytest
from prometheus_client import CollectorRegistry
from support import dashboards
from support.fake_nvml import SmallNvml

from neurona_server.processes.collector import MultiprocessCollector
from neurona_server.telemetry.collectors import GpuCollector
from neurona_server.telemetry.metrics import Metrics

SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}

# What each of several processes has of these for itself: see merged_metrics.
OF_WORKERS = {"neurona_process_resident_memory_bytes", "neurona_process_cpu_seconds_total"}


@pytest.fixture(scope="module")
def there():
    """Every name of a series that a server can have, by its own registry."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.watch_process()
    metrics.watch_versions(lambda: ())
    families = [
        *registry.collect(),
        *MultiprocessCollector(2).collect(),
        *GpuCollector(SmallNvml()).collect(),
    ]
    names = {
        family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, ("",))
    }
    return names | OF_WORKERS | dashboards.OF_PROMETHEUS | dashboards.recorded()


def test_names_are_found():
    expr = 'sum(rate(neurona_a_total{job="neurona_b"}[5m])) / neurona:c:d > scalar(up)'
    assert dashboards.names(expr) == {"neurona_a_total", "neurona:c:d", "up"}


@pytest.mark.parametrize("board", dashboards.BOARDS)
def test_of_panels_and_annotations(there, board):
    asked = [*dashboards.queries(), *dashboards.annotations()]
    unknown = {
        (one.panel, name)
        for one in asked
        if one.board == board
        for name in dashboards.names(one.expr) - there
    }
    assert unknown == set()
    assert any(dashboards.names(one.expr) for one in asked if one.board == board)


def test_of_choices_at_the_top(there):
    for board in dashboards.BOARDS.values():
        for variable in board["templating"]["list"]:
            assert dashboards.names(variable["query"]) <= there


def test_of_rules(there):
    for rule in dashboards.rules():
        assert dashboards.names(rule["expr"]) <= there, rule


def test_of_runbooks_and_tests_of_rules(there):
    pages = [*(dashboards.DEPLOY / "runbooks").glob("*.md")]
    pages += (dashboards.DEPLOY / "prometheus" / "tests").glob("*.yml")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"\b(?:neurona|process)_[a-z0-9_]+\b", text))
        assert named <= there, page.name


def test_every_metric_of_ours_is_shown_somewhere(there):
    """In a panel, or in an alert: one that nobody looks at need not be there."""
    exprs = [one.expr for one in dashboards.queries()]
    exprs += [rule["expr"] for rule in dashboards.rules()]
    shown = {name for expr in exprs for name in dashboards.names(expr)}
    families = {re.sub("_(total|bucket|sum|count)$", "", name) for name in there}
    shown = {re.sub("_(total|bucket|sum|count)$", "", name) for name in shown}
    ours = {name for name in families if name.startswith("neurona_")}
    assert ours - shown == set()
