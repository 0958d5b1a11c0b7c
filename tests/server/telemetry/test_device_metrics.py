from prometheus_client import CollectorRegistry

from neurona_server.telemetry.device_metrics import DeviceInfo
from neurona_server.telemetry.metrics import Metrics


def test_runs_are_counted_by_device_until_the_version_ends():
    registry = CollectorRegistry()
    model = Metrics(registry).for_version("m", 1)
    model.record_device_use("cuda:0", 1, 0.25)
    model.record_device_use("cuda:0", 3, 0.5)
    model.record_device_use("cuda:1", 1, 2.0)
    labels = {"model": "m", "version": "1", "device": "cuda:0"}
    assert registry.get_sample_value("neurona_device_runs_total", labels) == 4
    assert registry.get_sample_value("neurona_device_run_seconds_total", labels) == 0.75
    model.release()
    model.record_device_use("cuda:0", 1, 0.25)  # an abandoned run that has ended
    assert registry.get_sample_value("neurona_device_runs_total", labels) is None


def test_devices_are_listed_at_each_scrape():
    registry = CollectorRegistry()
    metrics, devices = Metrics(registry), []
    metrics.watch_devices(lambda: devices)
    labels = {"device": "cuda:0", "name": "NVIDIA H200", "uuid": "GPU-1"}
    assert registry.get_sample_value("neurona_device_info", labels) is None
    devices.append(DeviceInfo("cuda:0", "NVIDIA H200", "GPU-1", 2))
    assert registry.get_sample_value("neurona_device_info", labels) == 1
    name = "neurona_device_runs_in_progress"
    assert registry.get_sample_value(name, {"device": "cuda:0"}) == 2
