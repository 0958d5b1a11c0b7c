"""The series of runs that do not end as they should, and of devices that are lost.

The file is alone because `metrics.py` holds the series of runs that do.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge


class RunFailureMetrics:
    """The series, in the given registry."""

    def __init__(self, registry: CollectorRegistry, version_labels: Sequence[str]) -> None:
        self.terminated_runs = Counter(
            "neurona_terminated_runs",
            "Runs terminated because all of their requests were cancelled, because they kept the "
            "transport thread from other work, or because of max_run_seconds.",
            version_labels,
            registry=registry,
        )
        self.out_of_memory_runs = Counter(
            "neurona_out_of_memory_runs",
            "Runs that found too little memory on their device. Their batches were halved and run "
            "again.",
            version_labels,
            registry=registry,
        )
        self.lost_devices = Gauge(
            "neurona_device_lost",
            "1 for each device that failed while it was in use, and is not used any more.",
            ("device",),
            registry=registry,
        )

    @property
    def version_series(self) -> tuple[Counter, ...]:
        """Those that end with a version."""
        return (self.terminated_runs, self.out_of_memory_runs)
