"""A histogram that costs its writers next to nothing.

Every request is observed twice, and prometheus_client takes a lock and walks the buckets each
time. Here a value is only put aside; who reads the page sorts what has gathered.
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

MOST_ASIDE = 10_000
"""Values that wait to be sorted: then their writer does it."""


class BufferedHistogram:
    """Of one set of labels. Any thread may write, any may read."""

    def __init__(self, buckets: Sequence[float], counted: Callable[[int], None]) -> None:
        self._bounds = np.array(buckets)
        self._counts = np.zeros(len(buckets) + 1, np.int64)
        self._sum = 0.0
        self._aside: deque[float] = deque()
        self._sorting = threading.Lock()
        self._counted = counted
        self._exemplars: dict[int, Exemplar] = {}  # the newest of each bucket

    def record_exemplar(self, seconds: float, trace_id: str) -> None:
        """A value that was observed has a trace to look at."""
        place = int(np.searchsorted(self._bounds, seconds))
        self._exemplars[place] = Exemplar({"trace_id": trace_id}, seconds, time.time())

    @property
    def exemplars(self) -> list[Exemplar | None]:
        """Of each bucket, and of what is above all bounds."""
        return [self._exemplars.get(place) for place in range(len(self._counts))]

    def observe(self, seconds: float) -> None:
        self._aside.append(seconds)
        if len(self._aside) > MOST_ASIDE:
            self.sort()

    def observe_all(self, seconds: Iterable[float]) -> None:
        self._aside.extend(seconds)
        if len(self._aside) > MOST_ASIDE:
            self.sort()

    def sort(self) -> None:
        with self._sorting:
            values = [self._aside.popleft() for _ in range(len(self._aside))]
            if not values:
                return
            places = np.searchsorted(self._bounds, values)
            self._counts += np.bincount(places, minlength=len(self._counts))
            self._sum += sum(values)
        self._counted(len(values))

    def read(self) -> tuple[list[int], float]:
        """How many were at most each bound, and any at all; and the sum of all."""
        self.sort()
        with self._sorting:
            return np.cumsum(self._counts).tolist(), self._sum

    @property
    def total(self) -> tuple[int, float]:
        """How many there were, and their sum."""
        counts, seconds = self.read()
        return counts[-1], seconds


class BufferedHistograms(Collector):
    """Seconds, by the labels `model` and `version`."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._buckets = buckets
        self._bounds = [*map(floatToGoString, buckets), "+Inf"]
        self._series: dict[tuple[str, str], BufferedHistogram] = {}

    def series(
        self, model: str, version: str, counted: Callable[[int], None] = lambda _: None
    ) -> BufferedHistogram:
        """`counted` is told how many have been sorted, for what counts along."""
        found = self._series.get((model, version))
        if found is None:
            found = BufferedHistogram(self._buckets, counted)
            found = self._series.setdefault((model, version), found)
        return found

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        self._series.pop((labels["model"], labels["version"]), None)

    def sort(self) -> None:
        for series in list(self._series.values()):
            series.sort()

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=("model", "version"))
        for labels, series in list(self._series.items()):
            counts, seconds = series.read()
            # Only the OpenMetrics form of the page shows exemplars.
            buckets = list(zip(self._bounds, counts, series.exemplars, strict=True))
            family.add_metric(labels, buckets, seconds)  # type: ignore[arg-type]  # may be None
        return [family]


class DerivedCounter(Counter):
    """A counter that goes on as durations are sorted: they are, before it is read."""

    sort: Callable[[], None] | None = None

    def collect(self) -> Iterable[Metric]:
        if self.sort is not None:
            self.sort()
        return super().collect()
