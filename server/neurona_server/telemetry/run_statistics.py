"""Statistics that are not in Prometheus' series.

They are the runs by their exact number of rows and the time spent in requests that failed. Each
thread counts on its own, without a lock; readers add the threads up.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields

from prometheus_client.core import SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.telemetry.collectors import VERSION_LABELS


@dataclass(slots=True)
class SizeStatistics:
    """Runs with the same number of rows. Seconds are sums over runs."""

    runs: int = 0
    requests: int = 0
    join: float = 0.0
    run: float = 0.0
    split: float = 0.0
    # Sums over requests instead: the seconds of a run count once for each of its requests.
    request_join: float = 0.0
    request_run: float = 0.0
    request_split: float = 0.0


@dataclass(slots=True)
class RunCounts:
    """Counts of one thread, or of all threads together."""

    sizes: dict[int, SizeStatistics] = field(default_factory=dict)
    """By rows, padding excluded."""

    failures: int = 0
    failure_seconds: float = 0.0
    failures_by_outcome: dict[str, int] = field(default_factory=dict)
    last_run: float = 0.0
    """Seconds since 1970; 0.0 if there was no run."""


class RunStatistics:
    """Runs and failures of one version of a model.

    Any thread may record or read; a reader may miss what is being recorded.
    """

    def __init__(self) -> None:
        # The counts of a thread that ends stay; a later thread with its number continues them.
        self._threads: dict[int, RunCounts] = {}

    def record_run(self, rows: int, requests: int, join: float, run: float, split: float) -> None:
        """Count one run, with the seconds of its three phases."""
        counts = self._thread_counts()
        size = counts.sizes.get(rows)
        if size is None:
            size = counts.sizes[rows] = SizeStatistics()
        size.runs += 1
        size.requests += requests
        size.join += join
        size.run += run
        size.split += split
        size.request_join += join * requests
        size.request_run += run * requests
        size.request_split += split * requests
        counts.last_run = time.time()

    def record_failure(self, outcome: str, seconds: float) -> None:
        """Count one request that did not succeed after `seconds`."""
        counts = self._thread_counts()
        counts.failures += 1
        counts.failure_seconds += seconds
        by_outcome = counts.failures_by_outcome
        by_outcome[outcome] = by_outcome.get(outcome, 0) + 1

    def phase_totals(self) -> tuple[int, float, float]:
        """Number of runs, total seconds of their joins, total seconds of their splits."""
        threads = list(self._threads.values())
        sizes = [size for counts in threads for size in list(counts.sizes.values())]
        return (
            sum([size.runs for size in sizes]),
            sum([size.join for size in sizes]),
            sum([size.split for size in sizes]),
        )

    def total(self) -> RunCounts:
        """Add the counts of all threads up."""
        total = RunCounts()
        for counts in list(self._threads.values()):
            for rows, size in list(counts.sizes.items()):
                _add(total.sizes.setdefault(rows, SizeStatistics()), size, _SIZE_FIELDS)
            for outcome, failures in list(counts.failures_by_outcome.items()):
                total.failures_by_outcome[outcome] = (
                    total.failures_by_outcome.get(outcome, 0) + failures
                )
            _add(total, counts, _SUMMED_FIELDS)
            total.last_run = max(total.last_run, counts.last_run)
        return total

    def _thread_counts(self) -> RunCounts:
        number = threading.get_ident()
        counts = self._threads.get(number)
        if counts is None:
            counts = self._threads[number] = RunCounts()
        return counts


class RunPhaseCollector(Collector):
    """Seconds spent joining and splitting, from the run statistics of all versions."""

    def __init__(
        self, copy_statistics: Callable[[], Mapping[tuple[str, str], RunStatistics]]
    ) -> None:
        """`copy_statistics` returns a copy of the statistics by model name and version."""
        self._copy_statistics = copy_statistics

    def collect(self) -> Iterable[Metric]:
        join = SummaryMetricFamily(
            "neurona_join_duration_seconds",
            "Time spent joining the inputs of a run's requests.",
            labels=VERSION_LABELS,
        )
        split = SummaryMetricFamily(
            "neurona_split_duration_seconds",
            "Time spent splitting a run's outputs by request and sending the responses.",
            labels=VERSION_LABELS,
        )
        for labels, statistics in self._copy_statistics().items():
            runs, join_seconds, split_seconds = statistics.phase_totals()
            join.add_metric(labels, runs, join_seconds)
            split.add_metric(labels, runs, split_seconds)
        return [join, split]


def _add(total: object, part: object, names: Iterable[str]) -> None:
    for name in names:
        setattr(total, name, getattr(total, name) + getattr(part, name))


_SIZE_FIELDS = [one.name for one in fields(SizeStatistics)]
_SUMMED_FIELDS = ("failures", "failure_seconds")
