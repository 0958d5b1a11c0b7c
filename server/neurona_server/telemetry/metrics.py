"""Every Prometheus series of the server.

`Metrics` declares the series; `ModelMetrics` updates the series of one model version.

Names use base units (seconds, bytes). Label values are bounded: `model` and `version` are those
that are served (a request for an unknown one counts under the empty model), `outcome` is "ok" or
the `outcome` of an error in errors.py.

Histograms are classic ones with fixed buckets. Native histograms need no buckets, but Prometheus
reads them only from its protobuf format (2.40 to 2.x; Debian 12 has 2.42), which prometheus_client
does not write: its text form of them is part of OpenMetrics 2.0, which no Prometheus requests by
default. Every Prometheus reads classic histograms, and exemplars are attached to their buckets.

There is no series for the memory in ONNX Runtime's arenas: its Python API does not report it
(checked from 1.23 to 1.31), and the C API, which does, needs a session that the Python API does
not hand out. process_resident_memory_bytes and neurona_gpu_memory_used_bytes come closest.

It is one file because it holds all series: a name, its help text and the code that updates it are
found in one place.
"""

import math
import threading
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from neurona_server.errors import NeuronaError, QueueFullError
from neurona_server.telemetry import logs
from neurona_server.telemetry.collectors import (
    VERSION_LABELS,
    GpuCollector,
    LoadingCollector,
    LogLineCollector,
    MemoryLimitCollector,
    StallCollector,
    VersionInfo,
    VersionStateCollector,
)
from neurona_server.telemetry.connection_metrics import (
    REJECTION_REASONS,
    ConnectionMetrics,
    ConnectionState,
)
from neurona_server.telemetry.device_metrics import DeviceInfo, DeviceMetrics
from neurona_server.telemetry.histogram import BufferedHistograms, DerivedCounter
from neurona_server.telemetry.objective_metrics import ObjectiveMetrics, VersionObjectiveMetrics
from neurona_server.telemetry.run_failure_metrics import RunFailureMetrics
from neurona_server.telemetry.run_statistics import RunPhaseCollector, RunStatistics
from neurona_server.telemetry.sequence_metrics import SequenceMetrics, VersionSequenceMetrics
from neurona_server.telemetry.session_metrics import SessionMetrics, VersionSessionMetrics
from neurona_server.telemetry.triton_metrics import TritonMetricsCollector, VersionTotals

OUTCOMES = ("ok", "rejected", "expired", "cancelled", "invalid", "failed")

