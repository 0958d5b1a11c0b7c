"""Writes the rules of deploy/prometheus/rules as a PrometheusRule, for Prometheus Operator.

    python deploy/kubernetes/prometheus_rule.py

Kustomize cannot include a file in a resource, so the generated resource is committed;
tests/deploy/test_rules.py fails if it is out of date.
"""

from pathlib import Path

import yaml

RULES = Path(__file__).parents[1] / "prometheus" / "rules"
OUTPUT = Path(__file__).parent / "components" / "monitoring" / "prometheus-rule.yaml"
HEADER = "# Generated from deploy/prometheus/rules by `make manifests`. Do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Keeps expressions of several lines on several lines."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def prometheus_rule(rules: Path = RULES) -> str:
    """Returns the resource as YAML, with the groups of all files in the order of their names."""
    paths = sorted(path for path in rules.glob("*.y*ml") if path.is_file())
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "neurona", "namespace": "neurona"},
        "spec": {"groups": [group for document in documents for group in document["groups"]]},
    }
    return HEADER + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=100)


if __name__ == "__main__":
    OUTPUT.write_text(prometheus_rule(), encoding="utf-8")
