"""What the dashboards have in common: the grid, variables, links and annotations."""

from collections.abc import Sequence
from dataclasses import dataclass

from panels import DATASOURCE, Json, Panel

WIDTH = 24
"""Columns of Grafana's grid."""

PROCESSES = 'job=~"$job", instance=~"$instance"'
MODEL = f'{PROCESSES}, model=~"$model"'
VERSION = f'{MODEL}, version=~"$version"'
"""What queries select: the processes that are chosen, of these the model, of it the versions."""

EVERY = "$__rate_interval"
UIDS = {
    "Overview": "neurona-overview",
    "One model": "neurona-model",
    "One process": "neurona-process",
}


@dataclass(frozen=True)
class Row:
    """Panels below a heading, from the left, as many beside each other as fit."""

    title: str
    panels: Sequence[Panel]


def dashboard(title: str, text: str, variables: Sequence[Json], rows: Sequence[Row]) -> Json:
    return {
        "uid": UIDS[title],
        "title": f"Neurona / {title}",
        "description": text,
        "tags": ["neurona"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the time under the mouse is shown in all panels
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "links": [_link(other) for other in UIDS if other != title],
        "templating": {"list": list(variables)},
        "annotations": {"list": _annotations()},
        "panels": _placed(rows),
    }


def _placed(rows: Sequence[Row]) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append(_heading(len(placed) + 1, row.title, y))
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            placed.append(panel.json(len(placed) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return placed


def _heading(number: int, title: str, y: int) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        "panels": [],
    }


def _link(title: str) -> Json:
    """To another dashboard, with the same time and the same choice."""
    return {
        "type": "link",
        "title": title,
        "url": f"/d/{UIDS[title]}",
        "tooltip": f"Neurona / {title}",
        "icon": "dashboard",
        "tags": [],
        "asDropdown": False,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }


def to_model(name: str = "${__field.labels.model}") -> Json:
    """From a panel to the dashboard of the model that was clicked on."""
    chosen = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
    url = f"/d/{UIDS['One model']}?var-model={name}&{chosen}"
    return {"title": "This model", "url": url}


def _annotations() -> list[Json]:
    """What happened: it explains most steps in the lines."""
    started = f"(time() - process_start_time_seconds{{{PROCESSES}}}) < 60"
    ready = f'neurona_version_state{{{PROCESSES}, state="ready"}} == 1'
    label = f"neurona_version_label{{{PROCESSES}}}"
    return [
        _annotation("Restarts", "red", started, "{{instance}} has started"),
        _annotation(
            *("Versions", "blue", f"{ready} unless neurona_version_state offset 1m"),
            "{{model}} version {{version}} serves",
        ),
        _annotation(
            *("Labels", "purple", f"{label} unless neurona_version_label offset 1m"),
            "{{label}} of {{model}} is version {{version}}",
        ),
    ]


def _annotation(name: str, color: str, expr: str, text: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "expr": expr,
        "step": "15s",
        "titleFormat": text,
        "textFormat": "",
    }
