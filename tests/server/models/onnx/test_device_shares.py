import pytest
from support import cuda_stand_ins

from neurona_server.errors import ConfigError
from neurona_server.models.onnx.device_shares import DeviceShare, claim_slice
from neurona_server.models.onnx.devices import Device, DeviceTable
from neurona_server.models.onnx.runtime import RuntimeOptions, find_devices

DEVICES = [Device("cuda", number) for number in range(5)]


def numbers(process, processes, count=5):
    return [one.number for one in DeviceShare(process, processes).choose(DEVICES[:count])]


def test_devices_are_divided_evenly():
    assert [numbers(process, 2) for process in range(2)] == [[0, 2, 4], [1, 3]]
    assert [numbers(process, 5) for process in range(5)] == [[0], [1], [2], [3], [4]]
    assert [numbers(process, 3, 2) for process in range(3)] == [[0], [1], [0]]
    assert numbers(0, 1) == [0, 1, 2, 3, 4]


def test_a_model_is_on_the_devices_of_its_process(cuda_stub, monkeypatch):
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=3)
    options = [RuntimeOptions(devices="all", device_share=DeviceShare(n, 2)) for n in range(2)]
    assert [[one.number for one in find_devices(one)] for one in options] == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("option", "process", "environment", "expected", "visible"),
    [
        ("0,1", 1, {}, "0,1", None),
        ("all", 1, {}, "all", None),
        ("all", 1, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}, "all", "GPU-1,GPU-2"),
        ("MIG-a,MIG-b", 0, {}, "MIG-a", "MIG-a"),
        ("MIG-a,MIG-b", 1, {"CUDA_VISIBLE_DEVICES": "MIG-a"}, "MIG-b", "MIG-b"),
        ("MIG-a", 1, {}, "MIG-a", "MIG-a"),
        ("all", 1, {"CUDA_VISIBLE_DEVICES": "MIG-a, MIG-b"}, "all", "MIG-b"),
        ("all", 0, {"NVIDIA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, "all", "MIG-a"),
        ("all", 0, {"NVIDIA_VISIBLE_DEVICES": "all"}, "all", None),
    ],
)
def test_each_process_claims_a_slice(option, process, environment, expected, visible):
    assert claim_slice(option, DeviceShare(process, 2), environment) == expected
    assert environment.get("CUDA_VISIBLE_DEVICES") == visible


def test_without_other_processes_one_slice_can_be_claimed():
    alone, environment = DeviceShare(), {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}
    assert claim_slice("all", alone, environment) == "all"  # CUDA shows the first
    assert environment == {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}
    assert claim_slice("MIG-c", alone, environment) == "MIG-c"
    assert environment == {"CUDA_VISIBLE_DEVICES": "MIG-c"}
    with pytest.raises(ConfigError, match=r"has 2 MIG slices \(expected one, .* or split_devices"):
        claim_slice("MIG-a,MIG-b", alone, environment)
    with pytest.raises(ConfigError, match="expected MIG slices or whole GPUs"):
        claim_slice("MIG-a,0", DeviceShare(0, 2), environment)


def test_the_driver_shows_the_slice(cuda_stub, monkeypatch):
    cuda_stub.install(monkeypatch, devices=3, mig=1)
    second = DeviceTable().devices()[1]
    environment = {}
    claim_slice(second.uuid, DeviceShare(), environment)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment["CUDA_VISIBLE_DEVICES"])
    (device,) = DeviceTable().devices()
    assert (device.number, device.uuid, device.label) == (0, second.uuid, f"cuda:{second.uuid}")
