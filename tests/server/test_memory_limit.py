import os

import pytest
from prometheus_client import CollectorRegistry

from neurona_server.memory_limit import MemoryLimit, memory_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
OF_CGROUPS = ("memory.max", "memory/memory.limit_in_bytes")


def write(root, name, text):
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", OF_CGROUPS)
def test_the_limit_of_the_container(tmp_path, name):
    write(tmp_path, name, "104857600\n")
    assert memory_limit(tmp_path) == 104857600


@pytest.mark.parametrize("name", OF_CGROUPS)
@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n", "\n"])
def test_without_a_limit_it_is_the_memory_of_the_machine(tmp_path, name, text):
    write(tmp_path, name, text)
    assert memory_limit(tmp_path) == MACHINE


def test_without_cgroups_too(tmp_path):
    assert memory_limit(tmp_path) == MACHINE


def test_where_the_system_does_not_tell_there_is_no_series(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert memory_limit(tmp_path) is None
    registry = CollectorRegistry()
    registry.register(MemoryLimit(lambda: None))
    assert list(registry.collect()) == []


def test_the_series_follows_the_limit():
    limits = iter([100, 200])
    registry = CollectorRegistry()
    collector = MemoryLimit(lambda: next(limits))
    collector.describe = list  # the registry need not ask once more for the name
    registry.register(collector)
    assert registry.get_sample_value("neurona_memory_limit_bytes") == 100
    assert registry.get_sample_value("neurona_memory_limit_bytes") == 200
