"""How many CPUs this process may use, by affinity and by the container's quota; and how many
threads for that."""

import math
import os
import threading
from pathlib import Path

THREADS_A_CPU = 16  # in the pools of all models: they do not spin, so all but a few sleep
CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """At least 1. A container that may use 1.5 CPUs of 64 has 2: a thread for each of 64 would
    be stopped by the kernel most of the time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, math.ceil(min(count or 1, quota)))


def _quota(cgroup: Path) -> float:
    """CPUs by cgroup v2's cpu.max or v1's cpu.cfs_*; inf where there is no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    try:
        quota = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return math.inf
    return quota if quota > 0 else math.inf


class ThreadBudget:
    """How many threads the pools of all sessions may have together.

    Each session has a pool of its own. ONNX Runtime can share one between all, but Python cannot
    keep that one from spinning: its threads burn 45 ms of CPU after each run (measured with 1.31
    on two CPUs: 5.4 ms of CPU for a run of 10 us, 100 times a second, where a pool of its own
    that does not spin takes 0.1 ms), which the doors' threads then lack. So pools are bounded in
    number of threads: the models that are loaded last run on their caller's thread alone.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, wanted: int) -> int:
        """Threads for one more session, 1 to `wanted`. The first of them is its caller's own, and
        costs nothing."""
        with self._lock:
            granted = max(1, min(wanted, 1 + self._left))
            self._left -= granted - 1
        return granted

    def give_back(self, granted: int) -> None:
        with self._lock:
            self._left += granted - 1
