"""The page of metrics of several processes: theirs, asked for when it is read, merged."""

import threading
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server import metrics_page
from neurona_server.merged_metrics import Merged
from neurona_server.metrics_page import Page
from neurona_server.web import paths
from neurona_server.worker_process import WorkerProcess

SUPERVISOR = "supervisor"
"""The label `process` of its own memory and CPU time: it is one of the processes."""

PATIENCE = 3.0
"""Seconds for all processes to answer in; of one that does not, the last page counts."""


class GatheredPages(Collector):
    """Any thread may call."""

    def __init__(self, processes: int) -> None:
        self.stopping = False
        self._served = False
        self._restarts = 0
        self._processes = processes
        self._workers: dict[WorkerProcess, None] = {}
        self._merged = Merged()
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)
        # It serves nothing itself; but that nobody serves must be told while no worker is there.
        text = "1 while the server is SERVING by its health, else 0."
        Gauge("neurona_serving", text, registry=self._own)
        self._changing = threading.Lock()
        self._reading = threading.Lock()

    def add(self, worker: WorkerProcess) -> None:
        with self._changing:
            self._workers[worker] = None

    def replace(self, worker: WorkerProcess, page: Page) -> None:
        with self._changing:
            self._merged.replace(worker, str(worker.number), page)

    def remove(self, worker: WorkerProcess) -> None:
        with self._changing:
            self._workers.pop(worker, None)
            self._merged.remove(worker)

    def state(self) -> str:
        """STARTING, SERVING or NOT_SERVING, of all together: SERVING as soon as one does."""
        if self.stopping:
            return paths.NOT_SERVING
        serving = any(worker.ready_since for worker in list(self._workers))
        self._served = self._served or serving
        if serving:
            return paths.SERVING
        return paths.NOT_SERVING if self._served else paths.STARTING

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
                self._merged.replace(self, SUPERVISOR, metrics_page.read(self._own))
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
        return [*metrics_page.metrics(page), states, restarts]
