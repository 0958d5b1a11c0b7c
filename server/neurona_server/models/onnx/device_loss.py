"""Where a model is loaded that was to be on a device which is lost.

The file is alone since it needs the devices and the options of runs, which do not know each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neurona_server.errors import LoadError
from neurona_server.models.onnx import devices
from neurona_server.models.onnx.devices import CPU_DEVICE, Device
from neurona_server.models.onnx.runtime import RuntimeOptions, needs_gpu


@dataclass(frozen=True)
class DevicePlacement:
    """Where and how to load a model."""

    options: RuntimeOptions
    devices: tuple[Device, ...]
    degraded: str = ""
    """Why that is not as the options ask for, or ""."""


def place(options: RuntimeOptions, wanted: Sequence[Device]) -> DevicePlacement:
    """Return where to load a model for which the options name the devices `wanted`.

    Devices that are lost are left out. If none is left, another one that this process may use takes
    the model or, if the options allow that, the CPU.

    Raises:
        LoadError: There is no device left that may take it.
    """
    lost = devices.DEVICES.lost
    reasons = [f"{one.label} is lost ({lost[one.label]})" for one in wanted if one.label in lost]
    if not reasons:
        return DevicePlacement(options, tuple(wanted))
    reason = " and ".join(reasons)
    left = tuple(device for device in wanted if device.label not in lost)
    if left := left or options.device_share.usable(devices.DEVICES)[:1]:
        return DevicePlacement(options, left, reason)
    providers = tuple(name for name in options.providers if not needs_gpu((name,)))
    if options.require_gpu or not providers:
        problem = "require_gpu is set" if options.require_gpu else "its providers all need one"
        raise LoadError(f"{reason}, no other GPU is left, and {problem}")
    return DevicePlacement(
        replace(options, providers=providers), (CPU_DEVICE,), f"runs on the CPU: {reason}"
    )
