"""Triton's metrics beside the server's own: nv_inference_* and nv_gpu_*, from the same counts.

Dashboards, alerts and autoscalers that were made for Triton go on with them. Names, units and
labels are Triton's. Its counters have no suffix `_total`, which prometheus_client would append: the
page has them as they are (`web.endpoints`).
Source: docs/user_guide/metrics.md of github.com/triton-inference-server/server.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.telemetry.collectors import GPU_LABEL, VERSION_LABELS, GpuCollector
from neurona_server.telemetry.run_statistics import RunCounts

PENDING_REQUESTS = "nv_inference_pending_request_count"

REASONS: Mapping[str, str] = {
    "rejected": "REJECTED",
    "expired": "REJECTED",
    "cancelled": "CANCELED",
    "failed": "BACKEND",
    "invalid": "OTHER",
}
"""Triton's reason of a failed request for each outcome."""

GPU_NAMES: Mapping[str, str] = {
    "neurona_gpu_utilization_ratio": "nv_gpu_utilization",
    "neurona_gpu_memory_used_bytes": "nv_gpu_memory_used_bytes",
    "neurona_gpu_memory_total_bytes": "nv_gpu_memory_total_bytes",
    "neurona_gpu_power_watts": "nv_gpu_power_usage",
}
"""Triton's name of each of the server's gauges of a GPU."""

_MICROSECONDS = 1e6


@dataclass(frozen=True)
class VersionTotals:
    """The counts of one version of a model since its first load."""

    model: str
    version: str
    successes: int
    success_seconds: float
    queue_seconds: float
    runs: RunCounts
    pending: int
    """Requests in the queue."""


class TritonMetricsCollector(Collector):
    """Triton's names for the counts of all versions, and for the gauges of the GPUs."""

    def __init__(
        self, list_totals: Callable[[], Iterable[VersionTotals]], gpus: GpuCollector
    ) -> None:
        self._list_totals = list_totals
        self._gpus = gpus

    def collect(self) -> Iterable[Metric]:
        totals = list(self._list_totals())
        yield from _request_families(totals)
        yield _pending_requests(totals)
        for gauge in self._gpus.collect():
            yield self._rename_gpus(gauge)

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that no GPU is read for their names."""
        gpus = [GaugeMetricFamily(name, "", labels=["gpu_uuid"]) for name in GPU_NAMES.values()]
        return [*_request_families([]), _pending_requests([]), *gpus]

    def _rename_gpus(self, gauge: Metric) -> Metric:
        renamed = GaugeMetricFamily(GPU_NAMES[gauge.name], gauge.documentation, labels=["gpu_uuid"])
        for sample in gauge.samples:
            uuid = self._gpus.uuid(sample.labels[GPU_LABEL])
            renamed.add_metric([uuid], sample.value)
        return renamed


def _pending_requests(totals: Iterable[VersionTotals]) -> Metric:
    family = GaugeMetricFamily(
        PENDING_REQUESTS, "Requests waiting in the queue.", labels=VERSION_LABELS
    )
    for one in totals:
        family.add_metric([one.model, one.version], one.pending)
    return family


def _request_families(totals: Iterable[VersionTotals]) -> list[Metric]:
    success = _counter("request_success", "Successful requests.")
    failure = _counter("request_failure", "Requests that did not succeed, by reason.")
    count = _counter("count", "Rows run, padding excluded.")
    runs = _counter("exec_count", "Runs of the model.")
    request = _duration("request", "of successful requests")
    queue = _duration("queue", "that requests spent in the queue")
    join = _duration("compute_input", "of joining the inputs, for each request")
    run = _duration("compute_infer", "of the runs, for each request")
    split = _duration("compute_output", "of splitting the outputs, for each request")
    for one in totals:
        labels = {"model": one.model, "version": one.version}

        def add(family: Metric, value: float, labels: Mapping[str, str] = labels) -> None:
            family.add_sample(family.name, dict(labels), value)

        sizes = one.runs.sizes
        add(success, one.successes)
        for reason in dict.fromkeys(REASONS.values()):
            failures = [
                n
                for outcome, n in one.runs.failures_by_outcome.items()
                if REASONS[outcome] == reason
            ]
            add(failure, sum(failures), {**labels, "reason": reason})
        add(count, sum([rows * size.runs for rows, size in sizes.items()]))
        add(runs, sum([size.runs for size in sizes.values()]))
        add(request, one.success_seconds * _MICROSECONDS)
        add(queue, one.queue_seconds * _MICROSECONDS)
        add(join, sum([size.request_join for size in sizes.values()]) * _MICROSECONDS)
        add(run, sum([size.request_run for size in sizes.values()]) * _MICROSECONDS)
        add(split, sum([size.request_split for size in sizes.values()]) * _MICROSECONDS)
    return [success, failure, count, runs, request, queue, join, run, split]


def _counter(name: str, text: str) -> Metric:
    return Metric(f"nv_inference_{name}", text, "counter")


def _duration(name: str, text: str) -> Metric:
    return _counter(f"{name}_duration_us", f"Microseconds {text}, all together.")
