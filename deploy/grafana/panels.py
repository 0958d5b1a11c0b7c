"""Kinds of panels, as Grafana's JSON has them. Where they stand, `board` decides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
HOVER: Json = {"mode": "multi", "sort": "desc"}


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and how its series are called. `name` may have {{labels}}."""

    expr: str
    name: str = ""
    exemplars: bool = False
    """Dots with the trace ids of single requests: for histograms that carry them."""


@dataclass(frozen=True)
class Panel:
    """`text` says what is shown and when to worry: Grafana shows it behind the (i)."""

    title: str
    kind: str
    text: str
    queries: Sequence[Query]
    width: int = 8
    height: int = 8
    defaults: Json = field(default_factory=dict)
    overrides: Sequence[Json] = ()
    options: Json = field(default_factory=dict)
    transformations: Sequence[Json] = ()

    def json(self, number: int, x: int, y: int) -> Json:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(i, query) for i, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": self.defaults, "overrides": list(self.overrides)},
            "options": self.options,
            "transformations": list(self.transformations),
        }

    def _target(self, index: int, query: Query) -> Json:
        # A table and a single value are of now, the others of all the time that is shown.
        now = self.kind == "table"
        target = {
            "refId": "ABCDEFGH"[index],
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.name or "__auto",
            "range": not now,
            "instant": now,
        }
        if now:
            target["format"] = "table"
        if self.kind == "heatmap":
            target["format"] = "heatmap"
        if query.exemplars:
            target["exemplar"] = True
        return target


def steps(*limits: tuple[float | None, str]) -> Json:
    """Colours from these values up; the first one's is None."""
    return {
        "mode": "absolute",
        "steps": [{"value": value, "color": color} for value, color in limits],
    }


def over_time(
    title: str,
    text: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    stacked: bool = False,
    low: float | None = 0,
    high: float | None = None,
    limit: float | None = None,
    logarithmic: bool = False,
    links: Sequence[Json] = (),
) -> Panel:
    """Lines. `limit` draws a dashed one, above which it is time to worry; `links` are where a
    click on a line can lead."""
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    if logarithmic:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
        low = None  # a logarithm has no zero
    defaults: Json = {
        "unit": unit,
        "color": {"mode": "palette-classic"},
        "custom": custom,
    }
    if links:
        defaults["links"] = list(links)
    if low is not None:
        defaults["min"] = low
    if high is not None:
        defaults["max"] = high
    if limit is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = steps((None, "transparent"), (limit, "red"))
    legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    options = {"legend": legend, "tooltip": HOVER}
    return Panel(title, "timeseries", text, queries, width, 8, defaults, options=options)


def number(
    title: str,
    text: str,
    query: Query,
    *,
    unit: str,
    thresholds: Json,
    width: int = 3,
    decimals: int | None = None,
    names: Json | None = None,
) -> Panel:
    """One value of now, in the colour of its threshold. `names` says words for values."""
    defaults: Json = {"unit": unit, "thresholds": thresholds, "color": {"mode": "thresholds"}}
    if decimals is not None:
        defaults["decimals"] = decimals
    if names:
        defaults["mappings"] = [{"type": "value", "options": names}]
    options = {
        "colorMode": "value",
        "graphMode": "none" if names else "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    }
    return Panel(title, "stat", text, [query], width, 4, defaults, options=options)


def spread(title: str, text: str, query: Query, *, unit: str, width: int = 8) -> Panel:
    """The buckets of a histogram over time: darker where more fell."""
    options = {
        "calculate": False,
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "steps": 64,
            "scale": "exponential",
            "exponent": 0.5,
            "reverse": False,
            "fill": "dark-orange",
        },
        "cellGap": 1,
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "filterValues": {"le": 1e-9},
        "yAxis": {"unit": unit, "axisPlacement": "left", "reverse": False},
        "legend": {"show": True},
        "tooltip": {"show": True, "yHistogram": True},
        "exemplars": {"color": "rgba(31, 96, 196, 0.8)"},
    }
    return Panel(title, "heatmap", text, [query], width, 8, {}, options=options)


def states(title: str, text: str, *queries: Query, names: Json, width: int = 12) -> Panel:
    """A bar for each series, coloured by its value over time."""
    defaults = {
        "custom": {"lineWidth": 0, "fillOpacity": 80},
        "color": {"mode": "thresholds"},
        "thresholds": steps((None, "text")),
        "mappings": [{"type": "value", "options": names}],
    }
    options = {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.8,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return Panel(title, "state-timeline", text, queries, width, 8, defaults, options=options)


def table(
    title: str,
    text: str,
    *queries: Query,
    columns: dict[str, str],
    overrides: Sequence[Json] = (),
    width: int = 12,
) -> Panel:
    """Queries joined by their labels, one row each. `columns` are those that are shown, in order,
    and what they are called: labels, or "Value #A" for the first query's value."""
    order = {name: index for index, name in enumerate(columns)}
    only = {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}}
    called = {"renameByName": columns, "indexByName": order, "excludeByName": {}}
    return Panel(
        *(title, "table", text, queries, width, 8),
        defaults={"custom": {"align": "auto", "inspect": False}},
        overrides=overrides,
        options={"showHeader": True, "cellHeight": "sm"},
        transformations=[
            {"id": "merge", "options": {}},
            only,
            {"id": "organize", "options": called},
        ],
    )