SECONDS_BUCKETS = (  # 100 us to 10 s
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
LOAD_SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
ROWS_BUCKETS = tuple(2.0**power for power in range(11))  # 1 to 1024
RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


class ObservedQueue(Protocol):
    """The part of a batch queue that gauges read at each scrape.

    A protocol, because telemetry must not import batching.
    """

    max_batch_rows: int

    @property
    def rows(self) -> int: ...
    @property
    def request_count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    def oldest_age(self) -> float: ...


class ObservedCostModel(Protocol):
    """The part of a cost model that gauges read at each scrape; see ObservedQueue."""

    @property
    def batch_sizes(self) -> Sequence[int]: ...
    @property
    def seconds(self) -> dict[int, float]: ...


class _VersionSeries(Protocol):
    def remove_by_labels(self, labels: dict[str, str]) -> None: ...


class Metrics:
    """All series of one server, in the given registry (tests have several servers per process)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # A creation time for each series would double the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._reference_counts: Counts[tuple[str, str]] = Counts()
        self._run_statistics: dict[tuple[str, str], RunStatistics] = {}
        self._queues: dict[tuple[str, str], ObservedQueue] = {}
        self._versions_lock = threading.Lock()

        def counter(name: str, text: str, labels: tuple[str, ...] = VERSION_LABELS) -> Counter:
            return Counter(f"neurona_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = VERSION_LABELS) -> Gauge:
            return Gauge(f"neurona_{name}", text, labels, registry=registry)

        def histogram(
            name: str,
            text: str,
            buckets: Sequence[float] = SECONDS_BUCKETS,
            labels: tuple[str, ...] = VERSION_LABELS,
        ) -> Histogram:
            return Histogram(f"neurona_{name}", text, labels, buckets=buckets, registry=registry)

        # Requests.
        self.request_seconds = BufferedHistograms(
            "neurona_request_duration_seconds",
            "Duration of successful requests, from receiving the request to its response.",
            SECONDS_BUCKETS,
        )
        self.queue_seconds = BufferedHistograms(
            "neurona_queue_duration_seconds",
            "Time that requests spent in the queue, from admission to their batch.",
            SECONDS_BUCKETS,
        )
        for collector in (self.request_seconds, self.queue_seconds):
            registry.register(collector)
        self.requests = DerivedCounter(
            "neurona_requests",
            "Requests by outcome.",
            ("model", "version", "outcome"),
            registry=registry,
        )
        self.requests.flush = self.request_seconds.flush
        self.unresolved = _outcome_counters(self.requests, "", "")
        """Requests for an unknown model or version, by outcome."""
        self.shadows = counter(
            "shadow_requests",
            "Requests copied to a shadow version, by how its response compared.",
            ("model", "version", "outcome"),
        )
        self._connections = ConnectionMetrics(registry)
        self.open_streams = gauge(
            "open_streams", "Open PredictStream, Session and ModelStreamInfer calls.", ()
        )

        # Queues.
        self.displaced_requests = counter(
            "displaced_requests",
            "Waiting requests that a more urgent one displaced from a full queue; they also count "
            "as rejected.",
        )
        self.queue_rows = gauge("queue_rows", "Rows waiting in the queue.")
        self.queue_age = gauge("queue_oldest_seconds", "Age of the oldest request in the queue.")
        self.queue_bytes = gauge("queue_bytes", "Bytes of input waiting in the queue.")
        self.queue_limit = gauge(
            "queue_limit_rows", "Queue capacity in rows; requests beyond it are rejected."
        )
        self.batch_limit = gauge("batch_limit_rows", "Current maximum of rows in a batch.")

        # Runs.
        self.rows = counter("rows", "Rows run, padding excluded.")
        self.padding_rows = counter("padding_rows", "Padding rows added to reach a batch size.")
        self.run_failures = RunFailureMetrics(registry, VERSION_LABELS)
        self.batch_rows = histogram("batch_rows", "Rows in a run, padding excluded.", ROWS_BUCKETS)
        self.batch_requests = histogram("batch_requests", "Requests in a run.", ROWS_BUCKETS)
        self.run_seconds = histogram(
            "run_duration_seconds", "Duration of a run of the model, joining the inputs included."
        )
        self.run_ratio = histogram(
            "run_predicted_ratio", "Ratio of actual to predicted run duration.", RATIO_BUCKETS
        )
        self.predicted_seconds = gauge(
            "run_predicted_seconds",
            "Predicted duration of a run with this number of rows.",
            ("model", "version", "rows"),
        )
        self.overdue_runs = gauge(
            "overdue_runs",
            "Runs in progress that have taken ten times as long as predicted, and over a second: "
            "they no longer count for the slots of the device.",
        )
        self.inline = gauge("inline", "1 if the model runs inline on the transport thread, else 0.")

        # Models.
        self.info = gauge(
            "model_info",
            "1 for each ready model, with its task and the ONNX Runtime provider that runs it.",
            ("model", "version", "task", "provider"),
        )
        self.nodes, self.run_methods, self.sequence_info = (
            gauge(
                "model_nodes",
                "Graph nodes of the model by the ONNX Runtime provider that runs them.",
                ("model", "version", "provider"),
            ),
            gauge(
                "model_run_method",
                "1 for how the model's batches run on a device, by the number of rows: plain, "
                "bound (memory that stays) or graph (CUDA graphs).",
                ("model", "version", "device", "method"),
            ),
            gauge(
                "model_sequence_info",
                "1 for each ready model with recurrent layers, with how sequences of different "
                "lengths share runs (equal_lengths: they do not), the reason, and why it has no "
                "state.",
                ("model", "version", "method", "reason", "stateless_reason"),
            ),
        )
        self.degraded = gauge(
            "model_degraded", "1 if the model runs elsewhere than requested (CPU instead of GPU)."
        )
        self.loads = counter("loads", "Loads of model versions by outcome.", ("model", "outcome"))
        self.load_seconds = histogram(
            "load_duration_seconds",
            "Duration of loading and warming up a version, failed loads included.",
            LOAD_SECONDS_BUCKETS,
            ("model",),
        )
        self.warm_up_seconds = histogram(
            "warm_up_duration_seconds",
            "Duration of a version's warm-up runs (part of its load).",
            LOAD_SECONDS_BUCKETS,
            ("model",),
        )
        self.loading, self.devices, self.sessions, self.sequences, self.objectives = (
            LoadingCollector(),
            DeviceMetrics(registry, VERSION_LABELS),
            SessionMetrics(registry, VERSION_LABELS),
            SequenceMetrics(registry, VERSION_LABELS),
            ObjectiveMetrics(registry, VERSION_LABELS),
        )
        registry.register(self.loading)
        registry.register(RunPhaseCollector(self._copy_run_statistics))

        # The process.
        self.serving = gauge("serving", "1 while the server's health is SERVING, else 0.", ())
        self.transport = gauge("transport_info", "1 for the gRPC transport in use.", ("transport",))
        self.build = gauge(
            "build_info",
            "1, with the versions of the server and of its main dependencies.",
            ("version", "python", "onnxruntime", "grpcio"),
        )
        self.spans = counter(
            "trace_spans", "Trace spans sent to the collector or lost, by outcome.", ("outcome",)
        )
        for outcome in ("sent", "lost"):
            self.spans.labels(outcome)

        self._version_series: list[_VersionSeries] = [
            *(self.requests, self.rows, self.padding_rows, self.batch_rows),
            *(self.batch_requests, self.request_seconds, self.queue_seconds, self.run_seconds),
            *(self.run_ratio, self.predicted_seconds, self.batch_limit, self.inline),
            *(self.overdue_runs, *self.run_failures.version_series, *self.devices.version_series),
            *(self.queue_rows, self.queue_age, self.queue_bytes, self.queue_limit, self.info),
            *(self.shadows, self.nodes, self.degraded, self.displaced_requests, self.run_methods),
            self.sequence_info,
            *self.sessions.version_series,
            *self.sequences.version_series,
            *self.objectives.version_series,
        ]

    def for_version(self, name: str, version: int) -> "ModelMetrics":
        """Return the series of a version; they exist until every caller has released them.

        A version that is being reloaded shares them with the one that it replaces.
        """
        key = name, str(version)
        with self._versions_lock:
            self._reference_counts[key] += 1
            run_statistics = self._run_statistics.setdefault(key, RunStatistics())
        return ModelMetrics(self, *key, run_statistics)

    def release_version(self, name: str, version: str) -> None:
        """Drop one reference to the version's series; the last one removes them."""
        key = name, version
        with self._versions_lock:
            self._reference_counts[key] -= 1
            if self._reference_counts[key] > 0:
                return
            del self._reference_counts[key]
            del self._run_statistics[key]
            self._queues.pop(key, None)
            for series in self._version_series:
                series.remove_by_labels({"model": name, "version": version})

    def forget_model(self, name: str) -> None:
        """Remove the load series of a model that has no versions left.

        Otherwise models that are added and removed would accumulate on the page.
        """
        for series in (self.load_seconds, self.warm_up_seconds, self.loads):
            series.remove_by_labels({"model": name})

    def watch_queue(self, name: str, version: str, queue: ObservedQueue) -> None:
        """Count the requests in the queue of a version, in place of one that it replaces."""
        with self._versions_lock:
            if self._reference_counts[name, version] > 0:
                self._queues[name, version] = queue

    def watch_connections(self, connections: ConnectionState) -> None:
        """Report the connections of the transport whenever the metrics are read."""
        self._connections.watch(connections)

    def record_closed_connection(self, reason: str) -> None:
        """Count a connection that was closed because there were too many."""
        self._connections.closed_connections.labels(reason).inc()

    def record_rejection(self, error: Exception) -> None:
        """Count a call that ended before its request reached a model, if `error` has a reason."""
        if (reason := REJECTION_REASONS.get(type(error))) is not None:
            self._connections.rejected_calls.labels(reason).inc()

    def record_load(self, name: str, seconds: float, *, ok: bool) -> None:
        """Count one load of a version of the model, and its duration."""
        self.loads.labels(name, "ok" if ok else "failed").inc()
        self.load_seconds.labels(name).observe(seconds)

    def record_shadow(self, name: str, version: str, outcome: str) -> None:
        """Count one copied request, unless the version was released.

        After that, counting would add its series again, and nothing would remove it.
        """
        with self._versions_lock:
            if self._reference_counts[name, version] > 0:
                self.shadows.labels(name, version, outcome).inc()

    def record_device_use(
        self, name: str, version: str, device: str, batches: int, seconds: float
    ) -> None:
        """Count batches of a version on a GPU, unless it was released; see `record_shadow`.

        A run that was abandoned on a device that is lost may end after that.
        """
        with self._versions_lock:
            if self._reference_counts[name, version] > 0:
                self.devices.runs.labels(name, version, device).inc(batches)
                self.devices.seconds.labels(name, version, device).inc(seconds)

    def watch_versions(self, list_versions: Callable[[], Iterable[VersionInfo]]) -> None:
        """Add the state of every version, read at each scrape."""
        self.registry.register(VersionStateCollector(list_versions))

    def watch_devices(self, list_devices: Callable[[], Iterable[DeviceInfo]]) -> None:
        """Report the GPUs that models are loaded on, as they are at each scrape."""
        self.devices.list_devices = list_devices

    def watch_stalls(self, list_rates: Callable[[], Iterable[tuple[float, float]]]) -> None:
        """Add how often the process is stalled: durations, and the stalls a second as long."""
        self.registry.register(StallCollector(list_rates))

    def watch_process(
        self, gpus: GpuCollector | None = None, *, triton_metrics: bool = False
    ) -> None:
        """Add what the process and the machine's GPUs use, read at each scrape.

        With `triton_metrics`, add Triton's metrics, too.
        """
        ProcessCollector(registry=self.registry)
        GCCollector(self.registry)
        gpus = gpus or GpuCollector()
        self.registry.register(gpus)
        if triton_metrics:
            self.add_triton_metrics(gpus)
        self.registry.register(MemoryLimitCollector())
        self.registry.register(LogLineCollector(logs.lines_not_written))

    def add_triton_metrics(self, gpus: GpuCollector) -> None:
        """Add Triton's names for the counts of all versions, and for the gauges of GPUs."""
        self.registry.register(TritonMetricsCollector(self._list_totals, gpus))

    def _list_totals(self) -> list[VersionTotals]:
        with self._versions_lock:
            versions = [
                (key, statistics, self._queues.get(key))
                for key, statistics in self._run_statistics.items()
            ]
        return [
            VersionTotals(
                *key,
                *self.request_seconds.total(*key),
                self.queue_seconds.total(*key)[1],
                statistics.total(),
                queue.request_count if queue is not None else 0,
            )
            for key, statistics, queue in versions
        ]

    def _copy_run_statistics(self) -> dict[tuple[str, str], RunStatistics]:
        with self._versions_lock:
            return dict(self._run_statistics)


class ModelMetrics:
    """The series of one version of one model, with their labels looked up once."""

    def __init__(
        self, metrics: Metrics, name: str, version: str, run_statistics: RunStatistics
    ) -> None:
        self._metrics = metrics
        self._labels = (name, version)
        self.run_statistics = run_statistics
        self.outcomes = _outcome_counters(metrics.requests, name, version)
        self._request_seconds = metrics.request_seconds.series(
            *self._labels, self.outcomes["ok"].inc
        )
        failures = metrics.run_failures
        self.terminated_runs = failures.terminated_runs.labels(*self._labels)
        self.out_of_memory_runs = failures.out_of_memory_runs.labels(*self._labels)
        self.displaced_requests = metrics.displaced_requests.labels(*self._labels)
        self.dropped_requests = metrics.objectives.dropped_requests.labels(*self._labels)
        self.inline = metrics.inline.labels(*self._labels)
        self.overdue_runs = metrics.overdue_runs.labels(*self._labels)
        self._rows = metrics.rows.labels(*self._labels)
        self._padding_rows = metrics.padding_rows.labels(*self._labels)
        self._batch_rows = metrics.batch_rows.labels(*self._labels)
        self._batch_requests = metrics.batch_requests.labels(*self._labels)
        self._queue_seconds = metrics.queue_seconds.series(*self._labels)
        self._run_seconds = metrics.run_seconds.labels(*self._labels)
        self._run_ratio = metrics.run_ratio.labels(*self._labels)
        self._warm_up_seconds = metrics.warm_up_seconds.labels(name)

    @cached_property
    def sessions(self) -> VersionSessionMetrics:
        """The series of sessions; they exist once this is read, of a model that has a state."""
        return VersionSessionMetrics(self._metrics.sessions, *self._labels)

    @cached_property
    def sequences(self) -> VersionSequenceMetrics:
        """The series of sequences; they exist once this is read, of a recurrent model."""
        return VersionSequenceMetrics(self._metrics.sequences, *self._labels)

    @cached_property
    def objective(self) -> VersionObjectiveMetrics:
        """The series of the objective; they exist once this is read, of a model that has one."""
        return VersionObjectiveMetrics(self._metrics.objectives, *self._labels)

    @cached_property
    def _retry_after(self) -> Histogram:
        return self._metrics.objectives.retry_after.labels(*self._labels)

    @property
    def request_totals(self) -> tuple[int, float]:
        """Number of successful requests, and their total seconds."""
        return self._request_seconds.total

    @property
    def queue_totals(self) -> tuple[int, float]:
        """Number of requests that have left the queue, and their total seconds in it."""
        return self._queue_seconds.total

    def record_request(self, outcome: str, seconds: float) -> None:
        """Count one finished request; `seconds` last from its bytes to its response or error."""
        if outcome == "ok":  # the histogram counts it when it is flushed
            self._request_seconds.observe(seconds)
        else:
            self.run_statistics.record_failure(outcome, seconds)
            self.outcomes[outcome].inc()

    def record_error(self, error: NeuronaError, seconds: float) -> None:
        """Count one request that ended with an error; `seconds` are those of `record_request`."""
        self.record_request(error.outcome, seconds)
        if isinstance(error, QueueFullError):
            self._retry_after.observe(error.retry_after)

    def record_objective(self, met: int, missed: int) -> None:
        """Count requests of a model with a latency objective that have left a batch.

        Args:
            met: Those answered within the objective, and before their deadlines.
            missed: Those answered later, and those that were dropped or expired once admitted.
                Requests that were cancelled, or failed for another reason, are neither.
        """
        self.objective.record(met, missed)

    def record_exemplar(self, seconds: float, trace_id: str) -> None:
        """Attach a trace to the histogram bucket of a successful request of this duration."""
        self._request_seconds.record_exemplar(seconds, trace_id)

    def record_queue_waits(self, waits: Sequence[float]) -> None:
        """Record the seconds that each request of a new batch spent in the queue."""
        self._queue_seconds.observe_all(waits)

    def record_run(
        self,
        rows: int,
        requests: int,
        padding: int,
        seconds: tuple[float, float, float],
        predicted: float,
    ) -> None:
        """Count one run of `rows` plus `padding` rows.

        `seconds` are those of joining the inputs, of the run and of splitting the outputs;
        `predicted` is 0.0 if there was no prediction.
        """
        self.run_statistics.record_run(rows, requests, *seconds)
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._batch_requests.observe(requests)
        join_and_run = seconds[0] + seconds[1]
        self._run_seconds.observe(join_and_run)
        if padding:
            self._padding_rows.inc(padding)
        if predicted:
            self._run_ratio.observe(join_and_run / predicted)

    def record_device_use(self, device: str, batches: int, seconds: float) -> None:
        """Count batches that ran on a GPU one after the other, and their seconds together."""
        self._metrics.record_device_use(*self._labels, device, batches, seconds)

    def record_shadow(self, outcome: str) -> None:
        """Count one request copied to this version as a shadow."""
        self._metrics.record_shadow(*self._labels, outcome)

    def record_warm_up(self, seconds: float) -> None:
        """Record the duration of the runs before the version served."""
        self._warm_up_seconds.observe(seconds)

    def record_placement(self, nodes: Mapping[str, int], degraded: bool) -> None:
        """Set how many graph nodes each provider runs."""
        self._remove_series(self._metrics.nodes)  # the replaced version may have other providers
        for provider, count in nodes.items():
            self._metrics.nodes.labels(*self._labels, provider).set(count)
        self._metrics.degraded.labels(*self._labels).set(degraded)

    def set_model_info(self, task: str, provider: str) -> None:
        """Set the info series of a version that is ready."""
        self._remove_series(self._metrics.info)
        self._metrics.info.labels(*self._labels, task, provider).set(1)

    def set_run_methods(self, methods: Mapping[str, str]) -> None:
        """Set how batches run, by device."""
        self._remove_series(self._metrics.run_methods)
        for device, method in methods.items():
            self._metrics.run_methods.labels(*self._labels, device, method).set(1)

    def set_sequence_info(self, method: str, reason: str, stateless_reason: str) -> None:
        """Set how a recurrent model serves sequences, and why not in another way."""
        self._remove_series(self._metrics.sequence_info)
        labels = (*self._labels, method.lower(), reason, stateless_reason)
        self._metrics.sequence_info.labels(*labels).set(1)

    def set_objective(self, seconds: float | None) -> None:
        """Set the latency objective of a version that is ready, None if it has none."""
        # The replaced version may have had one, whose requests are counted no more.
        self._remove_series(self._metrics.objectives.seconds)
        if seconds is not None:
            self._metrics.objectives.seconds.labels(*self._labels).set(seconds)
            self.objective  # noqa: B018  its counters begin at 0, or the first would be lost

    def watch_batching(self, queue: ObservedQueue, cost_model: ObservedCostModel) -> None:
        """Make the gauges of queue and predictions read at each scrape."""
        labels = self._labels
        self._metrics.watch_queue(*labels, queue)
        self._metrics.queue_rows.labels(*labels).set_function(lambda: queue.rows)
        self._metrics.queue_age.labels(*labels).set_function(queue.oldest_age)
        self._metrics.queue_bytes.labels(*labels).set_function(lambda: queue.nbytes)
        self._metrics.queue_limit.labels(*labels).set_function(lambda: queue.max_rows)
        self._metrics.batch_limit.labels(*labels).set_function(lambda: queue.max_batch_rows)
        # The replaced version may have other batch sizes.
        self._remove_series(self._metrics.predicted_seconds)
        for batch_size in cost_model.batch_sizes:
            gauge = self._metrics.predicted_seconds.labels(*labels, str(batch_size))
            gauge.set_function(partial(_predicted_seconds, cost_model, batch_size))

    def release(self) -> None:
        """Give the series up; see `Metrics.release_version`."""
        self._metrics.release_version(*self._labels)

    def _remove_series(self, gauge: Gauge) -> None:
        name, version = self._labels
        gauge.remove_by_labels({"model": name, "version": version})


def _predicted_seconds(cost_model: ObservedCostModel, batch_size: int) -> float:
    return cost_model.seconds.get(batch_size, math.nan)


def _outcome_counters(requests: Counter, name: str, version: str) -> dict[str, Counter]:
    return {outcome: requests.labels(name, version, outcome) for outcome in OUTCOMES}
