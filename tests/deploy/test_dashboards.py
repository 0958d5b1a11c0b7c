"""The dashboards are fresh, are what Grafana knows, and ask for what there is."""

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

BOARDS = sorted(dashboards.BOARDS)
GRAFANA = dashboards.DEPLOY / "grafana"

# Options of annotations that are the Prometheus data source's own: Grafana's types have none.
OF_ANNOTATIONS = {"step", "titleFormat", "textFormat"}


def test_the_files_are_what_the_program_writes():
    command = [sys.executable, GRAFANA / "write.py", "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_not_what_the_program_writes_is_noticed(tmp_path):
    copy = shutil.copytree(GRAFANA, tmp_path / "grafana")
    (copy / "dashboards" / "overview.json").write_text("{}")
    command = [sys.executable, copy / "write.py"]
    done = subprocess.run([*command, "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "overview.json" in done.stderr
    subprocess.run(command, check=True)
    written = (copy / "dashboards" / "overview.json").read_text(encoding="utf-8")
    assert json.loads(written) == dashboards.BOARDS["overview"]


def lost(ours, grafanas, place=""):
    """What is not there any more, or not the same, once Grafana's own types have read it."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if key not in grafanas:
                yield f"{place}.{key}"
            else:
                yield from lost(value, grafanas[key], f"{place}.{key}")
    elif isinstance(ours, list):
        for index, (one, other) in enumerate(zip(ours, grafanas, strict=True)):
            yield from lost(one, other, f"{place}[{index}]")
    elif ours != grafanas:
        yield f"{place}: {ours!r} is {grafanas!r}"


def read_by_grafanas_types(board):
    plugins.register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_own_types_know_all_of_it(name):
    board = dashboards.BOARDS[name]
    unknown = list(lost(board, read_by_grafanas_types(board)))
    assert [one for one in unknown if one.rpartition(".")[2] not in OF_ANNOTATIONS] == []


def test_a_misspelt_option_is_noticed():
    board = json.loads(json.dumps(dashboards.BOARDS["overview"]))
    board["panels"][1]["options"]["colourMode"] = "value"
    board["panels"][1]["targets"][0]["legendFromat"] = "x"
    unknown = list(lost(board, read_by_grafanas_types(board)))
    assert {".panels[1].options.colourMode", ".panels[1].targets[0].legendFromat"} <= set(unknown)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_stand_beside_each_other(name):
    taken = Counter()
    for panel in dashboards.BOARDS[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken.update(
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        )
    assert max(taken.values()) == 1
    ids = [panel["id"] for panel in dashboards.BOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_it_is(name):
    for panel in dashboards.panels(name):
        assert len(panel["description"]) > 20, panel["title"]
        described = panel["fieldConfig"]["defaults"].get("unit") or panel["options"].get("yAxis")
        assert described or panel["type"] in ("table", "state-timeline"), panel["title"]
    titles = [panel["title"] for panel in dashboards.panels(name)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", BOARDS)
def test_variables_that_are_used_are_there(name):
    board = dashboards.BOARDS[name]
    there = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(board["panels"])))
    assert used <= there
    assert there - {"datasource"} <= used


def test_links_lead_to_dashboards():
    uids = {board["uid"] for board in dashboards.BOARDS.values()}
    text = json.dumps(dashboards.BOARDS)
    assert set(re.findall(r'"/d/([a-z-]+)', text)) == uids


def test_panels_that_need_a_gpu_are_there():
    titles = {panel["title"] for panel in dashboards.panels("process")}
    assert titles >= dashboards.NEED_A_GPU


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)")
def test_every_query_is_promql(tmp_path):
    values = {"job": "j", "instance": "i", "model": "m", "version": "1"}
    asked = [*dashboards.queries(), *dashboards.annotations()]
    rules = [
        {"record": f"query:{index}", "expr": dashboards.filled(one.expr, values)}
        for index, one in enumerate(asked)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    command = ["promtool", "check", "rules", path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout


def test_provisioning_names_what_is_there():
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
