"""The page of metrics as bytes, in the format and the encoding that a caller wants."""

import gzip
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

QUICK = 1
"""gzip's level: the page shrinks to a 20th with it, and higher ones cost several times the CPU."""


class Chosen(Collector):
    """Of a page, the families that have one of these names."""

    def __init__(self, registry: CollectorRegistry, names: frozenset[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterable[Metric]:
        # By prometheus_client's convention names are those of samples.
        for metric in self._registry.collect():
            if metric.name in self._names or any(s.name in self._names for s in metric.samples):
                yield metric


def write(
    registry: CollectorRegistry, names: frozenset[str], *, open_metrics: bool, zipped: bool
) -> tuple[bytes, str]:
    """The page and its content type. `names`: of the families that are wanted, all without any.

    Takes as long as there are series: tens of milliseconds for hundreds of versions.
    """
    source = registry
    if names:
        source = CollectorRegistry()
        source.register(Chosen(registry, names))
    if open_metrics:
        content: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]
        kind = openmetrics.CONTENT_TYPE_LATEST
    else:
        content, kind = generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4
    return (gzip.compress(content, QUICK) if zipped else content), kind
