"""What becomes of the models when a device is lost: they move to others, or fail clearly.

The scheduler learns of the loss from a run, or from the driver when a run does not end. Batches in
flight are its models' affair (`Batcher`). Here the sessions on the device are put aside, and models
that have no other device are loaded again: on another device of the process or, if their providers
allow it, on the CPU.
"""

import logging
import threading
from collections.abc import Callable

from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.errors import DeviceLostError
from neurona_server.models.lifecycle.reconciler import Reconciler
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.onnx import devices
from neurona_server.models.onnx.device_probe import DeviceChecks
from neurona_server.models.onnx.device_shares import DeviceShare
from neurona_server.models.onnx.session import abandon_sessions
from neurona_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class LostDevices:
    """Acts on each device that the scheduler finds lost, from `start` on."""

    def __init__(
        self,
        scheduler: DeviceScheduler,
        registry: Registry,
        metrics: Metrics,
        on_last: Callable[[], object],
        share: DeviceShare,
    ) -> None:
        """Watch for lost devices.

        Args:
            scheduler: That of all devices.
            registry: The models that serve.
            metrics: Where lost devices are shown.
            on_last: Called once this process has no GPU left: only a new one can use it again.
            share: Which GPUs this process may use.
        """
        self._scheduler = scheduler
        self._registry = registry
        self._metrics = metrics
        self._on_last = on_last
        self._share = share
        self._reconciler: Reconciler | None = None
        self._lock = threading.Lock()
        scheduler.on_lost = self._handle_loss
        scheduler.check_device = DeviceChecks(scheduler.mark_lost).check

    @property
    def any(self) -> bool:
        """Whether a device is lost."""
        return bool(self._scheduler.lost_devices)

    def start(self, reconciler: Reconciler) -> None:
        """Load models again with `reconciler` from now on."""
        self._reconciler = reconciler

    def recheck(self) -> None:
        """Look again: a version may have been published whose device was lost shortly before."""
        if self.any:
            threading.Thread(target=self._move_models, name="lost devices", daemon=True).start()

    def _handle_loss(self, device: str, reason: str) -> None:
        """Act on a loss at once, in the thread of a run or of a check, and then in another one."""
        devices.DEVICES.mark_lost(device, reason)  # first: models that are loaded avoid it now
        log.error("%s is lost and no longer used: %s", device, reason)
        self._metrics.run_failures.lost_devices.labels(device).set(1)
        abandon_sessions(device, DeviceLostError(device, reason))
        threading.Thread(target=self._finish_loss, name=f"lost {device}", daemon=True).start()

    def _finish_loss(self) -> None:
        self._move_models()
        if self._reconciler is not None:
            self._reconciler.announce_change()
        if not self._share.usable(devices.DEVICES):
            self._on_last()

    def _move_models(self) -> None:
        """Load the models again that have no device left, each once."""
        with self._lock:
            for device, reason in self._scheduler.lost_devices.items():
                for model in self._registry.models():
                    if model.lose_device(device, reason) and self._reconciler is not None:
                        self._reconciler.reload(model)
