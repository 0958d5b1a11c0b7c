"""How much memory this process may take, for whoever watches how near it is."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CGROUP = Path("/sys/fs/cgroup")
"""Where a container finds its own limits."""


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Bytes: the container's limit, by cgroup v2's memory.max or v1's memory.limit_in_bytes (Linux
    kernel documentation, "Control Group v2" and "Memory Resource Controller"), or the machine's
    memory, if that is less or there is no limit. None if the system tells neither."""
    least = min(_machine(), _limit(cgroup))
    return None if math.isinf(least) else int(least)


def _machine() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def _limit(cgroup: Path) -> float:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((cgroup / name).read_text())
        except (OSError, ValueError):  # it is not there, or it says max
            continue
    return math.inf


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
