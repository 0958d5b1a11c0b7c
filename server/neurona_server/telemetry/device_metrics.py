"""The series of the GPUs that models run on, by the device's label as Models.List has it.

The CPU has none: a run of a model there is all that its process does, and may be inline, so that no
device is chosen for it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True)
class DeviceInfo:
    """A device that models are loaded on, at the time of a scrape."""

    label: str
    name: str
    uuid: str
    runs_in_progress: int


class DeviceMetrics(Collector):
    """Counters by device, and what the devices are and do at each scrape; registers all of them."""

    def __init__(self, registry: CollectorRegistry, version_labels: Sequence[str]) -> None:
        labels = (*version_labels, "device")
        self.runs = Counter(
            "neurona_device_runs",
            "Batches of the model that ran on a GPU, by device.",
            labels,
            registry=registry,
        )
        self.seconds = Counter(
            "neurona_device_run_seconds",
            "Time that batches of the model took on a GPU, by device. Two that overlap count both.",
            labels,
            registry=registry,
        )
        self.list_devices: Callable[[], Iterable[DeviceInfo]] = tuple
        """Returns the GPUs that models are loaded on."""
        registry.register(self)

    @property
    def version_series(self) -> tuple[Counter, ...]:
        """Those that end with a version."""
        return (self.runs, self.seconds)

    def collect(self) -> Iterable[Metric]:
        infos = GaugeMetricFamily(
            "neurona_device_info",
            "1 for each GPU, or slice of one, that models are loaded on, with its UUID.",
            labels=["device", "name", "uuid"],
        )
        in_progress = GaugeMetricFamily(
            "neurona_device_runs_in_progress",
            "Batches that the GPU has at the moment: while one runs, another one is copied.",
            labels=["device"],
        )
        for device in self.list_devices():
            infos.add_metric([device.label, device.name, device.uuid], 1)
            in_progress.add_metric([device.label], device.runs_in_progress)
        return [infos, in_progress]
