"""CPUs and memory that a process may use, from cgroups in a folder of the test."""

import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from neurona_server.resources import CGROUP, MemoryKills, available_cpus, memory_limit
from neurona_server.telemetry.collectors import MemoryLimitCollector

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
CGROUP_FILES = ("memory.max", "memory/memory.limit_in_bytes")
ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", CGROUP_FILES)
def test_the_limit_of_a_container(tmp_path, name):
    write(tmp_path, name, "104857600\n")
    assert memory_limit(tmp_path, tmp_path / "own") == 104857600


@pytest.mark.parametrize("name", CGROUP_FILES)
@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n", "\n"])
def test_without_a_limit_it_is_the_machine_s_memory(tmp_path, name, text):
    write(tmp_path, name, text)
    assert memory_limit(tmp_path, tmp_path / "own") == MACHINE


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("0::/system.slice/neurona.service\n", "{}/memory.max"),
        (
            "4:cpu:/\n3:memory:/system.slice/neurona.service\n0::/\n",
            "memory/{}/memory.limit_in_bytes",
        ),
    ],
)
def test_the_least_limit_of_a_service_and_of_its_parent_groups(tmp_path, own, name):
    write(tmp_path, "own", own)
    write(tmp_path, name.format("system.slice/neurona.service"), "104857600\n")
    assert memory_limit(tmp_path, tmp_path / "own") == 104857600
    write(tmp_path, name.format("system.slice"), "52428800\n")
    assert memory_limit(tmp_path, tmp_path / "own") == 52428800
    write(tmp_path, name.format("other.slice"), "1000\n")
    assert memory_limit(tmp_path, tmp_path / "own") == 52428800


def test_a_container_that_does_not_see_its_own_path_has_its_limit_at_the_root(tmp_path):
    write(tmp_path, "own", "0::/../../kubepods/pod1\n")
    write(tmp_path / "cgroup", "memory.max", "104857600\n")
    assert memory_limit(tmp_path / "cgroup", tmp_path / "own") == 104857600


def test_without_cgroups_it_is_the_machine_s_memory(tmp_path):
    assert memory_limit(tmp_path, tmp_path / "own") == MACHINE


def test_without_any_limit_there_is_no_series(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert memory_limit(tmp_path, tmp_path / "own") is None
    registry = CollectorRegistry()
    registry.register(MemoryLimitCollector(lambda: None))
    assert list(registry.collect()) == []


def test_the_series_follows_changes_of_the_limit():
    limits = iter([100, 200])
    registry = CollectorRegistry()
    collector = MemoryLimitCollector(lambda: next(limits))
    collector.describe = list  # or the registry would call collect once more
    registry.register(collector)
    assert registry.get_sample_value("neurona_memory_limit_bytes") == 100
    assert registry.get_sample_value("neurona_memory_limit_bytes") == 200


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000\n", ALL),
        ("50000 100000\n", 1),
        ("100000 100000\n", 1),
        ("150000 100000\n", min(2, ALL)),
        ("99900000 100000\n", ALL),
        ("nonsense", ALL),
        ("0 0", ALL),
    ],
)
def test_the_quota_of_a_container_bounds_the_cpus(tmp_path, text, cpus):
    (tmp_path / "cpu.max").write_text(text)
    assert available_cpus(tmp_path, tmp_path / "own") == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", ALL), ("100000", 1)])
def test_the_quota_of_cgroup_v1_bounds_the_cpus(tmp_path, quota, cpus):
    write(tmp_path, "cpu/cpu.cfs_quota_us", quota)
    write(tmp_path, "cpu/cpu.cfs_period_us", "100000")
    assert available_cpus(tmp_path, tmp_path / "own") == cpus


def test_without_a_quota_it_is_the_affinity(tmp_path):
    assert available_cpus(tmp_path, tmp_path / "own") == ALL


