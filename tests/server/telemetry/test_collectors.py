"""GpuCollector, with NVML replaced by a fake and with the installed package."""

import sys
import threading

import pytest

pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from support.fake_nvml import FakeNvml  # noqa: E402

from neurona_server.telemetry.collectors import GpuCollector  # noqa: E402


def gpu_values(collector):
    return {
        (sample.name.removeprefix("neurona_gpu_"), sample.labels["gpu"]): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def test_each_gpu_is_reported_in_base_units():
    expected = {
        "utilization_ratio": 0.37,
        "memory_used_bytes": 3 * 2**30,
        "memory_total_bytes": 16 * 2**30,
        "power_watts": 71.5,
    }
    assert gpu_values(GpuCollector(FakeNvml(2))) == {
        (name, gpu): value for name, value in expected.items() for gpu in ("0", "1")
    }


def test_slices_are_devices_of_their_own():
    collector = GpuCollector(FakeNvml(1, missing=["utilization"], slices=(0, 2)))
    assert sorted(gpu_values(collector)) == [
        *[("memory_total_bytes", gpu) for gpu in ("0", "0:0", "0:2")],
        *[("memory_used_bytes", gpu) for gpu in ("0", "0:0", "0:2")],
        ("power_watts", "0"),
    ]
    assert collector.uuid("0:2") == "MIG-2f00"
    assert collector.uuid("0:1") == "0:1"  # there is none


def test_a_value_that_a_gpu_does_not_report_is_left_out():
    values = gpu_values(GpuCollector(FakeNvml(1, missing=["utilization", "power"])))
    assert set(values) == {("memory_used_bytes", "0"), ("memory_total_bytes", "0")}


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND]
)
def test_without_a_driver_there_are_no_gpu_series(error):
    assert GpuCollector(FakeNvml(2, init_error=error)).collect() == []


def test_a_driver_that_fails_later_has_no_series_until_it_recovers():
    nvml = FakeNvml(1)
    collector = GpuCollector(nvml)
    nvml.lost = True
    assert gpu_values(collector) == {}
    nvml.lost = False
    assert len(gpu_values(collector)) == 4


def test_without_the_package_there_are_no_gpu_series(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuCollector().collect() == []


def test_the_real_package_reports_values_or_nothing():
    registry = CollectorRegistry()
    registry.register(GpuCollector())
    assert b"Error" not in generate_latest(registry)


def test_a_driver_that_hangs_blocks_one_reader_only():
    entered, resume = threading.Event(), threading.Event()
    nvml = FakeNvml(1)
    collector = GpuCollector(nvml)
    before = gpu_values(collector)
    count = nvml.nvmlDeviceGetCount

    def hang():
        entered.set()
        resume.wait(10)
        return count()

    nvml.nvmlDeviceGetCount = hang
    first = threading.Thread(target=collector.collect)
    first.start()
    assert entered.wait(10)
    assert gpu_values(collector) == before
    resume.set()
    first.join()
