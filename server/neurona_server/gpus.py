"""What the GPUs of this machine do, as NVIDIA's driver tells it through nvidia-ml-py.

That package is not needed, and neither is a GPU: without one of them there are no such series.
What a GPU or a driver does not tell (utilisation of a GPU in MIG mode, power of some) is left out.
Source: NVIDIA's NVML API reference, "Device Queries". Written from it, and not tried on a GPU.
"""

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

GPU = "gpu"
"""Label: the number that the driver gives it, as nvidia-smi shows it. It counts GPUs that
CUDA_VISIBLE_DEVICES hides too."""


class Gpus(Collector):
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
