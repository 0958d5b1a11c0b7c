import os

import pytest

from neurona_server.resources import available_cpus

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
