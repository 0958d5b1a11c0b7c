"""Models that nothing stands for any more: they answer what they have, and are freed."""

import logging
import threading
from collections.abc import Callable, Sequence

from neurona_server.models.model import Model

log = logging.getLogger(__name__)


class Drains:
    """Each in a thread of its own; any thread may begin one."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        """Seconds that a model has for what it admitted."""

        self._threads: list[threading.Thread] = []
        self._changing = threading.Lock()

    def begin(self, models: Sequence[Model]) -> list[threading.Thread]:
        """Threads that end when what the model admitted is answered."""
        return [self._start(f"drain {model}", self._drain, model) for model in models]

    def running(self) -> list[threading.Thread]:
        with self._changing:
            return [thread for thread in self._threads if thread.is_alive()]

    def _drain(self, model: Model) -> None:
        if model.drain(self.timeout):
            self._close(model)
        else:
            log.warning(
                "%s: a run of it goes on; it is unloaded when that ends",
                model,
                extra=model.log_fields,
            )
            self._start(f"late {model}", self._close, model)

    @staticmethod
    def _close(model: Model) -> None:
        model.wait()
        model.close()
        log.info("%s is unloaded", model, extra=model.log_fields)

    def _start(self, name: str, target: Callable[[Model], None], model: Model) -> threading.Thread:
        thread = threading.Thread(target=target, args=(model,), name=name, daemon=True)
        with self._changing:
            thread.start()
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        return thread
