"""Ends the load of a model from another thread.

The file is alone since everything that takes part in a load needs it: the threads of the
reconciler, the model, its sessions, and the process that checks its file.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from neurona_server.errors import LoadError


class LoadCancellation:
    """One load. Any thread may cancel it."""

    def __init__(self) -> None:
        self._reason = ""
        self._interrupts: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def cancel(self, reason: str) -> None:
        """Interrupt the step in progress; this and all later steps raise LoadError."""
        with self._lock:
            self._reason = self._reason or reason
            # Under the lock: a step that has ended must not be interrupted, since what it used
            # may be in use by another load.
            for interrupt in self._interrupts:
                interrupt()

    def raise_if_cancelled(self) -> None:
        """Raise LoadError with the reason if the load has been cancelled."""
        if self._reason:
            raise LoadError(self._reason)

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Run a step of the load, which `interrupt` makes end early.

        Raises:
            LoadError: The load has been cancelled.
        """
        with self._lock:
            self.raise_if_cancelled()
            self._interrupts.append(interrupt)
        try:
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)
