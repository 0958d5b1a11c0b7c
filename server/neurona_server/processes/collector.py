"""The page of metrics of several processes: theirs, asked for when it is read, merged."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.processes import snapshot
from neurona_server.processes.snapshot import FamilySnapshot, Labels, MetricsSnapshot, Series
from neurona_server.processes.worker_handle import WorkerHandle
from neurona_server.web import endpoints

COUNTS = ("counter", "histogram", "summary")
PROCESS = "process"
"""The label of series that are each process's own."""


def _largest(one: float, other: float) -> float:
    return one if math.isnan(other) else other if math.isnan(one) else max(one, other)


def _smallest(one: float, other: float) -> float:
    return min(one, other)


def _sum(one: float, other: float) -> float:
    return one + other


Rule = Callable[[float, float], float]

RULES: Mapping[str, Rule] = {
    "neurona_queue_rows": _sum,
    "neurona_queue_bytes": _sum,
    "neurona_queue_limit_rows": _sum,
    "neurona_queue_oldest_seconds": _largest,
    "neurona_version_loading_seconds": _largest,
    "neurona_open_streams": _sum,
    "neurona_serving": _sum,
    "process_resident_memory_bytes": _sum,
    "process_virtual_memory_bytes": _sum,
    "neurona_memory_limit_bytes": _largest,
    "process_open_fds": _largest,
    "process_max_fds": _smallest,
    "process_start_time_seconds": _smallest,
    # The same in each process, or true of the whole as soon as it is true of one.
    "neurona_model_info": _largest,
    "neurona_model_nodes": _largest,
    "neurona_model_degraded": _largest,
    "neurona_transport_info": _largest,
    "neurona_version_state": _largest,
    "neurona_version_label": _largest,
    "neurona_version_problem": _largest,
    "neurona_version_share_ratio": _largest,
    "neurona_build_info": _largest,
    # All look at the same GPUs, at slightly different times.
    "neurona_gpu_utilization_ratio": _largest,
    "neurona_gpu_memory_used_bytes": _largest,
    "neurona_gpu_memory_total_bytes": _largest,
    "neurona_gpu_power_watts": _largest,
}
"""How gauges are merged. One that is not here has the number of its process as a label: what a
process has measured itself, like the cost of runs, is no other's."""

OF_EACH_PROCESS = ("neurona_run_predicted_seconds", "neurona_batch_limit_rows", "neurona_inline")
"""For whoever adds a gauge: it stands here or in RULES (a test looks)."""

ALSO_OF_EACH: Mapping[str, str] = {
    "process_resident_memory_bytes": "neurona_process_resident_memory_bytes",
    "process_cpu_seconds": "neurona_process_cpu_seconds",
}
"""What is not only merged: by which name each process has it for itself, too."""


class SnapshotMerger:
    """Sums over pages that are replaced, again and again. Not safe for threads."""

    def __init__(self) -> None:
        self._pages: dict[object, tuple[str, MetricsSnapshot]] = {}
        self._past: MetricsSnapshot = {}

    def replace(self, key: object, process: str, page: MetricsSnapshot) -> None:
        """The newest page of who has that key; `process` is the label of its own gauges."""
        self._keep(self._pages.get(key, ("", {}))[1], page)
        self._pages[key] = process, page

    def remove(self, key: object) -> None:
        """It is gone; what it has counted stays."""
        self._keep(self._pages.pop(key, ("", {}))[1], {})

    def forget_versions(self) -> None:
        """What was counted for models and versions that no process knows any more. As in a single
        process, their series go with them."""
        known = {
            version
            for _, page in self._pages.values()
            for family in page.values()
            for labels in family.series
            if (version := _version(labels))
        }
        for family in self._past.values():
            for labels in list(family.series):
                version = _version(labels)
                if version and version not in known:
                    del family.series[labels]

    def page(self) -> MetricsSnapshot:
        total: MetricsSnapshot = {}
        for process, page in self._pages.values():
            for name, family in page.items():
                if own := ALSO_OF_EACH.get(name):
                    _add_own(total, name, own, family, process)
                merged = total.setdefault(name, FamilySnapshot(family.text, family.kind))
                if family.kind in COUNTS:
                    _merge(merged, family, _sum)
                elif rule := RULES.get(name):
                    _merge(merged, family, rule)
                else:
                    _add_own(total, name, name, family, process)
        for name, family in self._past.items():
            _merge(total.setdefault(name, FamilySnapshot(family.text, family.kind)), family, _sum)
        return total

    def _keep(self, old: MetricsSnapshot, new: MetricsSnapshot) -> None:
        """What was counted in series that have ended, or begun again, since."""
        for name, family in old.items():
            if family.kind not in COUNTS:
                continue
            now = new[name].series if name in new else {}
            ended = {
                labels: series
                for labels, series in family.series.items()
                if _has_fallen(series, now.get(labels, {}))
            }
            if ended:
                past = self._past.setdefault(name, FamilySnapshot(family.text, family.kind))
                _merge(past, FamilySnapshot(family.text, family.kind, ended), _sum)