def proc(folder, cgroup, *mounts):
    """Write files as /proc/self/cgroup and mountinfo, and return the first."""
    write(folder, "proc/cgroup", cgroup)
    lines = [
        f"{31 + number} 30 0:{number} {root} {point} rw,nosuid shared:9 - {kind} {kind} {options}\n"
        for number, (kind, root, point, options) in enumerate(mounts)
    ]
    write(folder, "proc/mountinfo", "22 1 8:1 / / rw - ext4 /dev/root rw\n" + "".join(lines))
    return folder / "proc" / "cgroup"


ONE_CPU = {
    "cgroup2": {"cpu.max": "100000 100000\n", "memory.max": "104857600\n"},
    "cgroup": {
        "cpu.cfs_quota_us": "50000\n",
        "cpu.cfs_period_us": "50000\n",
        "memory.limit_in_bytes": "104857600\n",
    },
}
V1 = "rw,cpu,cpuacct,memory"


@pytest.mark.parametrize(
    ("kind", "options", "own", "root", "group"),
    [
        # systemd's CPUQuota and MemoryMax, on a service and on the slice around it
        ("cgroup2", "rw", "0::/system.slice/n.service\n", "/", "system.slice/n.service"),
        ("cgroup2", "rw", "0::/system.slice/n.service\n", "/", "system.slice"),
        ("cgroup", V1, "4:memory,cpuacct,cpu:/a.slice/n.service\n0::/\n", "/", "a.slice/n.service"),
        ("cgroup", V1, "4:cpu,cpuacct,memory:/a.slice/n.service\n", "/", "a.slice"),
        # containers that see their own groups alone, and one that starts groups of its own
        ("cgroup2", "rw", "0::/\n", "/", ""),
        ("cgroup2", "rw", "0::/inner\n", "/", "inner"),
        ("cgroup", V1, "3:cpu,memory:/docker/abc\n", "/docker/abc", ""),
        ("cgroup", V1, "3:cpu,memory:/docker/abc/inner\n", "/docker/abc", "inner"),
        ("cgroup", V1, "3:cpu,memory:/docker/abc\n", "/kubepods/pod1", ""),
        ("cgroup2", "rw", "0::/../../kubepods/pod1\n", "/", ""),
        # names with a space and a colon
        ("cgroup2", "rw", "0::/a b:c/d\n", "/", "a b:c/d"),
    ],
)
def test_the_own_group_of_the_process_counts_wherever_it_is(
    tmp_path, kind, options, own, root, group
):
    point = tmp_path / "control groups"
    mount = (kind, root, str(point).replace(" ", "\\040"), options)
    other = ("cgroup2" if kind == "cgroup" else "cgroup", "/", "/nowhere", "rw,name=systemd")
    own_groups = proc(tmp_path, own, other, mount)
    for name, text in ONE_CPU[kind].items():
        write(point / group, name, text)
        write(point / "other.slice", name, "1000\n")
    assert available_cpus(tmp_path / "unused", own_groups) == 1
    assert memory_limit(tmp_path / "unused", own_groups) == 104857600


def test_a_mount_of_another_container_does_not_count(tmp_path):
    own_groups = proc(
        tmp_path,
        "0::/system.slice/n.service\n",
        ("cgroup2", "/docker/abc", tmp_path / "container", "rw"),
        ("cgroup2", "/", tmp_path / "machine", "rw"),
    )
    write(tmp_path, "container/cpu.max", "10000 100000")
    write(tmp_path, "machine/system.slice/n.service/cpu.max", "max 100000")
    assert available_cpus(tmp_path, own_groups) == ALL


def test_a_tighter_parent_that_only_another_mount_shows_counts(tmp_path):
    own_groups = proc(
        tmp_path,
        "0::/pod/abc\n",
        ("cgroup2", "/pod/abc", tmp_path / "container", "rw"),
        ("cgroup2", "/", tmp_path / "machine", "rw"),
    )
    write(tmp_path, "container/cpu.max", "max 100000")
    write(tmp_path, "machine/pod/cpu.max", "100000 100000")
    assert available_cpus(tmp_path, own_groups) == 1


