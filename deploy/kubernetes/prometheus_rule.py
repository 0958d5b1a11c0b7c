"""Writes the rules of deploy/prometheus/rules as a PrometheusRule, for Prometheus Operator.

    python deploy/kubernetes/prometheus_rule.py

Kustomize cannot put a file into a resource, so what it makes of the rules is committed;
tests/deploy/test_prometheus_rule.py fails when one of them has changed alone.
"""

from pathlib import Path

import yaml

RULES = Path(__file__).parents[1] / "prometheus" / "rules"
WRITTEN = Path(__file__).parent / "components" / "monitoring" / "prometheus-rule.yaml"
HEADER = "# Made of deploy/prometheus/rules by `make manifests`; not to be edited.\n"


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines stay so."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def prometheus_rule(rules: Path = RULES) -> str:
    """The resource as YAML, with the groups of all files in the order of their names."""
    files = sorted(path for path in rules.glob("*.y*ml") if path.is_file())
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "neurona", "namespace": "neurona"},
        "spec": {"groups": [group for document in documents for group in document["groups"]]},
    }
    return HEADER + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=100)


if __name__ == "__main__":
    WRITTEN.write_text(prometheus_rule(), encoding="utf-8")
