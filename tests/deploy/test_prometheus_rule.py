"""The rules of deploy/prometheus/rules, as Kubernetes gets them."""

import runpy

import yaml
from support.manifests import KUBERNETES, of_kind, overlay

SCRIPT = runpy.run_path(str(KUBERNETES / "prometheus_rule.py"), run_name="script")


def test_it_is_made_of_the_rules_as_they_are():
    assert SCRIPT["WRITTEN"].read_text(encoding="utf-8") == SCRIPT["prometheus_rule"](), (
        "run make manifests"
    )


def test_every_group_of_every_file_is_in_it_unchanged(tmp_path):
    expression = "rate(x[5m])\n/\nrate(y[5m])\n"
    alert = {"alert": "A", "expr": expression, "annotations": {"summary": "{{ $value }} of y"}}
    groups = [{"name": "a", "rules": [alert]}, {"name": "b", "interval": "30s", "rules": []}]
    for name, group in zip(("1.yml", "2.yaml"), groups, strict=True):
        (tmp_path / name).write_text(yaml.safe_dump({"groups": [group]}))
    made = yaml.safe_load(SCRIPT["prometheus_rule"](tmp_path))
    assert made["spec"]["groups"] == groups


def test_overlays_with_monitoring_have_it():
    written = yaml.safe_load(SCRIPT["WRITTEN"].read_text(encoding="utf-8"))
    (built,) = of_kind(overlay("autoscale"), "PrometheusRule")
    assert built["spec"] == written["spec"]
