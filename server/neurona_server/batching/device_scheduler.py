"""Shares a device fairly between the models that run on it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DeviceScheduler:
    """Allows `slots` concurrent runs on a device.

    A free slot goes to the model that has used the device least among those that wait for one.
    With fewer runs than slots no run waits. With more, each model gets an equal share of the
    run time, however many instances it has and however long its queue is.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots} (expected at least 1)")
        self._free_slots = slots
        self._used_seconds: dict[str, float] = {}  # of the device, by model
        self._waiting: list[str] = []
        self._running: list[str] = []
        self._changed = threading.Condition(threading.Lock())

    @contextmanager
    def turn(self, model: str, clock: Callable[[], float]) -> Iterator[None]:
        """Wait for a slot; the body of the `with` statement runs on the device."""
        with self._changed:
            self._enqueue(model)
            while not (self._free_slots and self._next_model() == model):
                self._changed.wait()
            self._waiting.remove(model)
            self._running.append(model)
            self._free_slots -= 1
            if self._free_slots and self._waiting:
                self._changed.notify_all()
        started = clock()
        try:
            yield
        finally:
            with self._changed:
                used = self._used_seconds.get(model, 0.0)
                self._used_seconds[model] = used + clock() - started
                self._running.remove(model)
                self._free_slots += 1
                if self._waiting:
                    self._changed.notify_all()

    def remove(self, model: str) -> None:
        """Remove the record of a model that will not run again."""
        with self._changed:
            self._used_seconds.pop(model, None)

    def _enqueue(self, model: str) -> None:
        if model not in self._waiting and model not in self._running:
            # A model that was idle has no claim on the time that it did not use.
            active = [self._used_seconds.get(m, 0.0) for m in {*self._waiting, *self._running}]
            used = self._used_seconds.get(model, 0.0)
            self._used_seconds[model] = max(used, min(active, default=0.0))
        self._waiting.append(model)

    def _next_model(self) -> str:
        return min(self._waiting, key=lambda model: self._used_seconds.get(model, 0.0))
