"""Asks NVIDIA's driver whether a device still works.

An error that destroys the context of a device is returned by every later call of the driver there,
also by the cheapest one, cuMemGetInfo (CUDA driver API). A GPU that has fallen off its bus may keep
the driver from answering at all: so each question has a thread of its own, and a time limit.
Written from the specification and tested with a stand-in for the driver; no GPU has been lost to it
yet.
"""

import logging
import threading
import time
from collections.abc import Callable

from neurona_server.models.onnx import cuda_driver
from neurona_server.models.onnx.cuda_driver import CudaDriver, CudaDriverError, load_driver
from neurona_server.models.onnx.devices import Device, device_of
from neurona_server.models.onnx.run_failures import is_sticky_code

log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
"""Time for the driver to answer."""

CHECK_SECONDS = 10.0
"""Least time between two checks of a device on which a run does not end."""


class DeviceProbe:
    """Questions to one driver. Any thread may ask."""

    def __init__(self, driver: CudaDriver, seconds: float = PROBE_SECONDS) -> None:
        self._driver = driver
        self._seconds = seconds
        self._questions: dict[int, _Question] = {}  # the last one about each device
        self._lock = threading.Lock()

    def ask(self, number: int) -> str:
        """Return why the device with that number does not work, "" if it does.

        Blocks for at most the time limit. While a question is not answered no other one is asked
        about the device.
        """
        with self._lock:
            question = self._questions.get(number)
            if question is None or question.answered.is_set():
                question = self._questions[number] = _Question(self._driver, number)
        if not question.answered.wait(self._seconds):
            return f"the driver has not answered for {self._seconds:g} s"
        return question.reason


class _Question:
    """One call of the driver, in a thread that may never end."""

    def __init__(self, driver: CudaDriver, number: int) -> None:
        self.answered = threading.Event()
        self.reason = ""
        self._driver, self._number = driver, number
        name = f"probe cuda:{number}"
        threading.Thread(target=self._ask, name=name, daemon=True).start()

    def _ask(self) -> None:
        try:
            self._driver.memory_info(self._number)
        except CudaDriverError as error:
            if is_sticky_code(error.code):
                self.reason = f"{error.name} ({error.code})"
        except Exception:  # an unanswered question would mean that the device is lost
            log.exception("the driver cannot be asked about cuda:%d", self._number)
        finally:
            self.answered.set()


class DeviceChecks:
    """Checks devices on which a run does not end, without blocking who asks for that."""

    def __init__(
        self,
        on_lost: Callable[[str, str], object],
        ask: Callable[[Device], str] | None = None,
        seconds: float = CHECK_SECONDS,
    ) -> None:
        """Prepare.

        Args:
            on_lost: Called with the label of a device that is lost, and the reason.
            ask: Returns why a device does not work; by default the driver is asked.
            seconds: Least time between two checks of a device.
        """
        self._on_lost = on_lost
        self._ask = ask or probe_device
        self._seconds = seconds
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()

    def check(self, label: str) -> None:
        """Start to check a device by its label, as "cuda:0", unless that was just done."""
        device = device_of(label)
        now = time.monotonic()
        with self._lock:
            if device.kind != "cuda" or now < self._next.get(label, 0.0):
                return
            self._next[label] = now + self._seconds
        threading.Thread(
            target=self._check, args=(device,), name=f"check {label}", daemon=True
        ).start()

    def _check(self, device: Device) -> None:
        if reason := self._ask(device):
            self._on_lost(device.label, reason)


_probes: dict[str, DeviceProbe] = {}  # by the path of the driver's library


def probe_device(device: Device) -> str:
    """Return why a CUDA device does not work, "" if it does or the driver cannot be asked."""
    probe = _probes.get(cuda_driver.LIBRARY)
    if probe is None:
        try:
            probe = DeviceProbe(load_driver())
        except CudaDriverError as error:
            log.debug("devices cannot be checked: %s", error)
            return ""
        _probes[cuda_driver.LIBRARY] = probe
    return probe.ask(device.number)
