"""Every Prometheus series of the server, on one screen.

Base units, labels bounded: `model` and `version` are those that are served (a request for
another one counts under the empty model), `outcome` is one of errors.py's or "ok".
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

OUTCOMES = ("ok", "rejected", "expired", "cancelled", "invalid", "failed")
SECONDS = (  # 100 us to 10 s
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
ROWS = tuple(2.0**power for power in range(11))  # 1 to 1024


RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


class WatchedQueue(Protocol):
    """What gauges read when they are scraped."""

    limit: int

    @property
    def rows(self) -> int: ...
    def oldest_age(self) -> float: ...


class WatchedCurve(Protocol):
    """Likewise."""

    @property
    def rungs(self) -> Sequence[int]: ...
    @property
    def seconds(self) -> dict[int, float]: ...


class Metrics:
    """All series, in a registry that is given: a process may have several, as tests do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # A creation time for each series would double the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        model = ("model", "version")

        def counter(name: str, text: str, labels: tuple[str, ...] = model) -> Counter:
            return Counter(f"neurona_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = model) -> Gauge:
            return Gauge(f"neurona_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
            return Histogram(f"neurona_{name}", text, model, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests", "Requests by how they ended.", ("model", "version", "outcome")
        )
        self.rows = counter("rows", "Rows that ran, padding not counted.")
        self.padding_rows = counter("padding_rows", "Rows that ran for nobody, to fill a rung.")
        self.terminated = counter("terminated_runs", "Runs stopped since nobody waited any more.")
        self.batch_rows = histogram("batch_rows", "Rows in one run, padding not counted.", ROWS)
        self.batch_requests = histogram("batch_requests", "Requests in one run.", ROWS)
        self.request_seconds = histogram(
            "request_duration_seconds", "From the request's bytes to its answer's, if it was ok."
        )
        self.queue_seconds = histogram(
            "queue_duration_seconds", "From admission to the cut of the batch."
        )
        self.run_seconds = histogram("run_duration_seconds", "One run of the model, join included.")
        self.run_ratio = histogram(
            "run_predicted_ratio", "Seconds of a run by the seconds foretold for it.", RATIOS
        )
        self.predicted_seconds = gauge(
            "run_predicted_seconds",
            "What a run of so many rows is expected to take.",
            ("model", "version", "rows"),
        )
        self.batch_limit = gauge("batch_limit_rows", "Rows that a batch is cut with at the most.")
        self.inline = gauge("inline", "1 while runs are so short that the door does them itself.")
        self.queue_rows = gauge("queue_rows", "Rows that wait for an instance.")
        self.queue_age = gauge("queue_oldest_seconds", "How long the oldest request has waited.")
        self.info = gauge(
            "model_info",
            "1 for a model that is ready, with the ONNX Runtime provider that runs it.",
            ("model", "version", "task", "provider"),
        )
        self.door = gauge("door_info", "1 for the door that serves gRPC.", ("door",))
        self.unresolved = _outcomes(self.requests, "", "")

    def model(self, name: str, version: int) -> "ModelMetrics":
        return ModelMetrics(self, name, str(version))


class ModelMetrics:
    """The series of one version of one model, looked up once."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._metrics = metrics
        self._labels = (name, version)
        self.outcomes = _outcomes(metrics.requests, name, version)
        self.request_seconds = metrics.request_seconds.labels(*self._labels)
        self.terminated = metrics.terminated.labels(*self._labels)
        self.inline = metrics.inline.labels(*self._labels)
        self._rows = metrics.rows.labels(*self._labels)
        self._padding_rows = metrics.padding_rows.labels(*self._labels)
        self._batch_rows = metrics.batch_rows.labels(*self._labels)
        self._batch_requests = metrics.batch_requests.labels(*self._labels)
        self._queue_seconds = metrics.queue_seconds.labels(*self._labels)
        self._run_seconds = metrics.run_seconds.labels(*self._labels)
        self._run_ratio = metrics.run_ratio.labels(*self._labels)

    def watch(self, queue: WatchedQueue, curve: WatchedCurve) -> None:
        labels = self._labels
        self._metrics.queue_rows.labels(*labels).set_function(lambda: queue.rows)
        self._metrics.queue_age.labels(*labels).set_function(queue.oldest_age)
        self._metrics.batch_limit.labels(*labels).set_function(lambda: queue.limit)
        for rung in curve.rungs:
            gauge = self._metrics.predicted_seconds.labels(*labels, str(rung))
            gauge.set_function(partial(_seconds_of, curve, rung))

    def ready(self, task: str, provider: str) -> None:
        self._metrics.info.labels(*self._labels, task, provider).set(1)

    def waited(self, waits: Sequence[float]) -> None:
        """How long each request of a batch had waited when it was cut."""
        for wait in waits:
            self._queue_seconds.observe(wait)

    def ran(self, rows: int, requests: int, padding: int, seconds: float, predicted: float) -> None:
        """One run of `rows` and `padding`, that took `seconds`; 0.0 if none were foretold."""
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._batch_requests.observe(requests)
        self._run_seconds.observe(seconds)
        if padding:
            self._padding_rows.inc(padding)
        if predicted:
            self._run_ratio.observe(seconds / predicted)


def _seconds_of(curve: WatchedCurve, rung: int) -> float:
    return curve.seconds.get(rung, math.nan)


def _outcomes(requests: Counter, name: str, version: str) -> dict[str, Counter]:
    return {outcome: requests.labels(name, version, outcome) for outcome in OUTCOMES}
