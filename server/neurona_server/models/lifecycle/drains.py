"""Drains versions that are unloaded or replaced, each in a thread of its own, and frees them."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from neurona_server.models.model import Model

log = logging.getLogger(__name__)


class DrainPool:
    """Drains and frees models, each in a thread of its own; any thread may call it."""

    def __init__(self, timeout: float, session_timeout: float = 0.0) -> None:
        self.timeout = timeout
        """Seconds in which a model may finish the requests that it has admitted."""

        self.session_timeout = session_timeout
        """Seconds before that in which the sessions of a model may end by themselves."""

        self._draining: dict[Model, None] = {}
        self._waits_for_sessions = True

        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start_drains(self, models: Sequence[Model]) -> list[Future[None]]:
        """Start draining, and return futures that end when all admitted requests are answered."""
        futures = []
        for model in models:
            future: Future[None] = Future()
            futures.append(future)
            self._start_thread(f"drain {model}", partial(self._drain, future), model)
        return futures

    def running_threads(self) -> list[threading.Thread]:
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def end_sessions(self, reason: str) -> None:
        """End the sessions that models wait for, and wait for none from now on."""
        with self._lock:
            self._waits_for_sessions = False
            draining = [*self._draining]
        for model in draining:
            model.open_sessions.end_all(reason)

    def _drain(self, future: Future[None], model: Model) -> None:
        with self._lock:
            self._draining[model] = None
            waits_for_sessions = self._waits_for_sessions
        try:
            if waits_for_sessions:
                model.drain_sessions(self.session_timeout)
            if model.drain(self.timeout):
                self._close(model)
            else:
                log.warning(
                    "%s: a run is still in flight after the drain; unloading once it has ended",
                    model,
                    extra=model.log_fields,
                )
                self._start_thread(f"late {model}", self._close, model)
        finally:
            with self._lock:
                del self._draining[model]
            future.set_result(None)

    @staticmethod
    def _close(model: Model) -> None:
        model.wait()
        model.close()
        log.info("%s: unloaded", model, extra=model.log_fields)

    def _start_thread(self, name: str, target: Callable[[Model], None], model: Model) -> None:
        thread = threading.Thread(target=target, args=(model,), name=name, daemon=True)
        with self._lock:
            thread.start()
            self._threads = [other for other in self._threads if other.is_alive()] + [thread]


def combine(futures: Sequence[Future[None]]) -> Future[None]:
    """Return a future that ends with the last of `futures`."""
    combined: Future[None] = Future()
    remaining = [*futures]
    lock = threading.Lock()

    def end_one(future: Future[None]) -> None:
        with lock:
            remaining.remove(future)
            is_last = not remaining
        if is_last:
            combined.set_result(None)

    for future in futures:
        future.add_done_callback(end_one)
    if not futures:
        combined.set_result(None)
    return combined
