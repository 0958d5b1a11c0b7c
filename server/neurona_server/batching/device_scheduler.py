"""Turns on a device that several models run on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DeviceScheduler:
    """Lets `slots` runs on a device at once; a free slot goes to the model that has had the
    least of the device so far among those that wait for one.

    With fewer runs than slots nobody waits. With more, each model gets an equal share of
    the run time, however many instances it has and however much it has waiting.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}; expected at least 1")
        self._free = slots
        self._used: dict[str, float] = {}  # seconds of the device, by model
        self._waiting: list[str] = []
        self._running: list[str] = []
        self._changed = threading.Condition(threading.Lock())

    @contextmanager
    def turn(self, model: str, clock: Callable[[], float]) -> Iterator[None]:
        """Waits for the model's turn; what is inside runs on the device."""
        with self._changed:
            self._enter(model)
            while not (self._free and self._next() == model):
                self._changed.wait()
            self._waiting.remove(model)
            self._running.append(model)
            self._free -= 1
            if self._free and self._waiting:
                self._changed.notify_all()
        started = clock()
        try:
            yield
        finally:
            with self._changed:
                self._used[model] = self._used.get(model, 0.0) + clock() - started
                self._running.remove(model)
                self._free += 1
                if self._waiting:
                    self._changed.notify_all()

    def forget(self, model: str) -> None:
        """The model is gone."""
        with self._changed:
            self._used.pop(model, None)

    def _enter(self, model: str) -> None:
        if model not in self._waiting and model not in self._running:
            # Who was idle has no claim on the time that it did not use.
            active = [self._used.get(name, 0.0) for name in {*self._waiting, *self._running}]
            self._used[model] = max(self._used.get(model, 0.0), min(active, default=0.0))
        self._waiting.append(model)

    def _next(self) -> str:
        return min(self._waiting, key=lambda model: self._used.get(model, 0.0))
