"""Notices when the transport's thread hangs: the process then looks alive and serves nobody.

It asks the transport once a second whether its thread has turned: taken events, or waited for them.
"""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two questions."""

MAX_MISSED = 5
"""Questions in a row that are answered with no until the transport counts as hung. They are
counted, not the seconds: a process that was suspended is no hung one."""


class Heartbeat:
    """Watches a transport in a thread of its own, from `start` until `stop`."""

    def __init__(
        self,
        has_turned: Callable[[], bool],
        on_change: Callable[[str], None],
        period: float = PERIOD,
    ) -> None:
        """Make the thread without starting it.

        Args:
            has_turned: `Listener.has_turned` of the transport.
            on_change: Called with the reason when the transport counts as hung, and with "" when it
                turns again.
            period: Seconds between two questions.
        """
        self._has_turned = has_turned
        self._on_change = on_change
        self._period = period
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if it was started."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def _watch(self) -> None:
        missed = 0
        while not self._stopping.wait(self._period):
            if self._has_turned():
                if missed >= MAX_MISSED:
                    log.warning(
                        "transport turns again after %g s: health is as before",
                        missed * self._period,
                    )
                    self._on_change("")
                missed = 0
                continue
            missed += 1
            if missed == MAX_MISSED:
                reason = f"the transport's thread has not turned for {missed * self._period:g} s"
                log.error("transport hung: %s: health set to NOT_SERVING", reason)
                self._on_change(reason)
