"""How many CPUs this process may use: by affinity and by the container's quota."""

import math
import os
from pathlib import Path

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
