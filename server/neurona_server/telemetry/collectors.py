"""Series computed at each scrape: version states, loads in progress, GPUs, memory limit, log."""

import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.resources import memory_limit

log = logging.getLogger(__name__)

VERSION_LABELS = ("model", "version")

GPU_LABEL = "gpu"
"""Its value is the driver's number of the GPU, as nvidia-smi shows it, and for a MIG slice a colon
and the number of the slice, as in "0:1". GPUs that CUDA_VISIBLE_DEVICES hides are numbered too."""


@dataclass(frozen=True)
class VersionInfo:
    """The state of one version of one model at the time of a scrape."""

    model: str
    version: int | str
    """Its number; of what the repository has and is no version, the name of the file or folder."""
    state: str
    labels: Sequence[str] = ()
    problem: bool = False
    share: float | None = None
    """Share, 0 to 1, of the requests that name neither version nor label; None if not loaded."""


class VersionStateCollector(Collector):
    """States, labels, problems and traffic shares of all versions."""

    def __init__(self, list_versions: Callable[[], Iterable[VersionInfo]]) -> None:
        self._list_versions = list_versions

    def collect(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "neurona_version_state",
            "1 for the current state of a version.",
            labels=[*VERSION_LABELS, "state"],
        )
        labels = GaugeMetricFamily(
            "neurona_version_label",
            "1 for each label of a version.",
            labels=[*VERSION_LABELS, "label"],
        )
        problems = GaugeMetricFamily(
            "neurona_version_problem",
            "1 if a version needs attention: it failed, or its files differ from what is served.",
            labels=VERSION_LABELS,
        )
        shares = GaugeMetricFamily(
            "neurona_version_share_ratio",
            "Share of the requests without version or label that go to this version.",
            labels=VERSION_LABELS,
        )
        for info in self._list_versions():
            name = [info.model, str(info.version)]
            states.add_metric([*name, info.state], 1)
            problems.add_metric(name, info.problem)
            for label in info.labels:
                labels.add_metric([*name, label], 1)
            if info.share is not None:
                shares.add_metric(name, info.share)
        return [states, labels, problems, shares]


class LoadingCollector(Collector):
    """How long the loads in progress have taken so far. Any thread may start and finish a load.

    A version is never loaded twice at a time: if its files change meanwhile, it is reloaded later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started: dict[tuple[str, int], float] = {}
        self._lock = threading.Lock()

    def start_load(self, model: str, version: int) -> None:
        """Start timing a load, before it waits for other loads."""
        with self._lock:
            self._started[model, version] = self._clock()

    def finish_load(self, model: str, version: int) -> None:
        """End timing a load; without one, do nothing."""
        with self._lock:
            self._started.pop((model, version), None)

    def collect(self) -> Iterable[Metric]:
        seconds = GaugeMetricFamily(
            "neurona_version_loading_seconds",
            "Time since the load of a version began, waiting for other loads included.",
            labels=VERSION_LABELS,
        )
        with self._lock:
            loads = dict(self._started)
        for (model, version), started in loads.items():
            seconds.add_metric([model, str(version)], self._clock() - started)
        return [seconds]


class MemoryLimitCollector(Collector):
    """The process's memory limit, read at each scrape: that of a running container can change."""

    def __init__(self, read_limit: Callable[[], int | None] = memory_limit) -> None:
        self._read_limit = read_limit

    def collect(self) -> Iterable[Metric]:
        limit = self._read_limit()
        if limit is None:
            return []
        text = "Memory available to the process: its container's limit, or the machine's memory."
        return [GaugeMetricFamily("neurona_memory_limit_bytes", text, value=limit)]


class StallCollector(Collector):
    """How often the process could not run though it was due, by duration, read at each scrape."""

    def __init__(self, list_rates: Callable[[], Iterable[tuple[float, float]]]) -> None:
        """`list_rates` returns durations in seconds and the stalls a second that are as long."""
        self._list_rates = list_rates

    def collect(self) -> Iterable[Metric]:
        rates = GaugeMetricFamily(
            "neurona_stalls_per_second",
            "Stalls of the process (it was due, and did not run) of the last 10 minutes that took "
            "at_least so many seconds. Admission reckons with them; no requests run meanwhile.",
            labels=["at_least"],
        )
        for seconds, rate in self._list_rates():
            rates.add_metric([str(seconds)], rate)
        return [rates]


