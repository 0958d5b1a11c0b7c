"""Returns the memory that models do not need any more to the system, in a thread of its own.

A model that is idle after a burst would otherwise keep the memory of its largest batch until it
runs again. The file is alone because the thread is one for all models, of which none has it.
"""

import logging
import threading
from collections.abc import Callable, Iterable

from neurona_server.models.model import Model
from neurona_server.resources import trim_heap

log = logging.getLogger(__name__)

MAX_PERIOD = 5.0
"""The longest time between two looks at the models, in seconds."""


class ArenaMaintenance:
    """Shrinks the arenas of all models that have run, from `start` until `stop`."""

    def __init__(self, list_models: Callable[[], Iterable[Model]], shrink_seconds: float) -> None:
        """Make the thread without starting it.

        Args:
            list_models: Returns the models in memory.
            shrink_seconds: The interval in which the sessions shrink their arenas; 0: never.
        """
        self._list_models = list_models
        self._shrink_seconds = shrink_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arena maintenance", daemon=True)

    def start(self) -> None:
        if self._shrink_seconds:
            self._thread.start()

    def stop(self) -> None:
        """End the thread, without waiting for what it is doing."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(min(self._shrink_seconds / 4, MAX_PERIOD)):
            try:
                self._shrink_arenas()
            except Exception:  # the thread must keep running
                log.exception("uncaught exception in the maintenance of arenas")

    def _shrink_arenas(self) -> None:
        shrunk = 0
        for model in self._list_models():
            for session in model.sessions:
                shrunk += session.shrink_arena()
        if shrunk:
            trim_heap()
