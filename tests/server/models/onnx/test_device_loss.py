"""Where a model goes whose device is lost. Each test has a table of devices of its own."""

from dataclasses import replace

import pytest

from neurona_server.errors import LoadError
from neurona_server.models.onnx import devices
from neurona_server.models.onnx.device_loss import DevicePlacement, place
from neurona_server.models.onnx.device_shares import DeviceShare
from neurona_server.models.onnx.devices import CPU_DEVICE, Device, DeviceTable
from neurona_server.models.onnx.runtime import RuntimeOptions

FIRST, SECOND, THIRD = (Device("cuda", number) for number in range(3))
OPTIONS = RuntimeOptions(providers=("tensorrt", "cuda", "cpu"))


@pytest.fixture
def table(monkeypatch):
    table = DeviceTable(lambda: (FIRST, SECOND, THIRD))
    monkeypatch.setattr(devices, "DEVICES", table)
    return table


def test_without_a_loss_nothing_changes(table):
    assert place(OPTIONS, (SECOND,)) == DevicePlacement(OPTIONS, (SECOND,))
    table.mark_lost("cuda:0", "gone")
    assert place(OPTIONS, (SECOND,)) == DevicePlacement(OPTIONS, (SECOND,))
    assert table.usable() == (SECOND, THIRD)


def test_what_is_left_of_its_devices_comes_first_then_any_other(table):
    table.mark_lost("cuda:0", "gone")
    assert place(OPTIONS, (FIRST, THIRD)).devices == (THIRD,)
    placement = place(OPTIONS, (FIRST,))
    assert placement == DevicePlacement(OPTIONS, (SECOND,), "cuda:0 is lost (gone)")


def test_without_a_gpu_it_goes_to_the_cpu_if_its_providers_have_it(table):
    for number, reason in enumerate(("gone", "hangs", "burnt")):
        table.mark_lost(f"cuda:{number}", reason)
    placement = place(OPTIONS, (FIRST, SECOND))
    assert placement.devices == (CPU_DEVICE,)
    assert placement.options.providers == ("cpu",)
    assert placement.degraded == (
        "runs on the CPU: cuda:0 is lost (gone) and cuda:1 is lost (hangs)"
    )
    with pytest.raises(LoadError, match="no other GPU is left, and its providers all need one"):
        place(RuntimeOptions(providers=("cuda",)), (FIRST,))
    with pytest.raises(LoadError, match=r"cuda:2 is lost \(burnt\), .* and require_gpu is set"):
        place(RuntimeOptions(require_gpu=True), (THIRD,))


def test_a_process_goes_on_with_its_own_devices_only(table):
    """Those of the others are full of their models, and a MIG slice is not even visible here."""
    options = replace(OPTIONS, device_share=DeviceShare(0, 2))
    table.mark_lost("cuda:0", "gone")
    assert place(options, (FIRST,)).devices == (THIRD,)
    table.mark_lost("cuda:2", "gone")
    assert place(options, (FIRST,)).devices == (CPU_DEVICE,)
    assert options.device_share.usable(table) == ()
    assert DeviceShare(1, 2).usable(table) == (SECOND,)
    assert DeviceShare(1, 2).usable(DeviceTable(tuple)) == ()
