"""The rules of Prometheus are valid, also as a PrometheusRule; alerts have tests and runbooks."""

import re
import runpy
import shutil
import subprocess

import pytest
import yaml
from support import dashboards, prometheus_server
from support.manifests import KUBERNETES, of_kind, overlay

PROMETHEUS = dashboards.DEPLOY / "prometheus"
RUNBOOKS = dashboards.DEPLOY / "runbooks"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTS = dashboards.alert_names()
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Fix", "When to silence"]
GENERATOR = runpy.run_path(str(KUBERNETES / "prometheus_rule.py"), run_name="script")

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian: prometheus)"
)


def promtool(*arguments):
    command = ["promtool", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@needs_promtool
def test_the_configuration_and_the_rules_are_valid():
    status, printed = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert status == 0, printed
    assert f"{len(dashboards.RULES)} rule files found" in printed


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_clear(path):
    status, printed = promtool("test", "rules", path)
    assert status == 0, printed


def test_every_alert_is_tested_firing_and_clearing():
    fired, cleared = set(), set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            steps = test.get("promql_expr_test", [])
            samples = [sample for step in steps for sample in step.get("exp_samples", [])]
            names = re.findall(r'alertname="(\w+)"', str(samples))
            fired.update(names)
            if steps and not steps[-1].get("exp_samples"):  # no alert fires at the end
                cleared.update(names)
    assert fired == set(ALERTS)
    assert cleared == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_severity_texts_and_a_runbook(name):
    (alert,) = [rule for rule in dashboards.rules() if rule.get("alert") == name]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    annotations = alert["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"].endswith(f"/{name}.md")
    page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert re.findall(r"(?m)^## (.*)$", page) == HEADINGS


def test_every_runbook_belongs_to_an_alert():
    assert sorted(path.stem for path in RUNBOOKS.glob("*.md")) == sorted(ALERTS)


@needs_promtool
@pytest.mark.parametrize("name", ALERTS)
def test_queries_of_a_runbook_are_valid_promql(name, tmp_path):
    page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```promql\n(.*?)^```", page)
    queries = [query for block in blocks for query in block.strip().split("\n")]
    assert queries
    path = tmp_path / "queries.yml"
    rules = [{"record": f"query:{index}", "expr": expr} for index, expr in enumerate(queries)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    status, printed = promtool("check", "rules", path)
    assert status == 0, printed


@needs_promtool
@pytest.mark.parametrize("name", ["NeuronaErrorBudgetBurnsFast", "NeuronaErrorBudgetBurnsSlowly"])
def test_a_runbook_query_finds_a_moved_label(name, tmp_path):
    page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    (query,) = re.findall(r"(?m)^.*neurona_version_label.*$", page)
    series = 'neurona_version_label{{model="MODEL", version="{}", label="{}"}}'.format
    points = {
        series(1, "stable"): "1x70 stale",
        series(2, "stable"): "_x70 1x20",
        series(1, "old"): "1x90",
    }
    inputs = [{"series": name, "values": values} for name, values in points.items()]
    step = {
        "expr": query,
        "eval_time": "80m",
        "exp_samples": [{"labels": series(2, "stable"), "value": 1}],
    }
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": [step]}
    path = tmp_path / "labels.yml"
    path.write_text(yaml.safe_dump({"tests": [test]}))
    status, printed = promtool("test", "rules", path)
    assert status == 0, printed


@pytest.mark.parametrize("name", ALERTS)
def test_shell_commands_of_a_runbook_fit_the_manifests_and_compose(name):
    page = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    compose = yaml.safe_load((RUNBOOKS.parent / "compose.yaml").read_text())
    for block in re.findall(r"(?ms)^```sh\n(.*?)^```", page):
        command = ["sh", "-n"]
        assert subprocess.run(command, check=False, input=block, text=True).returncode == 0
        for words in map(str.split, block.strip().split("\n")):
            if words[0] == "kubectl":
                assert words[1:3] == ["-n", "neurona"]
                # With a selector, kubectl shows only the last ten lines of each pod by default.
                assert {"logs", "-l"} - {*words} or "--tail" in words
            if words[:2] == ["docker", "compose"]:
                assert {*words} & {*compose["services"]}


def test_scaled_rules_have_the_same_expressions():
    """The alerts that `make test-prometheus` provokes have the expressions of deploy/."""

    def without_ranges(rule):
        return re.sub(r"\[\w+\]", "[]", rule["expr"])

    for rule in dashboards.rules():
        copy = prometheus_server.scaled(rule)
        assert copy.get("alert") == rule.get("alert")
        if rule.get("record", "").startswith("neurona:objective:"):
            assert re.fullmatch(r"vector\([\d.e-]+\)", copy["expr"])
        else:
            assert without_ranges(copy) == without_ranges(rule)
    hour = prometheus_server.scaled(
        {"record": "x", "expr": "rate(y[3h]) + rate(z[1d])", "for": "12m"}
    )
    assert hour == {"record": "x", "expr": "rate(y[15000ms]) + rate(z[120000ms])", "for": "1000ms"}


def test_the_prometheus_rule_is_up_to_date():
    assert GENERATOR["OUTPUT"].read_text(encoding="utf-8") == GENERATOR["prometheus_rule"](), (
        "run make manifests"
    )


def test_the_prometheus_rule_contains_every_group_unchanged(tmp_path):
    expression = "rate(x[5m])\n/\nrate(y[5m])\n"
    alert = {"alert": "A", "expr": expression, "annotations": {"summary": "{{ $value }} of y"}}
    groups = [{"name": "a", "rules": [alert]}, {"name": "b", "interval": "30s", "rules": []}]
    for name, group in zip(("1.yml", "2.yaml"), groups, strict=True):
        (tmp_path / name).write_text(yaml.safe_dump({"groups": [group]}))
    resource = yaml.safe_load(GENERATOR["prometheus_rule"](tmp_path))
    assert resource["spec"]["groups"] == groups


def test_overlays_with_monitoring_contain_the_prometheus_rule():
    generated = yaml.safe_load(GENERATOR["OUTPUT"].read_text(encoding="utf-8"))
    (built,) = of_kind(overlay("autoscale"), "PrometheusRule")
    assert built["spec"] == generated["spec"]
