"""The devices that sessions can be loaded on: the processor and CUDA devices.

A CUDA device is a GPU or, in MIG mode, a slice of one. Numbers are those that CUDA gives them in
this process: CUDA_VISIBLE_DEVICES may hide and reorder what the machine has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from neurona_server.errors import ConfigError

ALL = "all"
"""The value of the option `devices` for all of them."""

FIRST = "0"
"""The value of the option `devices` for the first one, which is the default."""

CUDA_SLOTS = 2
"""Runs in flight on a CUDA device: while one runs, the inputs of the next are copied to the device
and the outputs of the last one from it. More would only wait for each other."""


@dataclass(frozen=True)
class Device:
    """What a session is loaded on."""

    kind: Literal["cpu", "cuda"]
    number: int = 0
    """Of a CUDA device, in this process."""
    name: str = ""
    """Name of the product."""
    uuid: str = ""
    """"GPU-..." or, of a slice, "MIG-..."; the same in every process and after a restart."""
    memory_bytes: int = 0

    @property
    def label(self) -> str:
        """Return "cpu", or "cuda:" and the number."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.number}"


CPU_DEVICE = Device("cpu")


def cuda_devices() -> tuple[Device, ...]:
    """Return the CUDA devices of this process; none if the driver does not report them."""
    return ()


def choose_devices(
    option: str, available: Sequence[Device], name: str = "option devices"
) -> tuple[Device, ...]:
    """Return the devices that an option names, in its order.

    Args:
        option: "all", or numbers, UUIDs or unique beginnings of UUIDs, separated by commas.
        available: The CUDA devices of this process.
        name: What has this value, for the error.

    Raises:
        ConfigError: It names a device that there is not, or one twice.
    """
    if option == ALL:
        return tuple(available)
    devices: list[Device] = []
    for text in (part.strip() for part in option.split(",")):
        matching = [device for device in available if _matches(text, device)]
        if len(matching) != 1:
            has = ", ".join(f"{device.number} ({device.uuid})" for device in available) or "none"
            problem = "several devices have" if matching else "no device has"
            raise ConfigError(f"{name} has {text!r}, which {problem} (expected {ALL}, or of {has})")
        if matching[0] in devices:
            raise ConfigError(f"{name} has {matching[0].label} twice: {text!r} (expected it once)")
        devices += matching
    return tuple(devices)


def _matches(text: str, device: Device) -> bool:
    if text.isdecimal():
        return int(text) == device.number
    return "-" in text and device.uuid.lower().startswith(text.lower())
