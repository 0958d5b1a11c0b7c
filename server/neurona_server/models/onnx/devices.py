"""The devices that sessions can be loaded on: the processor and CUDA devices.

A CUDA device is a GPU or, in MIG mode, a slice of one. Numbers are those that CUDA gives them in
this process: CUDA_VISIBLE_DEVICES may hide and reorder what the machine has.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from neurona_server.errors import ConfigError
from neurona_server.models.onnx import cuda_driver

log = logging.getLogger(__name__)

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
        """Return "cpu", or "cuda:" and the number.

        A MIG slice has its UUID in place of the number, which is 0 in each process.
        """
        if self.kind == "cpu":
            return "cpu"
        return f"cuda:{self.uuid if self.uuid.startswith('MIG-') else self.number}"


CPU_DEVICE = Device("cpu")


def device_of(label: str) -> Device:
    """Return the device that has this label, with what the label says about it."""
    kind, _, name = label.partition(":")
    if kind == "cpu":
        return CPU_DEVICE
    # A slice is the only device of its process.
    return Device("cuda", int(name)) if name.isdecimal() else Device("cuda", 0, uuid=name)


class DeviceTable:
    """The CUDA devices of this process, which are read once, when they are first needed.

    CUDA keeps the list from its start to the end of the process, whatever becomes of a device.
    """

    def __init__(self, read: Callable[[], Sequence[Device]] | None = None) -> None:
        self._read = read or read_cuda_devices
        self._devices: tuple[Device, ...] | None = None
        self._lock = threading.Lock()
        self.lost: Mapping[str, str] = {}
        """Why each device that is lost does not work, by its label."""

    def devices(self) -> tuple[Device, ...]:
        """Return all devices, in the order of their numbers; none without a working driver."""
        with self._lock:
            if self._devices is None:
                self._devices = tuple(self._read())
            return self._devices

    def usable(self) -> tuple[Device, ...]:
        """Return the devices that models can be loaded on: those that are not lost."""
        return tuple(device for device in self.devices() if device.label not in self.lost)

    def mark_lost(self, label: str, reason: str) -> None:
        """Load no more models on a device: an error of it stays until the process ends."""
        with self._lock:
            self.lost = {**self.lost, label: reason}


def read_cuda_devices() -> Sequence[Device]:
    """Ask the driver for the devices of this process; return none if it cannot be used."""
    try:
        driver = cuda_driver.load_driver()
        reports = [driver.device(number) for number in range(driver.device_count())]
    except cuda_driver.CudaDriverError as error:
        log.info("no CUDA devices: %s", error)
        return ()
    return [Device("cuda", one.number, one.name, one.uuid, one.total_bytes) for one in reports]


DEVICES = DeviceTable()
"""Those of this process; there is one table since a device that is lost is lost for all of it."""


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