def _add_own(
    total: MetricsSnapshot, name: str, new_name: str, family: FamilySnapshot, process: str
) -> None:
    """A process's own series, with its number as a label."""
    own = total.setdefault(new_name, FamilySnapshot(family.text, family.kind))
    for labels, series in family.series.items():
        renamed = {
            (new_name + sample.removeprefix(name), bound): value
            for (sample, bound), value in series.items()
        }
        own.series[tuple(sorted((*labels, (PROCESS, process))))] = renamed


def _merge(into: FamilySnapshot, family: FamilySnapshot, rule: Rule) -> None:
    for labels, series in family.series.items():
        own = into.series.setdefault(labels, {})
        for point, value in series.items():
            own[point] = rule(own[point], value) if point in own else value
    for place, exemplar in family.exemplars.items():  # the newest is shown
        other = into.exemplars.get(place, exemplar)
        into.exemplars[place] = max(exemplar, other, key=lambda one: one[2])


def _has_fallen(old: Series, new: Series) -> bool:
    """Looked at together: buckets of which some are added up and some are not would not be
    cumulative any more."""
    return any(new.get(point, -math.inf) < value for point, value in old.items())


def _version(labels: Iterable[tuple[str, str]]) -> Labels:
    """The labels that name a model or one of its versions; () if they do not, or name none."""
    return tuple(item for item in labels if item[0] in ("model", "version") and item[1])


SUPERVISOR = "supervisor"
"""The label `process` of its own memory and CPU time: it is one of the processes."""

PATIENCE = 3.0
"""Seconds for all processes to answer in; of one that does not, the last page counts."""


class MultiprocessCollector(Collector):
    """Any thread may call."""

    def __init__(self, processes: int) -> None:
        self.stopping = False
        self._served = False
        self._restarts = 0
        self._processes = processes
        self._workers: dict[WorkerHandle, None] = {}
        self._merged = SnapshotMerger()
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        # It serves nothing itself; but that nobody serves must be told while no worker is there.
        text = "1 while the server is SERVING by its health, else 0."
        Gauge("neurona_serving", text, registry=self._own)
        self._changing = threading.Lock()
        self._reading = threading.Lock()

    def add(self, worker: WorkerHandle) -> None:
        with self._changing:
            self._workers[worker] = None

    def replace(self, worker: WorkerHandle, page: MetricsSnapshot) -> None:
        with self._changing:
            self._merged.replace(worker, str(worker.number), page)

    def remove(self, worker: WorkerHandle) -> None:
        with self._changing:
            self._workers.pop(worker, None)
            self._merged.remove(worker)

    def state(self) -> str:
        """STARTING, SERVING or NOT_SERVING, of all together: SERVING as soon as one does."""
        if self.stopping:
            return endpoints.NOT_SERVING
        serving = any(worker.ready_since for worker in list(self._workers))
        self._served = self._served or serving
        if serving:
            return endpoints.SERVING
        return endpoints.NOT_SERVING if self._served else endpoints.STARTING

    def restarted(self) -> None:
        """A worker was started since one had died."""
        self._restarts += 1

    def collect(self) -> Iterable[Metric]:
        end = time.monotonic() + PATIENCE
        with self._reading:
            with self._changing:
                workers = list(self._workers)
            for worker in workers:
                worker.ask()
            answered = [worker.wait_for_page(end) for worker in workers]
            ready = [worker for worker in workers if worker.ready_since]
            with self._changing:
                # One that starts may be about to load what no other has any more.
                if all(answered) and len(ready) == len(workers) >= self._processes:
                    self._merged.forget_versions()
                self._merged.replace(self, SUPERVISOR, snapshot.read(self._own))
                page = self._merged.page()
        states = GaugeMetricFamily(
            "neurona_processes", "Processes that serve, or are starting.", labels=["state"]
        )
        states.add_metric(["serving"], len(ready))
        states.add_metric(["starting"], len(workers) - len(ready))
        restarts = CounterMetricFamily(
            "neurona_process_restarts", "Processes that were started since one had died."
        )
        restarts.add_metric([], self._restarts)
        return [*snapshot.metrics(page), states, restarts]
