"""Every Prometheus series of the server, on one screen.

Base units, labels bounded: `model` and `version` are those that are served (a request for
another one counts under the empty model), `outcome` is one of errors.py's or "ok".

Histograms are classic, with buckets. Native ones need no bounds to be chosen, but Prometheus takes
them in its protobuf format alone (2.40 to 2.x; Debian 12 has 2.42), and prometheus_client writes
text: there it knows them only for OpenMetrics 2.0, which no Prometheus asks for by itself.
Classic ones are read by all, and exemplars hang on their buckets.

ONNX Runtime's Python API tells nothing of what its arenas hold (looked through from 1.23 to
1.31): the statistics are in the C API alone, for which it hands out no session. So there is no
such series; process_resident_memory_bytes and neurona_gpu_memory_used_bytes are what can be seen.
"""

import math
import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from neurona_server.errors import (
    PermissionDeniedError,
    QueueFullError,
    TooLargeError,
    UnauthenticatedError,
)
from neurona_server.telemetry.collectors import (
    VERSION,
    GpuCollector,
    LoadingCollector,
    MemoryLimit,
    VersionInfo,
    VersionStateCollector,
    WatchedCurve,
    WatchedQueue,
)
from neurona_server.telemetry.histogram import BufferedHistograms, DerivedCounter
from neurona_server.telemetry.statistics import RunPhaseCollector, RunStatistics

if TYPE_CHECKING:
    pass

OUTCOMES = ("ok", "rejected", "expired", "cancelled", "invalid", "failed")


class ModelMetrics:
    """The series of one version of one model, looked up once."""

    def __init__(
        self, metrics: "Metrics", name: str, version: str, run_statistics: RunStatistics
    ) -> None:
        self._metrics = metrics
        self._labels = (name, version)
        self.run_statistics = run_statistics
        self.outcomes = outcomes_of(metrics.requests, name, version)
        self._request_seconds = metrics.request_seconds.series(
            *self._labels, self.outcomes["ok"].inc
        )
        self.terminated_runs = metrics.terminated_runs.labels(*self._labels)
        self.inline = metrics.inline.labels(*self._labels)
        self._rows = metrics.rows.labels(*self._labels)
        self._padding_rows = metrics.padding_rows.labels(*self._labels)
        self._batch_rows = metrics.batch_rows.labels(*self._labels)
        self._batch_requests = metrics.batch_requests.labels(*self._labels)
        self._queue_seconds = metrics.queue_seconds.series(*self._labels)
        self._run_seconds = metrics.run_seconds.labels(*self._labels)
        self._run_ratio = metrics.run_ratio.labels(*self._labels)
        self._warm_up_seconds = metrics.warm_up_seconds.labels(name)

    def watch_batching(self, queue: WatchedQueue, cost_model: WatchedCurve) -> None:
        labels = self._labels
        self._metrics.queue_rows.labels(*labels).set_function(lambda: queue.rows)
        self._metrics.queue_age.labels(*labels).set_function(queue.oldest_age)
        self._metrics.queue_bytes.labels(*labels).set_function(lambda: queue.nbytes)
        self._metrics.queue_limit.labels(*labels).set_function(lambda: queue.max_rows)
        self._metrics.batch_limit.labels(*labels).set_function(lambda: queue.max_batch_rows)
        # What it replaces may have had other rungs.
        self._forget(self._metrics.predicted_seconds)
        for batch_size in cost_model.batch_sizes:
            gauge = self._metrics.predicted_seconds.labels(*labels, str(batch_size))
            gauge.set_function(partial(_seconds_of, cost_model, batch_size))

    def record_warm_up(self, seconds: float) -> None:
        """Its first runs, before it served."""
        self._warm_up_seconds.observe(seconds)

    def set_model_info(self, task: str, provider: str) -> None:
        self._forget(self._metrics.info)
        self._metrics.info.labels(*self._labels, task, provider).set(1)

    def record_shadow(self, outcome: str) -> None:
        self._metrics.record_shadow(*self._labels, outcome)

    def release(self) -> None:
        self._metrics.release_version(*self._labels)

    def record_placement(self, nodes: Mapping[str, int], degraded: bool) -> None:
        """Which provider runs how many nodes."""
        self._forget(self._metrics.nodes)  # what it replaces may have run elsewhere
        for provider, count in nodes.items():
            self._metrics.nodes.labels(*self._labels, provider).set(count)
        self._metrics.degraded.labels(*self._labels).set(degraded)

    def _forget(self, series: Gauge) -> None:
        name, version = self._labels
        series.remove_by_labels({"model": name, "version": version})

    def record_queue_waits(self, waits: Sequence[float]) -> None:
        """How long each request of a batch had waited when it was cut."""
        self._queue_seconds.observe_all(waits)

    @property
    def request_totals(self) -> tuple[int, float]:
        """Requests that were ok, and their seconds altogether."""
        return self._request_seconds.total

    @property
    def queue_totals(self) -> tuple[int, float]:
        """Requests that have left the queue, and the seconds that they had spent in it."""
        return self._queue_seconds.total

    def record_request(self, outcome: str, seconds: float) -> None:
        """One request, from its bytes to its answer's or its error."""
        if outcome == "ok":  # counted as it is sorted
            self._request_seconds.observe(seconds)
        else:
            self.run_statistics.record_failure(seconds)
            self.outcomes[outcome].inc()

    def record_exemplar(self, seconds: float, trace_id: str) -> None:
        """A request that was ok, and took so long, has a trace."""
        self._request_seconds.record_exemplar(seconds, trace_id)

    def record_run(
        self,
        rows: int,
        requests: int,
        padding: int,
        seconds: tuple[float, float, float],
        predicted: float,
    ) -> None:
        """One run of `rows` and `padding`, with its seconds for the join, the run itself and the
        split; 0.0 if none were foretold."""
        self.run_statistics.record_run(rows, requests, *seconds)
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._batch_requests.observe(requests)
        joined_and_run = seconds[0] + seconds[1]
        self._run_seconds.observe(joined_and_run)
        if padding:
            self._padding_rows.inc(padding)
        if predicted:
            self._run_ratio.observe(joined_and_run / predicted)


