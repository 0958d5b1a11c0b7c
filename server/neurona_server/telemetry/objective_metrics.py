"""The series of latency objectives: what was promised, how often it was kept, and what was refused.

The file is alone because `metrics.py` holds the series of all models, and the share of a time
window is computed here once for one process and for several.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

MET_RATIO = "neurona_objective_met_ratio"
OBJECTIVE_REQUESTS = "neurona_objective_requests"

RESULTS = ("met", "missed")
"""Values of the label `result`."""

RETRY_AFTER_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

WINDOW_SECONDS = 300.0
"""The time of which the page shows the share of requests that met their objective."""

SAMPLE_SECONDS = 10.0
"""Least time between two counts that are kept for it: pages may be read often."""

NO_REQUESTS = (-math.inf, 0.0, 0.0)
"""The counts before the first reading."""

VersionCounts = Mapping[tuple[str, str], tuple[float, float]]
"""By model and version: the requests that have met and that have missed the objective."""


class MetRatioWindow:
    """The share of the last minutes' requests that met the objective, from counts that only grow.

    It keeps the counts of earlier readings, so that no request costs anything for it. Of a page
    that is read more seldom, the time since the reading before counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a window without counts.

        Args:
            clock: Returns seconds, and never goes back.
        """
        self._clock = clock
        self._samples: dict[tuple[str, str], deque[tuple[float, float, float]]] = {}
        self._lock = threading.Lock()

    def update(self, counts: VersionCounts) -> Mapping[tuple[str, str], float]:
        """Return the shares by model and version, 0.0 to 1.0, of those that had requests.

        Args:
            counts: Of all versions that have an objective.
        """
        with self._lock:
            now = self._clock()
            for key in self._samples.keys() - counts.keys():
                del self._samples[key]
            shares = {}
            for key, (met, missed) in counts.items():
                _, first_met, first_missed = self._oldest_sample(key, now, met, missed)
                new_met, new_missed = met - first_met, missed - first_missed
                if total := new_met + new_missed:
                    shares[key] = new_met / total
            return shares

    def _oldest_sample(
        self, key: tuple[str, str], now: float, met: float, missed: float
    ) -> tuple[float, float, float]:
        """Return the counts of the window's begin, and keep the new ones."""
        samples = self._samples.setdefault(key, deque([NO_REQUESTS]))
        if met < samples[-1][1] or missed < samples[-1][2]:  # the version was loaded anew
            samples.clear()
            samples.append(NO_REQUESTS)
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_SECONDS:
            samples.popleft()
        oldest = samples[0]
        if now - samples[-1][0] >= SAMPLE_SECONDS:
            samples.append((now, met, missed))
        return oldest


def met_ratio_metric(ratios: Mapping[tuple[str, str], float]) -> Metric:
    """Return the gauge of the shares that a window has returned."""
    family = GaugeMetricFamily(
        MET_RATIO,
        "Share of the admitted requests of the last 5 minutes that met the latency objective; or "
        "of the time since the page was read before, if that is longer.",
        labels=("model", "version"),
    )
    for labels, ratio in ratios.items():
        family.add_metric(labels, ratio)
    return family


def count_results(
    samples: Iterable[tuple[Mapping[str, str], float]],
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the counts of each version.

    Args:
        samples: The labels and values of `OBJECTIVE_REQUESTS`.
    """
    counts: dict[tuple[str, str], tuple[float, float]] = {}
    for labels, value in samples:
        key = labels["model"], labels["version"]
        met, missed = counts.get(key, (0.0, 0.0))
        counts[key] = (value, missed) if labels["result"] == RESULTS[0] else (met, value)
    return counts


class _MetRatioCollector(Collector):
    """The share of each version, from its counters."""

    def __init__(self, requests: Counter) -> None:
        self._requests = requests
        self._window = MetRatioWindow()

    def collect(self) -> Iterable[Metric]:
        samples = [
            (sample.labels, sample.value)
            for metric in self._requests.collect()
            for sample in metric.samples
        ]
        return [met_ratio_metric(self._window.update(count_results(samples)))]


class ObjectiveMetrics:
    """The series, in the given registry."""

    def __init__(self, registry: CollectorRegistry, version_labels: Sequence[str]) -> None:
        """Declare the series.

        Args:
            registry: Gets them.
            version_labels: The names of the labels of a version.
        """
        self.seconds = Gauge(
            "neurona_latency_objective_seconds",
            "The latency objective of a model that has one.",
            version_labels,
            registry=registry,
        )
        self.requests = Counter(
            OBJECTIVE_REQUESTS,
            "Admitted requests of models with a latency objective, by result: met (answered "
            "within it and before their deadline) or missed (answered late, or dropped).",
            (*version_labels, "result"),
            registry=registry,
        )
        self.dropped_requests = Counter(
            "neurona_dropped_requests",
            "Admitted requests that were dropped before they ran, since they could not be answered "
            "in time any more; they also count as expired.",
            version_labels,
            registry=registry,
        )
        self.retry_after = Histogram(
            "neurona_retry_after_seconds",
            "Time after which rejected requests were told to try again.",
            version_labels,
            buckets=RETRY_AFTER_BUCKETS,
            registry=registry,
        )
        registry.register(_MetRatioCollector(self.requests))

    @property
    def version_series(self) -> tuple[Gauge | Counter | Histogram, ...]:
        """Those that end with a version."""
        return (self.seconds, self.requests, self.dropped_requests, self.retry_after)


class VersionObjectiveMetrics:
    """The series of one model version with an objective, with their labels looked up once."""

    def __init__(self, metrics: ObjectiveMetrics, name: str, version: str) -> None:
        self._met, self._missed = (
            metrics.requests.labels(name, version, result) for result in RESULTS
        )

    def record(self, met: int, missed: int) -> None:
        """Count the requests of a batch that met their objective, and those that did not."""
        if met:
            self._met.inc(met)
        if missed:
            self._missed.inc(missed)
