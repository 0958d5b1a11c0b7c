"""Shares the devices fairly between the models that run on them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from neurona_server.errors import DeviceLostError

CPU = "cpu"
"""The label of the processor. A run on it needs no buffers of its own: any number of threads may
run one session."""

NewRun = Callable[[], Any]

NewCondition = Callable[[threading.Lock], threading.Condition]
"""Makes the condition in which threads wait with a lock: a simulation has them wait in virtual
time."""

SHORT_ABSENCE_SECONDS = 0.1
"""Time on a device that a model is still owed when it comes back: between two batches it waits for
no turn, though it has more requests."""


class ModelRuns:
    """The runs that one loaded model can have at once, by device; some are idle, others go on."""

    def __init__(self, model: str, new_runs: Sequence[tuple[str, NewRun]]) -> None:
        """Collect the runs, all of which are idle at first.

        Args:
            model: Its name.
            new_runs: For each, the label of its device and what makes the run.
        """
        self.model = model
        self.total = len(new_runs)
        self.idle: dict[str, list[NewRun]] = {device: [] for device, _ in new_runs}
        for device, new_run in reversed(new_runs):  # the last is taken first
            self.idle[device].append(new_run)
        self.on_end: Callable[[str, int, float], None] | None = None
        """Called at the end of a turn with the device, the batches and the seconds that it had."""
        self.used_seconds = 0.0
        """Those of its turns on all devices, and those that it has forgone while it was idle."""

    @property
    def devices(self) -> Sequence[str]:
        """The labels of the devices."""
        return list(self.idle)


class DeviceTurn:
    """The turn of one model on a device, which holds a slot until it ends or gives it up.

    It ends with the `with` statement that it is the context of.
    """

    __slots__ = (
        *("_clock", "_scheduler", "batches", "device", "holds_slot", "new_run", "runs"),
        *("seconds", "started"),
    )

    def __init__(
        self,
        scheduler: "DeviceScheduler",
        clock: Callable[[], float],
        runs: ModelRuns,
        device: str,
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self.runs = runs
        self.device = device
        self.new_run = runs.idle[device].pop()
        self.started = clock()
        """When it began or, once it has given its slot up, when it did that."""
        self.holds_slot = True
        self.batches = 0
        """Those that have run in it."""
        self.seconds = 0.0
        """Its seconds until `started`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scheduler.end(self, self._clock())