REPORT = "from neurona_server.resources import *; print(available_cpus())"


def make_group(folder, files):
    """Make a control group, or skip the test where this process must not."""
    try:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"needs to make control groups: {error}")


@pytest.mark.skipif(ALL < 2, reason="needs two CPUs")
@pytest.mark.parametrize("resource", ["quota", "quota of the parent", "cpuset"])
def test_a_process_in_a_real_control_group(resource):
    controller = "cpuset" if resource == "cpuset" else "cpu"
    root = CGROUP / controller
    first = min(os.sched_getaffinity(0))
    if root.is_dir():  # v1
        limit = {"cpu.cfs_quota_us": "100000"}
        if controller == "cpuset":
            mems = (root / "cpuset.mems").read_text()
            limit = {"cpuset.mems": mems, "cpuset.cpus": str(first)}
        inherited = {} if controller == "cpu" else limit
        no_limit = {}
    else:
        root = CGROUP
        limit = {"cpu.max": "100000"} if controller == "cpu" else {"cpuset.cpus": str(first)}
        inherited, no_limit = {}, {"cgroup.subtree_control": f"+{controller}"}
    outer = root / f"neurona-{os.getpid()}"
    inner = outer / "inner"
    make_group(outer, {**(limit if "parent" in resource else inherited), **no_limit})
    try:
        make_group(inner, inherited if "parent" in resource else limit)
        try:
            join = f"open({str(inner / 'cgroup.procs')!r}, 'w').write('0'); "
            command = [sys.executable, "-c", join + REPORT]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        finally:
            inner.rmdir()
    finally:
        outer.rmdir()
    assert done.stdout == "1\n"


@pytest.mark.parametrize("name", ["memory.events", "memory.oom_control"])
def test_kills_for_memory_are_those_of_the_innermost_group(tmp_path, name):
    v2 = name == "memory.events"
    root = tmp_path if v2 else tmp_path / "memory"
    groups = tmp_path / "groups"
    groups.write_text("0::/a/b\n" if v2 else "5:memory:/a/b\n")
    inner = root / "a" / "b" / name
    inner.parent.mkdir(parents=True)
    inner.write_text("low 0\noom 0\noom_kill 2\n")
    (root / "a" / name).write_text("oom_kill 9\n")
    kills = MemoryKills(tmp_path, groups)
    assert not kills.have_grown()
    (root / "a" / name).write_text("oom_kill 10\n")
    assert not kills.have_grown()
    inner.write_text("low 0\noom 1\noom_kill 3\n")
    assert kills.have_grown()
    assert not kills.have_grown()


def test_a_system_without_control_groups_has_counts_of_kills_for_memory(tmp_path):
    assert not MemoryKills(tmp_path, tmp_path / "groups").have_grown()


FRAGMENTS = """
import re, threading
from pathlib import Path
from neurona_server.resources import bound_heap_fragments, trim_heap

bound_heap_fragments()

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

def work():
    for _ in range(3):  # glibc raises its own bound when the first block is freed
        bytearray(16 << 20)
    large = [bytearray(2 << 20) for _ in range(8)]
    small.extend(bytes(2000) for _ in range(50))  # above the large ones, in the same heap
    large.clear()

small = []
before = resident()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
mapped = Path("/proc/self/maps").read_text()
heaps = len(re.findall(r"^[0-9a-f]+[048c]000000-[0-9a-f]+ rw-p 00000000 00:00 0", mapped, re.M))
print(resident() - before, heaps)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_blocks_of_large_messages_are_returned_to_the_system():
    command = [sys.executable, "-c", FRAGMENTS]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    megabytes, heaps = map(int, result.stdout.split())
    assert megabytes < 16
    assert heaps < 4
