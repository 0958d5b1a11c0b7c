import sys
import threading

import pytest

pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py, which server-cpu has not")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from support.fake_nvml import FakeNvml  # noqa: E402

from neurona_server.telemetry.collectors import GpuCollector  # noqa: E402


def values(one):
    return {
        (sample.name.removeprefix("neurona_gpu_"), sample.labels["gpu"]): sample.value
        for family in one.collect()
        for sample in family.samples
    }


def test_each_gpu_says_what_it_does_in_base_units():
    expected = {
        "utilization_ratio": 0.37,
        "memory_used_bytes": 3 * 2**30,
        "memory_total_bytes": 16 * 2**30,
        "power_watts": 71.5,
    }
    assert values(GpuCollector(FakeNvml(2))) == {
        (name, gpu): value for name, value in expected.items() for gpu in ("0", "1")
    }


def test_what_a_gpu_does_not_tell_is_left_out_and_the_rest_is_there():
    found = values(GpuCollector(FakeNvml(1, missing=["utilization", "power"])))
    assert set(found) == {("memory_used_bytes", "0"), ("memory_total_bytes", "0")}


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND]
)
def test_without_a_driver_there_are_no_series(error):
    assert GpuCollector(FakeNvml(2, init_error=error)).collect() == []


def test_a_driver_that_fails_later_has_no_series_until_it_is_back():
    nvml = FakeNvml(1)
    one = GpuCollector(nvml)
    nvml.lost = True
    assert values(one) == {}
    nvml.lost = False
    assert len(values(one)) == 4


def test_without_the_package_there_are_no_series(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuCollector().collect() == []


def test_the_real_package_on_this_machine_gives_figures_or_nothing():
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    assert b"Error" not in generate_latest(registry)


def test_a_driver_that_hangs_keeps_one_reader_and_no_other():
    entered, leave = threading.Event(), threading.Event()
    nvml = FakeNvml(1)
    one = GpuCollector(nvml)
    before = values(one)
    count = nvml.nvmlDeviceGetCount

    def hang():
        entered.set()
        leave.wait(10)
        return count()

    nvml.nvmlDeviceGetCount = hang
    first = threading.Thread(target=one.collect)
    first.start()
    assert entered.wait(10)
    assert values(one) == before
    leave.set()
    first.join()