def _seconds_of(cost_model: WatchedCurve, batch_size: int) -> float:
    return cost_model.seconds.get(batch_size, math.nan)


def outcomes_of(requests: Counter, name: str, version: str) -> dict[str, Counter]:
    return {outcome: requests.labels(name, version, outcome) for outcome in OUTCOMES}


__all__ = ["OUTCOMES", "Metrics", "ModelMetrics"]

SECONDS = (  # 100 us to 10 s
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
ROWS = tuple(2.0**power for power in range(11))  # 1 to 1024
LOADS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
REFUSALS = {
    UnauthenticatedError: "unauthenticated",
    PermissionDeniedError: "permission",
    TooLargeError: "too_large",
    QueueFullError: "too_many",
}
"""What a call is refused for before it reaches a model, as the label `reason` has it."""


class Removable(Protocol):
    def remove_by_labels(self, labels: dict[str, str]) -> None: ...


class Metrics:
    """All series, in a registry that is given: a process may have several, as tests do."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # A creation time for each series would double the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry

        self.request_seconds = BufferedHistograms(
            "neurona_request_duration_seconds",
            "From the request's bytes to its answer's, if it was ok.",
            SECONDS,
        )
        self.queue_seconds = BufferedHistograms(
            "neurona_queue_duration_seconds", "From admission to the cut of the batch.", SECONDS
        )
        for collector in (self.request_seconds, self.queue_seconds):
            registry.register(collector)

        def counter(name: str, text: str, labels: tuple[str, ...] = VERSION) -> Counter:
            return Counter(f"neurona_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = VERSION) -> Gauge:
            return Gauge(f"neurona_{name}", text, labels, registry=registry)

        def histogram(
            name: str,
            text: str,
            buckets: Sequence[float] = SECONDS,
            labels: tuple[str, ...] = VERSION,
        ) -> Histogram:
            return Histogram(f"neurona_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = DerivedCounter(
            "neurona_requests",
            "Requests by how they ended.",
            ("model", "version", "outcome"),
            registry=registry,
        )
        self.requests.sort = self.request_seconds.sort
        self.rows = counter("rows", "Rows that ran, padding not counted.")
        self.padding_rows = counter("padding_rows", "Rows that ran for nobody, to fill a rung.")
        self.terminated_runs = counter(
            "terminated_runs", "Runs stopped since nobody waited any more."
        )
        self.batch_rows = histogram("batch_rows", "Rows in one run, padding not counted.", ROWS)
        self.batch_requests = histogram("batch_requests", "Requests in one run.", ROWS)
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
        self.inline = gauge(
            "inline", "1 while runs are so short that the transport does them itself."
        )
        self.queue_rows = gauge("queue_rows", "Rows that wait for an instance.")
        self.queue_age = gauge("queue_oldest_seconds", "How long the oldest request has waited.")
        self.queue_bytes = gauge("queue_bytes", "Bytes of input that wait for an instance.")
        self.queue_limit = gauge("queue_limit_rows", "Rows that may wait; more are refused.")
        self.info = gauge(
            "model_info",
            "1 for a model that is ready, with the ONNX Runtime provider that runs it.",
            ("model", "version", "task", "provider"),
        )
        self.load_seconds = histogram(
            "load_duration_seconds",
            "Load and warm-up of a version, failed ones too.",
            LOADS,
            ("model",),
        )
        self.warm_up_seconds = histogram(
            "warm_up_duration_seconds",
            "The first runs of a version, which are part of its load.",
            LOADS,
            ("model",),
        )
        self.loads = counter("loads", "Loads by how they ended.", ("model", "outcome"))
        self.shadows = counter(
            "shadow_requests",
            "Copies of requests that a shadow got, by how its answers compared.",
            ("model", "version", "outcome"),
        )
        self.nodes = gauge(
            "model_nodes",
            "Nodes of the model's graph by the ONNX Runtime provider that runs them.",
            ("model", "version", "provider"),
        )
        self.degraded = gauge(
            "model_degraded", "1 for a model that does not run where it should, as on a GPU."
        )
        self.spans = counter(
            "trace_spans", "Spans of traced requests: sent to the collector, or lost.", ("outcome",)
        )
        for outcome in ("sent", "lost"):
            self.spans.labels(outcome)
        self.transport = gauge(
            "transport_info", "1 for the transport that serves gRPC.", ("transport",)
        )
        self.build = gauge(
            "build_info",
            "1, with the versions of the server and of what it stands on.",
            ("version", "python", "onnxruntime", "grpcio"),
        )
        self.serving = gauge("serving", "1 while the server is SERVING by its health, else 0.", ())
        self.open_streams = gauge(
            "open_streams", "PredictStream and ModelStreamInfer calls under way.", ()
        )
        self._refused = counter(
            "rejected_calls", "Calls that were refused before they reached a model.", ("reason",)
        )
        for reason in REFUSALS.values():
            self._refused.labels(reason)
        self.unresolved = outcomes_of(self.requests, "", "")

        self._of_version: list[Removable] = [
            *(self.requests, self.rows, self.padding_rows, self.terminated_runs, self.batch_rows),
            *(self.batch_requests, self.request_seconds, self.queue_seconds, self.run_seconds),
            *(self.run_ratio, self.predicted_seconds, self.batch_limit, self.inline),
            *(self.queue_rows, self.queue_age, self.queue_bytes, self.queue_limit, self.info),
            *(self.shadows, self.nodes, self.degraded),
        ]
        self._holders: Counts[tuple[str, str]] = Counts()
        self._tallies: dict[tuple[str, str], RunStatistics] = {}
        self._holding = threading.Lock()
        self.loading = LoadingCollector()
        registry.register(self.loading)
        registry.register(RunPhaseCollector(self._copy_tallies))

    def record_shadow(self, name: str, version: str, outcome: str) -> None:
        """Nothing once the version is released: its series would be there again, for good."""
        with self._holding:
            if self._holders[name, version] > 0:
                self.shadows.labels(name, version, outcome).inc()

    def for_version(self, name: str, version: int) -> "ModelMetrics":
        """The series of a version, which are there until each that asked has released them: a
        version that is loaded anew has them together with the one that it replaces."""
        with self._holding:
            self._holders[name, str(version)] += 1
            tally = self._tallies.setdefault((name, str(version)), RunStatistics())
        return ModelMetrics(self, name, str(version), tally)

    def release_version(self, name: str, version: str) -> None:
        with self._holding:
            self._holders[name, version] -= 1
            if self._holders[name, version] > 0:
                return
            del self._holders[name, version]
            del self._tallies[name, version]
            for series in self._of_version:
                series.remove_by_labels({"model": name, "version": version})

    def forget_model(self, name: str) -> None:
        """The model is gone, all its versions with it: so are its loads, or names that come and
        go would stay on the page for good."""
        for series in (self.load_seconds, self.warm_up_seconds, self.loads):
            series.remove_by_labels({"model": name})

    def record_rejection(self, error: Exception) -> None:
        """A call that a transport ended before its request came to a model, or to a wrong one."""
        if (reason := REFUSALS.get(type(error))) is not None:
            self._refused.labels(reason).inc()

    def record_load(self, name: str, seconds: float, *, ok: bool) -> None:
        self.loads.labels(name, "ok" if ok else "failed").inc()
        self.load_seconds.labels(name).observe(seconds)

    def watch_versions(self, known: Callable[[], Iterable[VersionInfo]]) -> None:
        """Has the state of every version read when the page is."""
        self.registry.register(VersionStateCollector(known))

    def watch_process(self, gpus: GpuCollector | None = None) -> None:
        """Has what the process and the GPUs of its machine use read when the page is."""
        ProcessCollector(registry=self.registry)
        GCCollector(self.registry)
        self.registry.register(gpus or GpuCollector())
        self.registry.register(MemoryLimit())

    def _copy_tallies(self) -> dict[tuple[str, str], RunStatistics]:
        with self._holding:
            return dict(self._tallies)