class LogLineCollector(Collector):
    """Lines of the process's log that were not written, by reason."""

    def __init__(self, count_lines: Callable[[], Mapping[str, int]]) -> None:
        self._count_lines = count_lines

    def collect(self) -> Iterable[Metric]:
        lines = CounterMetricFamily(
            "neurona_log_lines_dropped",
            "Log lines not written, by reason: standard error unread, or a similar line repeated.",
            labels=["reason"],
        )
        for reason, count in self._count_lines().items():
            lines.add_metric([reason], count)
        return [lines]


class GpuCollector(Collector):
    """Utilization, memory and power of this machine's GPUs, from NVIDIA's driver (NVML).

    Without the package nvidia-ml-py or without a GPU there are no such series. A value that a GPU
    or its driver does not report (utilization in MIG mode, power on some) is left out. A MIG slice
    has series of its own; of it, the driver reports the memory.

    Source: NVIDIA's NVML API reference, "Device Queries" and "Multi Instance GPU Management".
    Written from it, not tested on a GPU.
    """

    def __init__(self, library: ModuleType | None = None) -> None:
        """`library` is pynvml, imported if not given. Its driver is looked for once."""
        self._nvml = library or _import_nvml()
        self._last: list[Metric] = []
        self._reading = threading.Lock()
        if self._nvml is not None:
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:  # no driver, or one of another version
                log.debug("GPU metrics disabled: %s", error)
                self._nvml = None

    def describe(self) -> Iterable[Metric]:
        return list(_gpu_families())

    def collect(self) -> Iterable[Metric]:
        # A driver that hangs must block one reader of the page only, not all.
        if self._reading.acquire(blocking=False):
            try:
                self._last = self._read_gpus()
            finally:
                self._reading.release()
        return self._last

    def uuid(self, gpu: str) -> str:
        """Return the driver's unique name of the GPU with a label; the label without one."""
        nvml = self._nvml
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                uuid = nvml.nvmlDeviceGetUUID(self._handle(gpu))
                return uuid.decode() if isinstance(uuid, bytes) else str(uuid)
        return gpu

    def _read_gpus(self) -> list[Metric]:
        nvml = self._nvml
        if nvml is None:
            return []
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:
            return []
        utilization, used, total, power = _gpu_families()
        # The library reports percent, bytes and milliwatts.
        readers: list[tuple[GaugeMetricFamily, Callable[[Any], float]]] = [
            (utilization, lambda device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100),
            (used, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).used),
            (total, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).total),
            (power, lambda device: nvml.nvmlDeviceGetPowerUsage(device) / 1000),
        ]
        for gpu in (label for number in range(count) for label in self._list_labels(number)):
            try:
                device = self._handle(gpu)
            except nvml.NVMLError:  # lost, not accessible, or no such slice
                continue
            for family, read in readers:
                with contextlib.suppress(nvml.NVMLError):  # this GPU does not report it
                    family.add_metric([gpu], read(device))
        return [family for family, _ in readers if family.samples]

    def _list_labels(self, number: int) -> list[str]:
        """Return the label of a GPU and those of the slices that it can have at most."""
        nvml = self._nvml
        assert nvml is not None  # noqa: S101  for the type checker
        slices = 0
        with contextlib.suppress(nvml.NVMLError, AttributeError):  # neither it nor the package can
            device = nvml.nvmlDeviceGetHandleByIndex(number)
            if nvml.nvmlDeviceGetMigMode(device)[0]:
                slices = nvml.nvmlDeviceGetMaxMigDeviceCount(device)
        return [str(number), *[f"{number}:{index}" for index in range(slices)]]

    def _handle(self, gpu: str) -> Any:
        nvml = self._nvml
        assert nvml is not None  # noqa: S101  for the type checker
        number, _, index = gpu.partition(":")
        device = nvml.nvmlDeviceGetHandleByIndex(int(number))
        return nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, int(index)) if index else device


def _import_nvml() -> ModuleType | None:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def _gpu_families() -> tuple[GaugeMetricFamily, ...]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"neurona_gpu_{name}", text, labels=[GPU_LABEL])

    return (
        gauge("utilization_ratio", "Share of the last second or less in which the GPU was busy."),
        gauge("memory_used_bytes", "Memory of the GPU in use, by all processes."),
        gauge("memory_total_bytes", "Total memory of the GPU."),
        gauge("power_watts", "Power draw of the GPU and its memory."),
    )
