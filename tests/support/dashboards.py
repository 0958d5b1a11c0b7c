"""The PromQL queries of the dashboards and the rules in deploy/, for the tests that check them."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}

GPU_PANELS = {
    *("GPU utilization", "GPU memory", "GPU power", "GPU batches in progress", "Lost GPUs"),
    *("Batches by GPU", "Run time by GPU", "How batches run on a GPU"),
}
"""Panels that are empty on a machine without a GPU."""

METRIC = re.compile(r"\b(?:(?:neurona|process|python|scrape)_|neurona:)[a-z0-9_:]+\b|\bup\b")
PROMETHEUS_SERIES = {"up", "scrape_duration_seconds"}
"""Series that Prometheus adds for each target."""


class PanelQuery(NamedTuple):
    """A query of a panel or an annotation; `panel` is its title or name."""

    dashboard: str
    panel: str
    expr: str


def panels(dashboard: str) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[dashboard]["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[PanelQuery]:
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield PanelQuery(dashboard, panel["title"], target["expr"])


def annotation_queries() -> Iterator[PanelQuery]:
    for dashboard, content in DASHBOARDS.items():
        for annotation in content["annotations"]["list"]:
            yield PanelQuery(dashboard, annotation["name"], annotation["expr"])


def substitute_variables(expr: str, values: Mapping[str, str], interval: str = "1m") -> str:
    """Replaces the dashboard variables in a query by their values, as Grafana does."""
    expr = expr.replace("$__rate_interval", interval)
    for name, value in values.items():
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr, expr
    return expr


def metric_names(expr: str) -> set[str]:
    """Names of the metrics that an expression reads, without its labels and their values."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', "", expr)))


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def alert_names() -> list[str]:
    return [rule["alert"] for rule in rules() if "alert" in rule]


def recorded_names() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}
