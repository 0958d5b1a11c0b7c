"""Divides the CUDA devices among the processes of a server.

CUDA shows a process one MIG slice at most, the first of those that CUDA_VISIBLE_DEVICES names
(NVIDIA's MIG user guide, "CUDA Visible Devices"). So a server that is to use several slices needs
as many processes, and each must name its slice before it starts CUDA. Written from that guide and
tested with a stand-in for the driver; not run on a GPU yet.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple

from neurona_server.errors import ConfigError
from neurona_server.models.onnx.devices import ALL, Device, DeviceTable

VISIBLE = "CUDA_VISIBLE_DEVICES"

_CONTAINERS_VISIBLE = "NVIDIA_VISIBLE_DEVICES"  # what NVIDIA's container toolkit has let in
_SLICE = "MIG-"


class DeviceShare(NamedTuple):
    """Which process it is of those that the devices are divided among."""

    process: int = 0
    processes: int = 1

    def choose(self, devices: Sequence[Device]) -> tuple[Device, ...]:
        """Return the devices of this process: every so many one, or one that it shares."""
        mine = tuple(devices[self.process :: self.processes])
        return mine or tuple(devices[self.process % len(devices) :][:1])

    def usable(self, table: DeviceTable) -> tuple[Device, ...]:
        """Return the devices, of all that there are, that are this process's and not lost."""
        devices = table.devices()
        mine = self.choose(devices) if devices else ()
        return tuple(device for device in mine if device.label not in table.lost)


def claim_slice(option: str, share: DeviceShare, environment: MutableMapping[str, str]) -> str:
    """Have CUDA show this process its MIG slice, if the devices are slices; before CUDA starts.

    Args:
        option: The option `devices`.
        share: Which slice it is to be.
        environment: That of the process, where CUDA looks for it.

    Returns:
        The option for this process.

    Raises:
        ConfigError: It is to have several slices, or slices and whole GPUs.
    """
    names = _visible_slices(environment) if option == ALL else option.split(",")
    slices = [name for name in names if name.upper().startswith(_SLICE)]
    if not slices or (option == ALL and share.processes == 1):  # CUDA takes the first
        return option
    if len(slices) < len(names):
        raise ConfigError(
            f"option devices is {option!r} (expected MIG slices or whole GPUs: CUDA does not show "
            "both to a process)"
        )
    if len(slices) > 1 and share.processes == 1:
        raise ConfigError(
            f"option devices has {len(slices)} MIG slices (expected one, which is all that CUDA "
            "shows a process, or split_devices and a process for each)"
        )
    own_slice = slices[share.process % len(slices)]
    environment[VISIBLE] = own_slice
    return option if option == ALL else own_slice


def _visible_slices(environment: Mapping[str, str]) -> list[str]:
    visible = environment.get(VISIBLE) or environment.get(_CONTAINERS_VISIBLE) or ""
    return [name.strip() for name in visible.split(",")]