class DeviceUse:
    """The slots of one device, and how much it was used."""

    __slots__ = ("free_slots", "least_seconds", "seconds", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.free_slots = slots
        self.seconds = 0.0
        """Those of its turns together: more than have passed if several went on at once."""
        self.least_seconds = 0.0
        """What those who waited for it had used when the last turn began, at the least: the virtual
        time of start-time fair queueing (Goyal, Vin and Cheng 1996)."""

    @property
    def load(self) -> tuple[float, float]:
        """Share of the slots that are taken and, for devices with equal shares, past use."""
        return 1.0 - self.free_slots / self.slots, self.seconds


class DeviceScheduler:
    """Allows a number of concurrent runs (slots) on each device.

    A free slot goes to the model that has used the devices least among those that wait for one
    there. With fewer runs than slots no run waits. With more, each model gets an equal share of the
    run time, however many instances it has and however long its queue is. A model that is loaded on
    several devices gets the least loaded one that has a free slot.

    A turn that takes too long can be made to give its slot up: it goes on, beside the runs in the
    slots, so that runs which never end do not keep the other models from the device.

    A device that is lost gets no more turns. Its runs that go on are left to those who began them.
    """

    def __init__(
        self,
        slots: int,
        slots_by_device: Mapping[str, int] = MappingProxyType({}),
        new_condition: NewCondition = threading.Condition,
    ) -> None:
        """Make a scheduler of all devices; each is known by its label, such as "cuda:0".

        Args:
            slots: Concurrent runs on a device that `slots_by_device` does not have.
            slots_by_device: Concurrent runs by the label of the device.
            new_condition: Makes what threads wait in.

        Raises:
            ValueError: A device would have no slots.
        """
        for number in (slots, *slots_by_device.values()):
            if number < 1:
                raise ValueError(f"slots is {number} (expected at least 1)")
        self._slots = slots
        self._devices = {label: DeviceUse(number) for label, number in slots_by_device.items()}
        self._waiting: list[ModelRuns] = []
        self._changed = new_condition(threading.Lock())
        self.lost_devices: Mapping[str, str] = {}
        """Why each device that is lost does not work, by its label."""
        self.on_lost: Callable[[str, str], object] = lambda _device, _reason: None
        """Called once for each device that is lost, with its label and the reason."""
        self.check_device: Callable[[str], object] = lambda _device: None
        """Finds out whether a device is lost on which a run does not end, without blocking."""

    def turn(self, runs: ModelRuns, clock: Callable[[], float]) -> DeviceTurn:
        """Wait for a slot and return the turn, the context in which its `new_run` may run.

        Args:
            runs: Those of the model, of which the turn gets an idle one.
            clock: Returns the time in seconds.

        Raises:
            DeviceLostError: All devices of the model are lost.
        """
        with self._changed:
            self._enqueue(runs)
            while (device := self._find_device(runs)) is None:
                if (error := self.lost_error(runs)) is not None:
                    self._waiting.remove(runs)
                    raise error
                self._changed.wait()
            return self._start(runs, device, clock)

    def try_turn(self, runs: ModelRuns, clock: Callable[[], float]) -> DeviceTurn | None:
        """Do as `turn` does, but return None if it would have to wait."""
        with self._changed:
            self._enqueue(runs)
            device = self._find_device(runs)
            if device is None:
                self._waiting.remove(runs)
                if (error := self.lost_error(runs)) is not None:
                    raise error
                return None
            return self._start(runs, device, clock)

    def end(self, turn: DeviceTurn, now: float) -> None:
        """End a turn, whose run is idle again."""
        with self._changed:
            self._charge(turn, now)
            turn.runs.idle[turn.device].append(turn.new_run)
            if self._waiting:
                self._changed.notify_all()
        if turn.runs.on_end is not None and turn.batches:
            turn.runs.on_end(turn.device, turn.batches, turn.seconds)

    def give_up_slot(self, turn: DeviceTurn, now: float) -> None:
        """Give the slot of a turn that goes on, if it still has one, to others. From any thread."""
        with self._changed:
            if turn.holds_slot:
                self._charge(turn, now)
                if self._waiting:
                    self._changed.notify_all()

    def mark_lost(self, device: str, reason: str) -> None:
        """Begin no more turns on a device that does not work any more. From any thread."""
        with self._changed:
            if device in self.lost_devices:
                return
            self.lost_devices = {**self.lost_devices, device: reason}
            self._changed.notify_all()
        self.on_lost(device, reason)

    def lost_error(self, runs: ModelRuns) -> DeviceLostError | None:
        """Return the error for requests of a model, if all of its devices are lost."""
        lost = self.lost_devices
        if not lost or any(device not in lost for device in runs.idle):
            return None
        device = next(iter(runs.idle))
        return DeviceLostError(device, lost[device])

    def use(self, device: str) -> DeviceUse:
        """Return the use of a device, which changes as it runs."""
        with self._changed:
            return self._use(device)

    def _start(self, runs: ModelRuns, device: str, clock: Callable[[], float]) -> DeviceTurn:
        turn = DeviceTurn(self, clock, runs, device)
        self._waiting.remove(runs)
        use = self._devices[device]
        use.free_slots -= 1
        use.least_seconds = max(use.least_seconds, runs.used_seconds)
        if self._waiting and any(use.free_slots for use in self._devices.values()):
            self._changed.notify_all()
        return turn

    def _charge(self, turn: DeviceTurn, now: float) -> None:
        """Count the time of a turn since it was last charged, and free its slot if it has one."""
        use = self._devices[turn.device]
        seconds = now - turn.started
        turn.runs.used_seconds += seconds
        use.seconds += seconds
        turn.seconds += seconds
        turn.started = now
        if turn.holds_slot:
            turn.holds_slot = False
            use.free_slots += 1

    def _enqueue(self, runs: ModelRuns) -> None:
        for device in runs.idle:
            if (use := self._devices.get(device)) is not None:
                # A model that was idle has no claim on the time that it did not use.
                least = use.least_seconds - SHORT_ABSENCE_SECONDS
                runs.used_seconds = max(runs.used_seconds, least)
        self._waiting.append(runs)

    def _find_device(self, runs: ModelRuns) -> str | None:
        """Return the least loaded device where it is the turn of `runs`, None without one."""
        alone = len(self._waiting) == 1
        best, least = None, (2.0, 0.0)
        lost = self.lost_devices
        for device, idle in runs.idle.items():
            use = self._devices.get(device) or self._use(device)
            if not (idle and use.free_slots) or not (alone or self._next_runs(device) is runs):
                continue
            if lost and device in lost:
                continue
            if len(runs.idle) == 1:
                return device
            if use.load < least:
                best, least = device, use.load
        return best

    def _next_runs(self, device: str) -> ModelRuns | None:
        """Return those of the waiting model that has used the devices least and can run on this."""
        return min(
            [runs for runs in self._waiting if runs.idle.get(device)],
            key=lambda runs: runs.used_seconds,
            default=None,
        )

    def _use(self, device: str) -> DeviceUse:
        use = self._devices.get(device)
        if use is None:
            use = self._devices[device] = DeviceUse(self._slots)
        return use
