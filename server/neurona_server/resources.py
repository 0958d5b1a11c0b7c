"""How much memory this process may take, for whoever watches how near it is."""

import math
import os
from collections.abc import Iterable
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


"""Where a container finds its own limits, and a machine those of all its groups."""

OWN = Path("/proc/self/cgroup")
"""Which group this process is in."""


def memory_limit(cgroup: Path = CGROUP, own: Path = OWN) -> int | None:
    """Bytes: the least limit of the process's control group and of those that it is in (a
    container's, or a systemd service's MemoryMax), by cgroup v2's memory.max or v1's
    memory.limit_in_bytes (Linux kernel documentation, "Control Group v2" and "Memory Resource
    Controller"), or the machine's memory, if that is less or there is no limit. None if the system
    tells neither."""
    least = min(_machine(), *(_limit(path) for path in _paths(cgroup, own)))
    return None if math.isinf(least) else int(least)


def _machine() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def _paths(cgroup: Path, own: Path) -> Iterable[Path]:
    """From the outermost group inwards. In a container that sees only its own, the path of the
    process may be the machine's, which is not there: it counts as far as it is."""
    yield cgroup / "memory.max"
    yield cgroup / "memory" / "memory.limit_in_bytes"
    try:
        lines = own.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:  # number:controllers:path, without controllers in v2 (man 7 cgroups)
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = cgroup / "memory" if controllers else cgroup
        for name in filter(None, path.split("/")):
            folder /= name
            yield folder / ("memory.limit_in_bytes" if controllers else "memory.max")


def _limit(path: Path) -> float:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # it is not there, or it says max
        return math.inf
