"""The page of metrics of several processes: requested from each when it is read, and merged."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.processes.snapshot import (
    FamilySnapshot,
    Labels,
    MetricsSnapshot,
    Series,
    snapshot_of,
    take_snapshot,
    to_metrics,
)
from neurona_server.processes.worker_handle import WorkerHandle
from neurona_server.telemetry import logs
from neurona_server.telemetry.collectors import LogLineCollector
from neurona_server.telemetry.objective_metrics import (
    MET_RATIO,
    OBJECTIVE_REQUESTS,
    MetRatioWindow,
    count_results,
    met_ratio_metric,
)
from neurona_server.web import endpoints

CUMULATIVE_KINDS = ("counter", "histogram", "summary")

PROCESS_LABEL = "process"
"""Label of series that are not merged: the number of the worker, or SUPERVISOR."""

SUPERVISOR = "supervisor"
"""Value of PROCESS_LABEL for the memory and CPU time of the supervisor itself."""

REPORT_TIMEOUT = 3.0
"""Seconds for all processes to report; for one that does not, its last report counts."""


def _largest(one: float, other: float) -> float:
    return one if math.isnan(other) else other if math.isnan(one) else max(one, other)


def _smallest(one: float, other: float) -> float:
    return min(one, other)


def _sum(one: float, other: float) -> float:
    return one + other


Rule = Callable[[float, float], float]

MERGE_RULES: Mapping[str, Rule] = {
    "neurona_queue_rows": _sum,
    "neurona_queue_bytes": _sum,
    "neurona_queue_limit_rows": _sum,
    "neurona_queue_oldest_seconds": _largest,
    "neurona_version_loading_seconds": _largest,
    "neurona_open_streams": _sum,
    "neurona_sessions_open": _sum,
    "neurona_overdue_runs": _sum,
    "neurona_connections": _sum,
    "neurona_buffered_bytes": _sum,
    "neurona_serving": _sum,
    "process_resident_memory_bytes": _sum,
    "process_virtual_memory_bytes": _sum,
    "neurona_memory_limit_bytes": _largest,
    "process_open_fds": _largest,
    "process_max_fds": _smallest,
    "process_start_time_seconds": _smallest,
    # The same in each process, or true of the server as soon as it is true of one process.
    "neurona_model_info": _largest,
    "neurona_model_nodes": _largest,
    "neurona_model_degraded": _largest,
    "neurona_transport_info": _largest,
    "neurona_version_state": _largest,
    "neurona_version_label": _largest,
    "neurona_version_problem": _largest,
    "neurona_version_share_ratio": _largest,
    "neurona_build_info": _largest,
    "neurona_device_info": _largest,
    "neurona_device_lost": _largest,
    "neurona_model_run_method": _largest,
    "neurona_model_sequence_info": _largest,
    "neurona_latency_objective_seconds": _largest,
    "neurona_device_runs_in_progress": _sum,
    # All processes read the same GPUs, at slightly different times.
    "neurona_gpu_utilization_ratio": _largest,
    "neurona_gpu_memory_used_bytes": _largest,
    "neurona_gpu_memory_total_bytes": _largest,
    "neurona_gpu_power_watts": _largest,
    # With the option triton_metrics.
    "nv_inference_pending_request_count": _sum,
    "nv_gpu_utilization": _largest,
    "nv_gpu_memory_used_bytes": _largest,
    "nv_gpu_memory_total_bytes": _largest,
    "nv_gpu_power_usage": _largest,
}
"""How gauges are merged. Other gauges keep one series per process: a measurement of one process,
like the predicted duration of its runs, says nothing about the others."""

PER_PROCESS_GAUGES = (
    "neurona_run_predicted_seconds",
    "neurona_batch_limit_rows",
    "neurona_inline",
    "neurona_stalls_per_second",
)
"""The gauges that are not merged."""

DERIVED_GAUGES = (MET_RATIO,)
"""The gauges that are computed from merged counters: a ratio of several processes is not one of
their ratios. A test checks that each gauge has one of the three."""

PER_PROCESS_COPIES: Mapping[str, str] = {
    "process_resident_memory_bytes": "neurona_process_resident_memory_bytes",
    "process_cpu_seconds": "neurona_process_cpu_seconds",
}
"""Merged metrics that are exported per process too, under a second name."""


class MultiprocessCollector(Collector):
    """Collects the merged metrics of all workers. Any thread may call any method."""

    def __init__(self, processes: int) -> None:
        self.stopping = False
        self._has_served = False
        self._restarts = 0
        self._processes = processes
        self._workers: dict[WorkerHandle, None] = {}
        self._merger = SnapshotMerger(label_gauges=processes > 1)
        self._supervisor_registry = CollectorRegistry()
        ProcessCollector(registry=self._supervisor_registry)
        self._supervisor_registry.register(LogLineCollector(logs.lines_not_written))
        # The supervisor serves nothing itself, but the series must exist without any worker.
        text = "1 while the server's health is SERVING, else 0."
        Gauge("neurona_serving", text, registry=self._supervisor_registry)
        self._lock = threading.Lock()
        self._collecting = threading.Lock()

    def add(self, worker: WorkerHandle) -> None:
        """Request reports from a new worker."""
        with self._lock:
            self._workers[worker] = None

    def replace(self, worker: WorkerHandle, snapshot: MetricsSnapshot) -> None:
        """Store a new report of a worker."""
        with self._lock:
            self._merger.replace(worker, str(worker.number), snapshot)

    def remove(self, worker: WorkerHandle) -> None:
        """Remove a worker that has ended; its counts stay."""
        with self._lock:
            self._workers.pop(worker, None)
            self._merger.remove(worker)

    def state(self) -> str:
        """Return STARTING, SERVING (as soon as one worker serves) or NOT_SERVING."""
        if self.stopping:
            return endpoints.NOT_SERVING
        serving = any(worker.is_serving for worker in list(self._workers))
        self._has_served = self._has_served or serving
        if serving:
            return endpoints.SERVING
        return endpoints.NOT_SERVING if self._has_served else endpoints.STARTING

    def record_restart(self) -> None:
        """Count a worker that was started because another one had died."""
        self._restarts += 1

    def collect(self) -> Iterable[Metric]:
        deadline = time.monotonic() + REPORT_TIMEOUT
        with self._collecting:
            with self._lock:
                workers = list(self._workers)
            for worker in workers:
                worker.request_report()
            reported = [worker.wait_for_report(deadline) for worker in workers]
            ready = [worker for worker in workers if worker.ready_since]
            with self._lock:
                # A worker that is starting, or will replace one that has just ended, may be about
                # to load a version that no other has now.
                unchanged = workers == list(self._workers)
                if all(reported) and unchanged and len(ready) == len(workers) >= self._processes:
                    self._merger.forget_versions()
                self._merger.replace(self, SUPERVISOR, take_snapshot(self._supervisor_registry))
                merged = self._merger.merge()
        states = GaugeMetricFamily(
            "neurona_processes", "Worker processes by state: serving or starting.", labels=["state"]
        )
        states.add_metric(["serving"], len(ready))
        states.add_metric(["starting"], len(workers) - len(ready))
        restarts = CounterMetricFamily(
            "neurona_process_restarts", "Worker processes started because another one had died."
        )
        restarts.add_metric([], self._restarts)
        return [*to_metrics(merged), states, restarts]


class SnapshotMerger:
    """Merges the newest snapshots of all processes. Not safe for threads.

    Counts of processes that have ended are kept, so that no merged counter ever falls.
    """

    def __init__(
        self, *, label_gauges: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a merger without snapshots.

        Args:
            label_gauges: Give the gauges that are not merged the label PROCESS_LABEL. Not for one
                process, whose metrics have the names that they have without a supervisor.
            clock: Returns the seconds by which the shares of the last minutes are measured.
        """
        self._label_gauges = label_gauges
        self._snapshots: dict[object, tuple[str, MetricsSnapshot]] = {}
        self._past: MetricsSnapshot = {}
        self._met_ratios = MetRatioWindow(clock)

    def replace(self, key: object, process: str, snapshot: MetricsSnapshot) -> None:
        """Store the newest snapshot of a process.

        Args:
            key: Identifies the process; a restarted one has another key.
            process: Value of PROCESS_LABEL for its series that are not merged.
            snapshot: Its metrics.
        """
        self._keep_past(self._snapshots.get(key, ("", {}))[1], snapshot)
        self._snapshots[key] = process, snapshot

    def remove(self, key: object) -> None:
        """Remove a process that has ended; its counts stay."""
        self._keep_past(self._snapshots.pop(key, ("", {}))[1], {})

    def forget_versions(self) -> None:
        """Drop past counts of models and versions that no process has any more.

        A single process removes the series of a version that is unloaded, too.
        """
        served = {
            version
            for _, snapshot in self._snapshots.values()
            for family in snapshot.values()
            for labels in family.series
            if (version := _version_labels(labels))
        }
        for family in self._past.values():
            for labels in list(family.series):
                version = _version_labels(labels)
                if version and version not in served:
                    del family.series[labels]

    def merge(self) -> MetricsSnapshot:
        """Return the metrics of all processes together."""
        total: MetricsSnapshot = {}
        for process, snapshot in self._snapshots.values():
            for name, family in snapshot.items():
                if name in DERIVED_GAUGES:
                    continue
                if copy := PER_PROCESS_COPIES.get(name):
                    _add_per_process(total, name, copy, family, process)
                merged = total.setdefault(name, FamilySnapshot(family.text, family.kind))
                if family.kind in CUMULATIVE_KINDS:
                    _merge_family(merged, family, _sum)
                elif rule := MERGE_RULES.get(name):
                    _merge_family(merged, family, rule)
                elif not self._label_gauges:  # two processes while one replaces the other
                    _merge_family(merged, family, _largest)
                else:
                    _add_per_process(total, name, name, family, process)
        for name, family in self._past.items():
            merged = total.setdefault(name, FamilySnapshot(family.text, family.kind))
            _merge_family(merged, family, _sum)
        if requests := total.get(OBJECTIVE_REQUESTS):
            total |= snapshot_of([self._met_ratio(requests)])
        return total

    def _met_ratio(self, requests: FamilySnapshot) -> Metric:
        """Return the share of requests that met their objective, of all processes together."""
        counts = count_results(
            (dict(labels), value)
            for labels, series in requests.series.items()
            for value in series.values()
        )
        return met_ratio_metric(self._met_ratios.update(counts))

    def _keep_past(self, old: MetricsSnapshot, new: MetricsSnapshot) -> None:
        """Add the counts of series that have ended, or restarted from zero, to the past."""
        for name, family in old.items():
            if family.kind not in CUMULATIVE_KINDS:
                continue
            current = new[name].series if name in new else {}
            ended = {
                labels: series
                for labels, series in family.series.items()
                if _has_fallen(series, current.get(labels, {}))
            }
            if ended:
                past = self._past.setdefault(name, FamilySnapshot(family.text, family.kind))
                _merge_family(past, FamilySnapshot(family.text, family.kind, ended), _sum)


