"""What the GPUs of this machine do, as NVIDIA's driver tells it through nvidia-ml-py.

That package is not needed, and neither is a GPU: without one of them there are no such series.
What a GPU or a driver does not tell (utilisation of a GPU in MIG mode, power of some) is left out.
Source: NVIDIA's NVML API reference, "Device Queries". Written from it, and not tried on a GPU.
"""

import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.resources import memory_limit

log = logging.getLogger(__name__)

VERSION = ("model", "version")


class WatchedQueue(Protocol):
    """What gauges read when they are scraped."""

    max_batch_rows: int

    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    def oldest_age(self) -> float: ...


class WatchedCurve(Protocol):
    """Likewise."""

    @property
    def batch_sizes(self) -> Sequence[int]: ...
    @property
    def seconds(self) -> dict[int, float]: ...


@dataclass(frozen=True)
class VersionInfo:
    """One version of one model, as the page has it at the moment when it is read."""

    model: str
    version: int
    state: str
    labels: Sequence[str] = ()
    problem: bool = False
    share: float | None = None
    """Of the requests that name neither version nor label, 0 to 1; None if it is not loaded."""


class VersionStateCollector(Collector):
    """Series that are read from what is known when the page is, and never outlive it."""

    def __init__(self, known: Callable[[], Iterable[VersionInfo]]) -> None:
        self._known = known

    def collect(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "neurona_version_state",
            "1 for the state that a version is in.",
            labels=[*VERSION, "state"],
        )
        labels = GaugeMetricFamily(
            "neurona_version_label",
            "1 for each label of a version.",
            labels=[*VERSION, "label"],
        )
        problems = GaugeMetricFamily(
            "neurona_version_problem",
            "1 while a version needs a person: it failed, or its files are not what serves.",
            labels=VERSION,
        )
        shares = GaugeMetricFamily(
            "neurona_version_share_ratio",
            "Share of the requests that name neither version nor label which a version gets.",
            labels=VERSION,
        )
        for one in self._known():
            name = [one.model, str(one.version)]
            states.add_metric([*name, one.state], 1)
            problems.add_metric(name, one.problem)
            for label in one.labels:
                labels.add_metric([*name, label], 1)
            if one.share is not None:
                shares.add_metric(name, one.share)
        return [states, labels, problems, shares]


class LoadingCollector(Collector):
    """Any thread may begin and end a load. A version whose files change while it is loaded is
    loaded again after that, never twice at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[tuple[str, int], float] = {}
        self._changing = threading.Lock()

    def start_load(self, model: str, version: int) -> None:
        """It is to be loaded now: what it waits for other loads counts."""
        with self._changing:
            self._since[model, version] = self._clock()

    def finish_load(self, model: str, version: int) -> None:
        with self._changing:
            self._since.pop((model, version), None)

    def collect(self) -> Iterable[Metric]:
        seconds = GaugeMetricFamily(
            "neurona_version_loading_seconds",
            "How long a version that is being loaded has been, waiting for its turn included.",
            labels=VERSION,
        )
        with self._changing:
            since = dict(self._since)
        for (model, version), began in since.items():
            seconds.add_metric([model, str(version)], self._clock() - began)
        return [seconds]


GPU = "gpu"
"""Label: the number that the driver gives it, as nvidia-smi shows it. It counts GPUs that
CUDA_VISIBLE_DEVICES hides too."""


class GpuCollector(Collector):
    def __init__(self, library: ModuleType | None = None) -> None:
        """`library` is pynvml; by itself it is looked for, and has its driver looked for once."""
        self._nvml = library or _find_library()
        self._last: list[Metric] = []
        self._reading = threading.Lock()
        if self._nvml is not None:
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:  # no driver, or another than the library
                log.debug("no figures of GPUs: %s", error)
                self._nvml = None

    def describe(self) -> Iterable[Metric]:
        return list(_families())

    def collect(self) -> Iterable[Metric]:
        # A driver that hangs must not take all readers of the page with it.
        if self._reading.acquire(blocking=False):
            try:
                self._last = self._read()
            finally:
                self._reading.release()
        return self._last

    def _read(self) -> list[Metric]:
        nvml = self._nvml
        if nvml is None:
            return []
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:
            return []
        utilization, used, total, power = _families()
        # The library gives percent, bytes and milliwatts.
        asked: list[tuple[GaugeMetricFamily, Callable[[Any], float]]] = [
            (utilization, lambda device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100),
            (used, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).used),
            (total, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).total),
            (power, lambda device: nvml.nvmlDeviceGetPowerUsage(device) / 1000),
        ]
        for number in range(count):
            try:
                device = nvml.nvmlDeviceGetHandleByIndex(number)
            except nvml.NVMLError:  # lost, or not ours to ask
                continue

            for family, ask in asked:
                # What it does not tell is left out.
                with contextlib.suppress(nvml.NVMLError):
                    family.add_metric([str(number)], ask(device))
        return [family for family in (utilization, used, total, power) if family.samples]


def _families() -> tuple[GaugeMetricFamily, ...]:
    return (
        _gauge("utilization_ratio", "Share of the last second or less in which it was busy."),
        _gauge("memory_used_bytes", "Memory of the GPU in use, by whichever process."),
        _gauge("memory_total_bytes", "Memory of the GPU."),
        _gauge("power_watts", "What the GPU and its memory draw."),
    )


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"neurona_gpu_{name}", text, labels=[GPU])


def _find_library() -> ModuleType | None:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


class MemoryLimit(Collector):
    """Asked for when the page is read: the limit of a running container can be changed."""

    def __init__(self, limit: Callable[[], int | None] = memory_limit) -> None:
        self._limit = limit

    def collect(self) -> Iterable[Metric]:
        limit = self._limit()
        if limit is None:
            return []
        text = "Memory that the process may take: its container's, or else the machine's."
        return [GaugeMetricFamily("neurona_memory_limit_bytes", text, value=limit)]
