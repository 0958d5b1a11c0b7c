"""The CPUs and the memory that this process may use, and the heap that it has them from.

A limit may be set on the process's own control group (a container's, or that of a systemd service
with CPUQuota or MemoryMax) or on any group around it: the least one counts.

Source: Linux kernel documentation, "Control Group v2", "CFS Bandwidth Control" and "Memory Resource
Controller"; man 7 cgroups; man 5 proc_pid_mountinfo.
"""

import ctypes
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where control groups are mounted, if the file `mountinfo` beside `OWN_GROUPS` does not say."""

OWN_GROUPS = Path("/proc/self/cgroup")
"""Names the control groups of this process."""

HEAP_ARENAS = 4
"""Heaps of the C library, instead of eight for each CPU: each keeps fragments of its own."""

MAPPED_BYTES = 1 << 20
"""Memory blocks from this size on are mapped one by one, and returned to the system when freed. By
default the library raises this bound to 32 MiB, and large messages leave holes in its heaps."""

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of mallopt, in glibc's malloc.h


def available_cpus(cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> int:
    """Return the number of CPUs that this process may use, at least 1.

    That is its affinity, which the kernel keeps within its cpuset, or the least quota of its
    control group and of that group's parents. A container that may use 1.5 CPUs of 64 gets 2: with
    a thread for each of the 64, the kernel would throttle it most of the time.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = map(_cpu_quota, _control_groups("cpu", cgroup, own_groups))
    return max(1, math.ceil(min([count or 1, *quotas])))


def memory_limit(cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> int | None:
    """Return the bytes of memory that this process may use.

    That is the least limit of its control group and of that group's parents (a container's, or a
    systemd service's MemoryMax), or the machine's memory if that is less or there is no limit.

    Returns:
        The limit, or None if the system reports none of them.
    """
    least = min(
        _machine_memory(), *map(_memory_limit, _control_groups("memory", cgroup, own_groups))
    )
    return None if math.isinf(least) else int(least)


class MemoryKills:
    """Counts the processes that the kernel has killed because memory was short.

    It counts those of this process's control group, which are its children and itself, or, on a
    system without control groups for memory, all of the machine.
    """

    def __init__(self, cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> None:
        self._files = [
            group / name
            for group in _control_groups("memory", cgroup, own_groups)
            for name in ("memory.oom_control", "memory.events")
        ]
        self._lock = threading.Lock()
        self._count = self._read()

    def have_grown(self) -> bool:
        """Return whether there was one since the last call, or since the construction."""
        with self._lock:
            before, self._count = self._count, self._read()
            return self._count > before

    def _read(self) -> int:
        # The innermost group that exists, then the machine.
        for path in [*reversed(self._files), Path("/proc/vmstat")]:
            try:
                words = path.read_text().split()
            except OSError:
                continue
            if "oom_kill" in words[:-1]:
                return int(words[words.index("oom_kill") + 1])
        return 0


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the number of files and sockets that this process may have open.

    Returns:
        The limit now: `wanted`, unless it was higher before or the system allows less.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    limit = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    if limit > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):  # the system allows less than it says
            return soft
    return limit


def bound_heap_fragments() -> None:
    """Set up the C library's heap so that memory of large messages is returned to the system.

    After a minute of requests of all sizes the process kept 265 MB, and 131 MB with these settings.
    Does nothing for a library other than glibc. Variables of the environment (MALLOC_ARENA_MAX,
    MALLOC_MMAP_THRESHOLD_) win. To be called before there are threads.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; or Windows
        return
    for option, value, variable in (
        (_M_ARENA_MAX, HEAP_ARENAS, "MALLOC_ARENA_MAX"),
        (_M_MMAP_THRESHOLD, MAPPED_BYTES, "MALLOC_MMAP_THRESHOLD_"),
    ):
        if variable not in os.environ:
            mallopt(option, value)


def trim_heap() -> None:
    """Return free memory of the C library's heap to the system, if the library can do that.

    glibc keeps it: after unloading a transformer of 38 MB, 50 MB stayed. Takes milliseconds,
    without the GIL.
    """
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc; or Windows
        return
    malloc_trim(0)


def _cpu_quota(group: Path) -> float:
    """Return the CPUs by cgroup v2's cpu.max or v1's cpu.cfs_*, inf without a limit."""
    try:
        limit, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    try:
        quota = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return math.inf
    return quota if quota > 0 else math.inf


def _machine_memory() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def _memory_limit(group: Path) -> float:
    """Return the bytes by cgroup v2's memory.max or v1's memory.limit_in_bytes, else inf."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / name).read_text())
        except (OSError, ValueError):  # it does not exist, or says "max"
            continue
    return math.inf


def _control_groups(controller: str, cgroup: Path, own_groups: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups that may limit a resource.

    Those of cgroup v2, then those of v1, which has a hierarchy for each controller; each from the
    outermost group inwards. A machine may have both, and each controller is in one of them alone.
    A folder or a file in it need not exist: in a container, the path of the process may be the
    machine's.
    """
    paths = {"cgroup2": "/", "cgroup": "/"}
    for line in _read_lines(own_groups):  # number:controllers:path, with no controllers in v2
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            paths["cgroup2"] = path
        elif controller in controllers.split(","):
            paths["cgroup"] = path
    mounts = _cgroup_mounts(controller, own_groups.with_name("mountinfo")) or [
        ("cgroup2", "/", cgroup),
        ("cgroup", "/", cgroup / controller),
    ]
    for kind in ("cgroup2", "cgroup"):
        path = paths[kind]
        folders = [(root, point) for one, root, point in mounts if one == kind]
        # A mount may show a part of the hierarchy only, such as the container's, and another one
        # more of it, such as the machine's that a container was given.
        around = [(root, point) for root, point in folders if _is_below(path, root)]
        for root, point in around or folders[:1]:
            folder = point
            yield folder
            inner = path.removeprefix(root) if around else ""
            names = [name for name in inner.split("/") if name]
            for name in names if ".." not in names else []:  # "..": outside of what is shown
                folder /= name
                yield folder


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _cgroup_mounts(controller: str, mountinfo: Path) -> list[tuple[str, str, Path]]:
    """Return the kind, the root in its hierarchy and the folder of each mount of control groups."""
    mounts = []
    for line in _read_lines(mountinfo):
        # number parent device root folder options [tags] - kind source options
        before, _, after = line.partition(" - ")
        fields, (kind, _, options, *_) = before.split(" "), [*after.split(" "), "", "", ""]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            root, folder = (_unescape(field) for field in fields[3:5])
            mounts.append((kind, root, Path(folder)))
    return mounts


def _unescape(field: str) -> str:
    """Replace the octal numbers that mountinfo has for spaces and line ends."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
