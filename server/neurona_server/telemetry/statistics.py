"""What Prometheus' series do not tell of a model: its runs by their exact size, and what requests
that failed took.

Every thread counts for itself, without a lock, and a reader adds up.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields

from prometheus_client.core import SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.telemetry.collectors import VERSION


class RunPhaseCollector(Collector):
    def __init__(self, tallies: Callable[[], Mapping[tuple[str, str], "RunStatistics"]]) -> None:
        """`tallies`: of each version, by name and version; a copy."""
        self._tallies = tallies

    def collect(self) -> Iterable[Metric]:
        join = SummaryMetricFamily(
            "neurona_join_duration_seconds",
            "What it took to join the rows of a run's requests.",
            labels=VERSION,
        )
        split = SummaryMetricFamily(
            "neurona_split_duration_seconds",
            "What it took to give each request its rows of the answer, and to send them.",
            labels=VERSION,
        )
        for labels, tally in self._tallies().items():
            runs, joining, splitting = tally.phase_totals()
            join.add_metric(labels, runs, joining)
            split.add_metric(labels, runs, splitting)
        return [join, split]


@dataclass(slots=True)
class SizeStatistics:
    """Runs of one size. Seconds are sums over runs."""

    runs: int = 0
    requests: int = 0
    join: float = 0.0
    run: float = 0.0
    split: float = 0.0
    # The same, each run taken as many times as it had requests: what all requests spent in it.
    request_join: float = 0.0
    request_run: float = 0.0
    request_split: float = 0.0


@dataclass(slots=True)
class RunCounts:
    """What one thread has seen, or all of them together."""

    sizes: dict[int, SizeStatistics] = field(default_factory=dict)
    """By rows, padding not counted."""

    failures: int = 0
    failure_seconds: float = 0.0
    last_run: float = 0.0
    """Seconds since 1970; 0.0 if there was none."""


class RunStatistics:
    """Any thread may write, any may read; a reader may miss what is being written."""

    def __init__(self) -> None:
        # A thread that ends leaves its counts; one that gets its number goes on with them.
        self._threads: dict[int, RunCounts] = {}

    def record_run(self, rows: int, requests: int, join: float, run: float, split: float) -> None:
        own = self._own()
        size = own.sizes.get(rows)
        if size is None:
            size = own.sizes[rows] = SizeStatistics()
        size.runs += 1
        size.requests += requests
        size.join += join
        size.run += run
        size.split += split
        size.request_join += join * requests
        size.request_run += run * requests
        size.request_split += split * requests
        own.last_run = time.time()

    def record_failure(self, seconds: float) -> None:
        own = self._own()
        own.failures += 1
        own.failure_seconds += seconds

    def phase_totals(self) -> tuple[int, float, float]:
        """Runs, and the seconds that all their joins and all their splits took."""
        own = list(self._threads.values())
        sizes = [size for counts in own for size in list(counts.sizes.values())]
        return (
            sum([size.runs for size in sizes]),
            sum([size.join for size in sizes]),
            sum([size.split for size in sizes]),
        )

    def total(self) -> RunCounts:
        total = RunCounts()
        for counts in list(self._threads.values()):
            for rows, size in list(counts.sizes.items()):
                _add(total.sizes.setdefault(rows, SizeStatistics()), size, _RUNS)
            _add(total, counts, _SUMS)
            total.last_run = max(total.last_run, counts.last_run)
        return total

    def _own(self) -> RunCounts:
        number = threading.get_ident()
        own = self._threads.get(number)
        if own is None:
            own = self._threads[number] = RunCounts()
        return own


def _add(total: object, part: object, names: Iterable[str]) -> None:
    for name in names:
        setattr(total, name, getattr(total, name) + getattr(part, name))


_RUNS = [one.name for one in fields(SizeStatistics)]
_SUMS = [one.name for one in fields(RunCounts) if one.name not in ("sizes", "last_run")]
