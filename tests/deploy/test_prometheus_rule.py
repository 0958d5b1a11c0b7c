"""The PrometheusRule of the manifests has the rules of deploy/prometheus/rules."""

import runpy

import yaml
from support.manifests import KUBERNETES, of_kind, overlay

SCRIPT = runpy.run_path(str(KUBERNETES / "prometheus_rule.py"), run_name="script")


def test_the_prometheus_rule_is_up_to_date():
    assert SCRIPT["OUTPUT"].read_text(encoding="utf-8") == SCRIPT["prometheus_rule"](), (
        "run make manifests"
    )


def test_it_contains_every_group_of_every_file_unchanged(tmp_path):
    expression = "rate(x[5m])\n/\nrate(y[5m])\n"
    alert = {"alert": "A", "expr": expression, "annotations": {"summary": "{{ $value }} of y"}}
    groups = [{"name": "a", "rules": [alert]}, {"name": "b", "interval": "30s", "rules": []}]
    for name, group in zip(("1.yml", "2.yaml"), groups, strict=True):
        (tmp_path / name).write_text(yaml.safe_dump({"groups": [group]}))
    resource = yaml.safe_load(SCRIPT["prometheus_rule"](tmp_path))
    assert resource["spec"]["groups"] == groups


def test_overlays_with_monitoring_contain_it():
    generated = yaml.safe_load(SCRIPT["OUTPUT"].read_text(encoding="utf-8"))
    (built,) = of_kind(overlay("autoscale"), "PrometheusRule")
    assert built["spec"] == generated["spec"]
