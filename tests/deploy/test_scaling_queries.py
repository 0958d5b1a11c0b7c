"""The queries of both autoscalers are equal, and promtool evaluates them."""

import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client import CollectorRegistry
from support.manifests import KUBERNETES, of_kind, overlay

from neurona_server.telemetry.metrics import Metrics

LABELS = 'job="neurona",namespace="neurona"'


def keda_queries():
    (scaled,) = of_kind(overlay("autoscale"), "ScaledObject")
    queries = [one["metadata"]["query"] for one in scaled["spec"]["triggers"]]
    return [" ".join(query.split()) for query in queries]


def adapter_rules():
    text = (KUBERNETES / "components" / "hpa" / "prometheus-adapter.yaml").read_text()
    return yaml.safe_load(text)["rules"]["external"]


def test_both_autoscalers_have_the_same_queries_and_thresholds():
    templates = [one["metricsQuery"] for one in adapter_rules()]
    queries = [query.replace("<<.LabelMatchers>>", 'namespace="neurona"') for query in templates]
    assert [" ".join(query.split()) for query in queries] == keda_queries()
    (scaled,) = of_kind(overlay("autoscale"), "ScaledObject")
    (scaler,) = of_kind(overlay("autoscale-hpa"), "HorizontalPodAutoscaler")
    metrics = [one["external"] for one in scaler["spec"]["metrics"]]
    assert [one["metric"]["name"] for one in metrics] == [r["name"]["as"] for r in adapter_rules()]
    thresholds = [float(one["metadata"]["threshold"]) for one in scaled["spec"]["triggers"]]
    quantities = [one["target"]["value"] for one in metrics]  # in Kubernetes' format
    targets = [float(q.removesuffix("m")) / (1000 if q.endswith("m") else 1) for q in quantities]
    assert targets == thresholds
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert scaler["spec"]["behavior"] == behavior
    assert scaler["spec"]["minReplicas"] == scaled["spec"]["minReplicaCount"]
    assert scaler["spec"]["maxReplicas"] == scaled["spec"]["maxReplicaCount"]


def test_the_server_exposes_the_metrics_of_the_queries():
    families = Metrics(CollectorRegistry()).registry.collect()
    types = {family.name: family.type for family in families}
    names = re.findall(r"neurona_[a-z_]+", " ".join(keda_queries()))
    assert len(set(names)) == 5
    for name in names:
        family, kind = re.fullmatch(r"(\w+?)_(sum|count|total)", name).groups()
        assert types[family] == ("counter" if kind == "total" else "histogram"), name


def series(name, labels, steps):
    return {"series": f"{name}{{{LABELS},{labels}}}", "values": f"0+{steps}x10"}


DURATIONS = [
    f"{stage}_duration_seconds_{kind}" for stage in ("queue", "run") for kind in ("sum", "count")
]
SLOW, IDLE = 'model="slow",pod="a"', 'model="idle",pod="b"'
CASES = {
    # Requests of one model wait 50 ms each for runs of 10 ms; the other gets no requests.
    "the model that waits longest": (
        [
            series("neurona_queue_duration_seconds_sum", SLOW, 3),
            series("neurona_queue_duration_seconds_count", SLOW, 60),
            series("neurona_run_duration_seconds_sum", SLOW, 0.1),
            series("neurona_run_duration_seconds_count", SLOW, 10),
            *(series(f"neurona_{name}", IDLE, 0) for name in DURATIONS),
            series("neurona_requests_total", 'outcome="ok",pod="a"', 54),
            series("neurona_requests_total", 'outcome="rejected",pod="a"', 6),
        ],
        (5, 0.1),
    ),
    "no calls": (
        [
            *(series(f"neurona_{name}", IDLE, 0) for name in DURATIONS),
            series("neurona_requests_total", 'outcome="rejected",pod="b"', 0),
        ],
        (0, 0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_prometheus_evaluates_the_queries(case, tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    input_series, expected = CASES[case]
    tests = {
        "rule_files": [],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": input_series,
                "promql_expr_test": [
                    {"expr": query, "eval_time": "2m", "exp_samples": [{"value": value}]}
                    for query, value in zip(keda_queries(), expected, strict=True)
                ],
            }
        ],
    }
    for test in tests["tests"][0]["promql_expr_test"]:
        test["exp_samples"][0]["labels"] = "{}"
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "tests.yaml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
