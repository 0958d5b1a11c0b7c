"""The metrics of one process at one moment, in a form that can be sent and merged."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, samples
from prometheus_client.metrics_core import Metric

Labels = tuple[tuple[str, str], ...]
"""Names and values of a series' labels, sorted by name, without the bound of a bucket."""
SampleKey = tuple[str, str]
"""A sample of a series: its name, and the bound of its bucket ("" if it is no bucket)."""
Series = dict[SampleKey, float]
Exemplar = tuple[str, float, float]
"""Trace id, observed value, and its time in seconds since 1970."""

BOUND_LABEL = "le"


@dataclass
class FamilySnapshot:
    """All series of one metric name."""

    text: str
    kind: str
    """counter, gauge, histogram or summary."""
    series: dict[Labels, Series] = field(default_factory=dict)
    exemplars: dict[tuple[Labels, SampleKey], Exemplar] = field(default_factory=dict)


MetricsSnapshot = dict[str, FamilySnapshot]
"""Families by metric name."""


def take_snapshot(registry: CollectorRegistry) -> MetricsSnapshot:
    """Collect all metrics of a registry."""
    return snapshot_of(registry.collect())


def snapshot_of(metrics: Iterable[Metric]) -> MetricsSnapshot:
    """Convert prometheus_client's metrics to a snapshot."""
    snapshot: MetricsSnapshot = {}
    for metric in metrics:
        family = snapshot.setdefault(metric.name, FamilySnapshot(metric.documentation, metric.type))
        for sample in metric.samples:
            labels = tuple(sorted(item for item in sample.labels.items() if item[0] != BOUND_LABEL))
            key = sample.name, sample.labels.get(BOUND_LABEL, "")
            family.series.setdefault(labels, {})[key] = sample.value
            if (exemplar := sample.exemplar) is not None:
                trace_id = exemplar.labels["trace_id"]
                time = float(exemplar.timestamp or 0.0)
                family.exemplars[labels, key] = trace_id, exemplar.value, time
    return snapshot


def to_metrics(snapshot: MetricsSnapshot) -> Iterable[Metric]:
    """Convert a snapshot to prometheus_client's metrics."""
    for name, family in snapshot.items():
        metric = Metric(name, family.text, family.kind)
        for labels, series in family.series.items():
            for (sample, bound), value in series.items():
                exemplar = family.exemplars.get((labels, (sample, bound)))
                all_labels = dict(labels) | ({BOUND_LABEL: bound} if bound else {})
                metric.add_sample(
                    sample,
                    all_labels,
                    value,
                    exemplar=exemplar
                    and samples.Exemplar({"trace_id": exemplar[0]}, *exemplar[1:]),
                )
        yield metric