def _add_per_process(
    total: MetricsSnapshot, name: str, new_name: str, family: FamilySnapshot, process: str
) -> None:
    """Add the series of one process under `new_name`, with its number as a label."""
    target = total.setdefault(new_name, FamilySnapshot(family.text, family.kind))
    for labels, series in family.series.items():
        renamed = {
            (new_name + sample.removeprefix(name), bound): value
            for (sample, bound), value in series.items()
        }
        target.series[tuple(sorted((*labels, (PROCESS_LABEL, process))))] = renamed


def _merge_family(into: FamilySnapshot, family: FamilySnapshot, rule: Rule) -> None:
    for labels, series in family.series.items():
        target = into.series.setdefault(labels, {})
        for key, value in series.items():
            target[key] = rule(target[key], value) if key in target else value
    for place, exemplar in family.exemplars.items():  # the newest wins
        other = into.exemplars.get(place, exemplar)
        into.exemplars[place] = max(exemplar, other, key=lambda one: one[2])


def _has_fallen(old: Series, new: Series) -> bool:
    """Return whether any sample of a series has fallen.

    A series is kept as a whole: if only some of its buckets were added up, they would not be
    cumulative any more.
    """
    return any(new.get(key, -math.inf) < value for key, value in old.items())


def _version_labels(labels: Iterable[tuple[str, str]]) -> Labels:
    """Return the labels that name a model and version; () if there are none, or if empty."""
    return tuple(item for item in labels if item[0] in ("model", "version") and item[1])
