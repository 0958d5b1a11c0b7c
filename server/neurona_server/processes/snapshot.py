"""What a process has to say about itself, in a form that can be sent and added up."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, samples
from prometheus_client.metrics_core import Metric

Labels = tuple[tuple[str, str], ...]
"""Of a series: name and value of each, in the order of the names. A bucket's bound is none."""
Point = tuple[str, str]
"""Of a series: the sample's name, and a bucket's bound ("" for what is no bucket)."""
Series = dict[Point, float]
Exemplar = tuple[str, float, float]
"""The id of a trace, the value that it stands for, and when that was, seconds since 1970."""

BOUND = "le"


@dataclass
class FamilySnapshot:
    """All series of one name."""

    text: str
    kind: str
    """counter, gauge or histogram."""
    series: dict[Labels, Series] = field(default_factory=dict)
    exemplars: dict[tuple[Labels, Point], Exemplar] = field(default_factory=dict)


MetricsSnapshot = dict[str, FamilySnapshot]


def read(registry: CollectorRegistry) -> MetricsSnapshot:
    """What the registry has at this moment."""
    page: MetricsSnapshot = {}
    for metric in registry.collect():
        family = page.setdefault(metric.name, FamilySnapshot(metric.documentation, metric.type))
        for sample in metric.samples:
            labels = tuple(sorted(item for item in sample.labels.items() if item[0] != BOUND))
            point = sample.name, sample.labels.get(BOUND, "")
            family.series.setdefault(labels, {})[point] = sample.value
            if (one := sample.exemplar) is not None:
                shown = one.labels["trace_id"], one.value, float(one.timestamp or 0.0)
                family.exemplars[labels, point] = shown
    return page


def encode(page: MetricsSnapshot) -> bytes:
    """As JSON: what is not finite is written as Python's json does, and read by it."""
    families = [
        [
            name,
            family.text,
            family.kind,
            [[labels, [[*p, v] for p, v in s.items()]] for labels, s in family.series.items()],
            [[*place, exemplar] for place, exemplar in family.exemplars.items()],
        ]
        for name, family in page.items()
    ]
    return json.dumps(families).encode()


def decode(content: bytes) -> MetricsSnapshot:
    """The opposite of `encode`."""
    page: MetricsSnapshot = {}
    for name, text, kind, all_series, exemplars in json.loads(content):
        page[name] = family = FamilySnapshot(text, kind)
        for labels, points in all_series:
            one = family.series[_labels(labels)] = {}
            one |= {(sample, bound): float(value) for sample, bound, value in points}
        for labels, (sample, bound), (trace_id, value, when) in exemplars:
            family.exemplars[_labels(labels), (sample, bound)] = trace_id, value, when
    return page


def metrics(page: MetricsSnapshot) -> Iterable[Metric]:
    """As prometheus_client prints them."""
    for name, family in page.items():
        metric = Metric(name, family.text, family.kind)
        for labels, series in family.series.items():
            for (sample, bound), value in series.items():
                own = dict(labels)
                shown = family.exemplars.get((labels, (sample, bound)))
                exemplar = shown and samples.Exemplar({"trace_id": shown[0]}, *shown[1:])
                bounded = own | {BOUND: bound} if bound else own
                metric.add_sample(sample, bounded, value, exemplar=exemplar)
        yield metric


def _labels(pairs: Iterable[tuple[str, str]]) -> Labels:
    return tuple((key, value) for key, value in pairs)
