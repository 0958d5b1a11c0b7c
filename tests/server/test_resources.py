"""CPUs and memory that a process may use, from cgroups in a folder of the test."""

import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from neurona_server.resources import MemoryKills, available_cpus, memory_limit
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
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", ALL), ("100000", 1)])
def test_the_quota_of_cgroup_v1_bounds_the_cpus(tmp_path, quota, cpus):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cpus(tmp_path) == cpus


def test_without_a_quota_it_is_the_affinity(tmp_path):
    assert available_cpus(tmp_path) == ALL


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
