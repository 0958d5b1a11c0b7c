"""Shares a device fairly between the models that run on it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DeviceTurn:
    """The turn of one model on the device, which holds a slot until it ends or gives it up."""

    __slots__ = ("holds_slot", "model", "started")

    def __init__(self, model: str, started: float) -> None:
        self.model = model
        self.started = started
        """When it began or, once it has given its slot up, when it did that."""
        self.holds_slot = True


class DeviceScheduler:
    """Allows `slots` concurrent runs on a device.

    A free slot goes to the model that has used the device least among those that wait for one.
    With fewer runs than slots no run waits. With more, each model gets an equal share of the
    run time, however many instances it has and however long its queue is.

    A turn that takes too long can be made to give its slot up: it goes on, beside the runs in the
    slots, so that runs which never end do not keep the other models from the device.
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
    def turn(self, model: str, clock: Callable[[], float]) -> Iterator[DeviceTurn]:
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
        turn = DeviceTurn(model, clock())
        try:
            yield turn
        finally:
            with self._changed:
                self._charge(turn, clock())

    def give_up_slot(self, turn: DeviceTurn, now: float) -> None:
        """Give the slot of a turn that goes on, if it still has one, to others. From any thread."""
        with self._changed:
            if turn.holds_slot:
                self._charge(turn, now)

    def remove(self, model: str) -> None:
        """Remove the record of a model that will not run again."""
        with self._changed:
            self._used_seconds.pop(model, None)

    def _charge(self, turn: DeviceTurn, now: float) -> None:
        """Count the time of a turn since it was last charged, and free its slot if it has one."""
        model = turn.model
        self._used_seconds[model] = self._used_seconds.get(model, 0.0) + now - turn.started
        turn.started = now
        if turn.holds_slot:
            turn.holds_slot = False
            self._running.remove(model)
            self._free_slots += 1
            if self._waiting:
                self._changed.notify_all()

    def _enqueue(self, model: str) -> None:
        if model not in self._waiting and model not in self._running:
            # A model that was idle has no claim on the time that it did not use.
            active = [self._used_seconds.get(m, 0.0) for m in {*self._waiting, *self._running}]
            used = self._used_seconds.get(model, 0.0)
            self._used_seconds[model] = max(used, min(active, default=0.0))
        self._waiting.append(model)

    def _next_model(self) -> str:
        return min(self._waiting, key=lambda model: self._used_seconds.get(model, 0.0))
