"""What the dashboards and the rules in deploy/ ask of Prometheus."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
BOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}

NEED_A_GPU = {"GPU in use", "GPU memory", "GPU power"}
"""Panels that are empty where there is none."""

METRIC = re.compile(r"\b(?:(?:neurona|process|python|scrape)_|neurona:)[a-z0-9_:]+\b|\bup\b")
OF_PROMETHEUS = {"up", "scrape_duration_seconds"}
"""Series that it has of each target by itself."""


class ParsedRequest(NamedTuple):
    board: str
    panel: str
    expr: str


def panels(board: str) -> list[dict[str, Any]]:
    return [panel for panel in BOARDS[board]["panels"] if panel["type"] != "row"]


def queries() -> Iterator[ParsedRequest]:
    for board in BOARDS:
        for panel in panels(board):
            for target in panel["targets"]:
                yield ParsedRequest(board, panel["title"], target["expr"])


def annotations() -> Iterator[ParsedRequest]:
    for board, content in BOARDS.items():
        for one in content["annotations"]["list"]:
            yield ParsedRequest(board, one["name"], one["expr"])


def filled(expr: str, values: Mapping[str, str], interval: str = "1m") -> str:
    """As Grafana sends it, with the values of variables in the place of their names."""
    expr = expr.replace("$__rate_interval", interval)
    for name, value in values.items():
        expr = expr.replace(f"${name}", value)
    assert "$" not in expr, expr
    return expr


def names(expr: str) -> set[str]:
    """The metrics that an expression reads. Words in quotes are none, nor are labels."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', "", expr)))


def rules() -> Iterator[dict[str, Any]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def alerts() -> list[str]:
    return [rule["alert"] for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}
