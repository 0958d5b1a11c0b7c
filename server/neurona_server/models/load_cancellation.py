"""Ends the load of a model from another thread.

Everything that takes part in a load needs it: the threads of the reconciler, the model, its
sessions, and the process that checks its file.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from neurona_server.errors import LoadError


class LoadCancellation:
    """One load, which consists of steps. Any thread may cancel it."""

    def __init__(self, on_step: Callable[[], object] = lambda: None) -> None:
        """Prepare a load; `on_step` is called at the start and the end of each step."""
        self.last_progress = time.monotonic()
        """Seconds of the monotonic clock at which a step last started or ended."""

        self._on_step = on_step
        self._reason = ""
        self._interrupts: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        return bool(self._reason)

    def cancel(self, reason: str) -> None:
        """Interrupt the step in progress; this and all later steps raise LoadError."""
        with self._lock:
            self._reason = self._reason or reason
            # Under the lock: a step that has ended must not be interrupted, since what it used
            # may be in use by another load.
            for interrupt in self._interrupts:
                interrupt()

    def note_progress(self) -> None:
        """Note that the load still gets on."""
        self.last_progress = time.monotonic()
        self._on_step()

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
        self.note_progress()
        try:
            yield
        finally:
            self.note_progress()
            with self._lock:
                self._interrupts.remove(interrupt)
