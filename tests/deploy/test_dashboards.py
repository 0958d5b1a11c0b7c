"""The dashboards are up to date, are valid for Grafana, and have valid queries and links."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from support import dashboards

NAMES = sorted(dashboards.DASHBOARDS)
GRAFANA = dashboards.DEPLOY / "grafana"

PROMETHEUS_OPTIONS = {"step", "titleFormat", "textFormat"}
"""Options of annotations of the Prometheus data source, which Grafana's types do not have."""


def test_the_dashboards_are_up_to_date():
    command = [sys.executable, GRAFANA, "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_check_reports_an_outdated_dashboard(tmp_path):
    copy = shutil.copytree(GRAFANA, tmp_path / "grafana")
    (copy / "dashboards" / "overview.json").write_text("{}")
    command = [sys.executable, copy]
    done = subprocess.run([*command, "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "overview.json" in done.stderr
    subprocess.run(command, check=True)
    written = (copy / "dashboards" / "overview.json").read_text(encoding="utf-8")
    assert json.loads(written) == dashboards.DASHBOARDS["overview"]


def differences(written, parsed, path=""):
    """Yields the paths of what is missing or different in `parsed`."""
    if isinstance(written, dict):
        for key, value in written.items():
            if key not in parsed:
                yield f"{path}.{key}"
            else:
                yield from differences(value, parsed[key], f"{path}.{key}")
    elif isinstance(written, list):
        for index, (one, other) in enumerate(zip(written, parsed, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif written != parsed:
        yield f"{path}: {written!r} is {parsed!r}"


def parse_with_grafanas_types(dashboard):
    plugins.register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_types_know_every_field(name):
    dashboard = dashboards.DASHBOARDS[name]
    unknown = list(differences(dashboard, parse_with_grafanas_types(dashboard)))
    assert [one for one in unknown if one.rpartition(".")[2] not in PROMETHEUS_OPTIONS] == []


def test_grafanas_types_reveal_a_misspelled_option():
    dashboard = json.loads(json.dumps(dashboards.DASHBOARDS["overview"]))
    dashboard["panels"][1]["options"]["colourMode"] = "value"
    dashboard["panels"][1]["targets"][0]["legendFromat"] = "x"
    unknown = list(differences(dashboard, parse_with_grafanas_types(dashboard)))
    assert {".panels[1].options.colourMode", ".panels[1].targets[0].legendFromat"} <= set(unknown)


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap(name):
    cells = Counter()
    for panel in dashboards.DASHBOARDS[name]["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        cells.update(
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        )
    assert max(cells.values()) == 1
    ids = [panel["id"] for panel in dashboards.DASHBOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_a_unique_title_a_description_and_a_unit(name):
    for panel in dashboards.panels(name):
        assert len(panel["description"]) > 20, panel["title"]
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"].get("yAxis")
        assert unit or panel["type"] in ("table", "state-timeline"), panel["title"]
    titles = [panel["title"] for panel in dashboards.panels(name)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_defined_and_used(name):
    dashboard = dashboards.DASHBOARDS[name]
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(dashboard["panels"])))
    assert used <= defined
    assert defined - {"datasource"} <= used


def test_links_name_existing_dashboards():
    uids = {dashboard["uid"] for dashboard in dashboards.DASHBOARDS.values()}
    text = json.dumps(dashboards.DASHBOARDS)
    assert set(re.findall(r'"/d/([a-z-]+)', text)) == uids


def test_the_dashboards_have_the_gpu_panels():
    names = ("process", "model")
    titles = {panel["title"] for name in names for panel in dashboards.panels(name)}
    assert titles >= dashboards.GPU_PANELS


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")
def test_every_query_is_valid_promql(tmp_path):
    values = {"job": "j", "instance": "i", "model": "m", "version": "1"}
    queries = [*dashboards.panel_queries(), *dashboards.annotation_queries()]
    rules = [
        {"record": f"query:{index}", "expr": dashboards.substitute_variables(one.expr, values)}
        for index, one in enumerate(queries)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    command = ["promtool", "check", "rules", path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


def test_provisioning_configures_prometheus_and_the_folder_of_dashboards():
    provisioning = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "neurona.yml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
