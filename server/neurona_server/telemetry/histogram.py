"""Histograms that cost their writers next to nothing.

Every request is observed twice, and prometheus_client's Histogram takes a lock and walks the
buckets each time. Here an observation is only appended to a buffer; the reader of the page sorts
the buffer into buckets.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from prometheus_client import Counter
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

MAX_BUFFERED = 10_000
"""Observations in the buffer of one histogram; beyond that, its writer flushes it."""


class BufferedHistogram:
    """The histogram of one set of labels. Any thread may write or read."""

    def __init__(self, buckets: Sequence[float], on_flush: Callable[[int], None]) -> None:
        self._bounds = np.array(buckets)
        self._counts = np.zeros(len(buckets) + 1, np.int64)
        self._sum = 0.0
        self._buffer: deque[float] = deque()
        self._flushing = threading.Lock()
        self._on_flush = on_flush
        self._exemplars: dict[int, Exemplar] = {}  # the newest of each bucket

    def observe(self, seconds: float) -> None:
        """Record one observation."""
        self._buffer.append(seconds)
        if len(self._buffer) > MAX_BUFFERED:
            self.flush()

    def observe_all(self, seconds: Iterable[float]) -> None:
        """Record several observations."""
        self._buffer.extend(seconds)
        if len(self._buffer) > MAX_BUFFERED:
            self.flush()

    def record_exemplar(self, seconds: float, trace_id: str) -> None:
        """Attach a trace to the bucket of an observation."""
        bucket = int(np.searchsorted(self._bounds, seconds))
        self._exemplars[bucket] = Exemplar({"trace_id": trace_id}, seconds, time.time())

    @property
    def exemplars(self) -> list[Exemplar | None]:
        """The exemplar of each bucket, the one above all bounds included."""
        return [self._exemplars.get(bucket) for bucket in range(len(self._counts))]

    def flush(self) -> None:
        """Move the buffered observations to their buckets."""
        with self._flushing:
            values = [self._buffer.popleft() for _ in range(len(self._buffer))]
            if not values:
                return
            buckets = np.searchsorted(self._bounds, values)
            self._counts += np.bincount(buckets, minlength=len(self._counts))
            self._sum += sum(values)
        self._on_flush(len(values))

    def cumulative(self) -> tuple[list[int], float]:
        """Return the number of observations up to each bound and in total, and the sum of all."""
        self.flush()
        with self._flushing:
            return np.cumsum(self._counts).tolist(), self._sum

    @property
    def total(self) -> tuple[int, float]:
        """Number of observations, and their sum."""
        counts, seconds = self.cumulative()
        return counts[-1], seconds


class BufferedHistograms(Collector):
    """A metric family of durations in seconds, by the labels `model` and `version`."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._buckets = buckets
        self._bounds = [*map(floatToGoString, buckets), "+Inf"]
        self._series: dict[tuple[str, str], BufferedHistogram] = {}

    def series(
        self, model: str, version: str, on_flush: Callable[[int], None] = lambda _: None
    ) -> BufferedHistogram:
        """Return the histogram of these labels, created on the first call.

        `on_flush` is called with the number of observations at each flush, for a DerivedCounter.
        """
        series = self._series.get((model, version))
        if series is None:
            series = BufferedHistogram(self._buckets, on_flush)
            series = self._series.setdefault((model, version), series)
        return series

    def total(self, model: str, version: str) -> tuple[int, float]:
        """Return the number and the sum of the observations with these labels."""
        series = self._series.get((model, version))
        return (0, 0.0) if series is None else series.total

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Remove the histogram of these labels, as prometheus_client's metrics do."""
        self._series.pop((labels["model"], labels["version"]), None)

    def flush(self) -> None:
        """Flush all histograms."""
        for series in list(self._series.values()):
            series.flush()

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=("model", "version"))
        for labels, series in list(self._series.items()):
            counts, seconds = series.cumulative()
            # Only the OpenMetrics form of the page shows exemplars.
            buckets = list(zip(self._bounds, counts, series.exemplars, strict=True))
            family.add_metric(labels, buckets, seconds)  # type: ignore[arg-type]  # may be None
        return [family]


class DerivedCounter(Counter):
    """A counter that BufferedHistograms increment at each flush, flushed before it is read."""

    flush: Callable[[], None] | None = None

    def collect(self) -> Iterable[Metric]:
        if self.flush is not None:
            self.flush()
        return super().collect()
