"""Shares the devices fairly between the models that run on them.

It is one file since to begin, to end and to predict turns all read and change the same accounts
under the same lock.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from neurona_server.batching.fair_queue import Account, FairQueue, ModelShare
from neurona_server.batching.inline_scheduler import InlineScheduler
from neurona_server.errors import DeviceLostError

CPU = "cpu"
"""The label of the processor. A run on it needs no buffers of its own: any number of threads may
run one session."""

NewRun = Callable[[], Any]

NewCondition = Callable[[threading.Lock], threading.Condition]
"""Makes the condition in which threads wait with a lock: a simulation has them wait in virtual
time."""

WAIT_DEVIATIONS = 1.0
"""Mean deviations above its average wait that a model is predicted to wait which has used more than
its share. With none, 18 % of what five such models with objectives admit is late in a simulation of
ten models, with one 7 %, and with two more are refused than that is worth."""

OVERDUE_SHARE = 0.1
"""The part of its time until now for which a turn that should have ended is assumed to go on."""


class ModelRuns(ModelShare):
    """The runs that one loaded model can have at once, by device; some are idle, others go on."""

    def __init__(self, model: str, new_runs: Sequence[tuple[str, NewRun]]) -> None:
        """Collect the runs, all of which are idle at first.

        Args:
            model: Its name.
            new_runs: For each, the label of its device and what makes the run.
        """
        super().__init__()
        self.model = model
        self.total = len(new_runs)
        self.idle: dict[str, list[NewRun]] = {device: [] for device, _ in new_runs}
        for device, new_run in reversed(new_runs):  # the last is taken first
            self.idle[device].append(new_run)
        self.on_end: Callable[[str, int, float], None] | None = None
        """Called at the end of a turn with the device, the batches and the seconds that it had."""
        self.used_seconds = 0.0
        """Those of its turns on all devices."""
        self.waiters: deque[_Waiter] = deque()
        """The threads that wait for a turn, in the order in which they came."""
        self.accounts: dict[str, DeviceAccount] = {}
        """What it has used of each device; made by the scheduler."""

    @property
    def devices(self) -> Sequence[str]:
        """The labels of the devices."""
        return list(self.idle)


class _Waiter:
    """A thread that waits for a turn."""

    __slots__ = ("clock", "condition", "due", "error", "since", "turn")

    def __init__(
        self,
        condition: threading.Condition,
        clock: Callable[[], float],
        since: float,
        due: float,
    ) -> None:
        self.condition = condition
        self.clock = clock
        self.since = since
        self.due = due
        """When its turn has to begin at the latest, by the model's objective."""
        self.turn: DeviceTurn | None = None
        self.error: DeviceLostError | None = None


class DeviceAccount(Account):
    """What a model has used of a device."""

    __slots__ = ("device", "idle", "runs", "turns")

    def __init__(self, runs: ModelRuns, device: str, number: int, used: float) -> None:
        super().__init__(number, used)
        self.runs = runs
        self.device = device
        self.idle = runs.idle[device]
        self.turns = 0
        """Those that go on."""

    @property
    def can_start(self) -> bool:
        """Whether a thread waits, and a run is idle here."""
        return bool(self.runs.waiters and self.idle)

    @property
    def due(self) -> float:
        return self.runs.waiters[0].due

    @property
    def slack(self) -> float:
        return self.runs.slack

    @property
    def turn_seconds(self) -> float:
        return self.runs.turn_seconds

    @property
    def run_count(self) -> int:
        return self.turns + len(self.idle)


class DeviceTurn:
    """The turn of one model on a device, which holds a slot until it ends or gives it up.

    It ends with the `with` statement that it is the context of.
    """

    __slots__ = (
        *("_clock", "_scheduler", "account", "batches", "device", "expected_end", "has_ended"),
        *("holds_slot", "max_seconds", "new_run", "runs", "seconds", "started"),
    )

    def __init__(
        self, scheduler: "DeviceScheduler", clock: Callable[[], float], account: DeviceAccount
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self.account = account
        self.runs = account.runs
        self.device = account.device
        self.new_run = account.idle.pop()
        self.started = clock()
        """When it began or, once it has given its slot up, when it did that."""
        self.expected_end = self.started + self.runs.turn_seconds
        self.max_seconds = math.inf
        """What its run may take, because of the objectives of other models on the device."""
        self.holds_slot = True
        self.has_ended = False
        self.batches = 0
        """Those that have run in it."""
        self.seconds = 0.0
        """Its seconds until `started`."""

    def expect(self, seconds: float) -> None:
        """Tell that it is predicted to end in so many seconds."""
        self.expected_end = self._clock() + seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.has_ended:
            self._scheduler.end(self, self._clock())


class DeviceUse(FairQueue[DeviceAccount]):
    """The slots of one device, how much it was used, and who waits for it."""

    __slots__ = ("free_slots", "seconds", "turns")

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.free_slots = slots
        self.seconds = 0.0
        """Those of its turns together: more than have passed if several went on at once."""
        self.turns: set[DeviceTurn] = set()
        """Those that hold a slot."""

    @property
    def load(self) -> tuple[float, float]:
        """Share of the slots that are taken and, for devices with equal shares, past use."""
        return 1.0 - self.free_slots / self.slots, self.seconds


class DeviceScheduler:
    """Allows a number of concurrent runs (slots) on each device.

    With fewer runs than slots no run waits. With more, each model gets an equal share of the run
    time of each device, however many instances it has and however long its queue is. A free slot
    goes to a model that has used no more than its share: of several, to the one whose objective
    requires it first. Without any, it goes to the one that has used least. A model that is loaded
    on several devices gets the least loaded one that has a free slot.

    Runs are not interrupted. So that a model which keeps to its share can keep its objective, too,
    the runs of others on the device are limited to what it can wait, as long as it has requests.

    To choose a model takes time proportional to the logarithm of the number of models that wait,
    and wakes one thread.

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
        # Invariant: no device has a free slot while a model waits that has an idle run there.
        self._waiting: dict[ModelRuns, None] = {}
        self._lock = threading.Lock()
        self._new_condition = new_condition
        self.inline = InlineScheduler()
        """The turns of models that run on a transport's thread, beside the slots of the CPU."""
        self.lost_devices: Mapping[str, str] = {}
        """Why each device that is lost does not work, by its label."""
        self.on_lost: Callable[[str, str], object] = lambda _device, _reason: None
        """Called once for each device that is lost, with its label and the reason."""
        self.check_device: Callable[[str], object] = lambda _device: None
        """Finds out whether a device is lost on which a run does not end, without blocking."""

    @property
    def waiting_threads(self) -> int:
        """The number of threads that wait for a turn."""
        with self._lock:
            return sum([len(runs.waiters) for runs in self._waiting])

    def turn(self, runs: ModelRuns, clock: Callable[[], float]) -> DeviceTurn:
        """Wait for a slot and return the turn, the context in which its `new_run` may run.

        Args:
            runs: Those of the model, of which the turn gets an idle one.
            clock: Returns the time in seconds.

        Raises:
            DeviceLostError: All devices of the model are lost.
        """
        with self._lock:
            turn = self._start_or_wait(runs, clock)
            return turn if isinstance(turn, DeviceTurn) else _wait_for_turn(turn)

    def turn_after(self, turn: DeviceTurn, clock: Callable[[], float]) -> DeviceTurn:
        """End a turn, wait for the next one of the same model and return it.

        Otherwise a model with one instance would never be there when its own turn ends, and had to
        wait for a run of another model, whatever it has used.

        Raises:
            DeviceLostError: All devices of the model are lost.
        """
        following: DeviceTurn | _Waiter
        now = clock()
        with self._lock:
            self._charge(turn, now)
            turn.has_ended = True
            turn.account.idle.append(turn.new_run)
            runs = turn.runs
            if not self._waiting or self.lost_error(runs) is not None:
                self._leave(turn.account, now)
                following = self._start_or_wait(runs, clock)
            else:
                waiter = following = self._wait(runs, clock)
                self._leave(turn.account, now)
                for device in sorted(runs.idle, key=lambda label: self._devices[label].load):
                    self._dispatch(device, now)
                if waiter.turn is not None:
                    following = waiter.turn
        _report_end(turn)
        if isinstance(following, DeviceTurn):
            return following
        with self._lock:
            return _wait_for_turn(following)

    def forget(self, runs: ModelRuns) -> None:
        """Drop what is known of a model that has no more turns: its memory is to be freed."""
        with self._lock:
            for account in runs.accounts.values():
                self._devices[account.device].remove(account)
        self.inline.forget(runs)

    def try_turn(self, runs: ModelRuns, clock: Callable[[], float]) -> DeviceTurn | None:
        """Do as `turn` does, but return None if it would have to wait."""
        with self._lock:
            account = self._find_free(runs, clock())
            if account is None:
                if (error := self.lost_error(runs)) is not None:
                    raise error
                return None
            return self._start_free(account, clock)

    def end(self, turn: DeviceTurn, now: float) -> None:
        """End a turn, whose run is idle again."""
        with self._lock:
            self._charge(turn, now)
            turn.has_ended = True
            turn.account.idle.append(turn.new_run)
            self._leave(turn.account, now)
            if self._waiting:
                self._dispatch(turn.device, now)
        _report_end(turn)

    def give_up_slot(self, turn: DeviceTurn, now: float) -> None:
        """Give the slot of a turn that goes on, if it still has one, to others. From any thread."""
        with self._lock:
            if turn.holds_slot:
                self._charge(turn, now)
                self._dispatch(turn.device, now)

    def predict_turn(self, runs: ModelRuns, now: float, turns: int = 1) -> float:
        """Return the predicted seconds by which turns of other models delay those of a model.

        Args:
            runs: Those of the model.
            now: The time in seconds.
            turns: Which of its next turns it is about: 1 for the next one. For each further one the
                average wait is added.

        Returns:
            The seconds until that turn begins, without those of the model's own turns. They are 0.0
            if a slot and a run of the model are free.
        """
        lost = self.lost_devices
        least = math.inf
        with self._lock:
            for device in runs.idle:
                if device in lost:
                    continue
                seconds = self._predict_on(self._account(runs, device), now)
                if seconds < least:
                    least = seconds
                    if not least:
                        break
        if least == math.inf:
            return 0.0
        return least + (turns - 1) * runs.wait_seconds

    def mark_lost(self, device: str, reason: str) -> None:
        """Begin no more turns on a device that does not work any more. From any thread."""
        with self._lock:
            if device in self.lost_devices:
                return
            self.lost_devices = {**self.lost_devices, device: reason}
            for runs in [*self._waiting]:
                if (error := self.lost_error(runs)) is not None:
                    for waiter in runs.waiters:
                        waiter.error = error
                        waiter.condition.notify()
                    runs.waiters.clear()
                    del self._waiting[runs]
                    for account in runs.accounts.values():
                        self._update_activity(account)
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
        with self._lock:
            return self._use(device)

    def _start_or_wait(self, runs: ModelRuns, clock: Callable[[], float]) -> "DeviceTurn | _Waiter":
        account = self._find_free(runs, clock())
        if account is not None:
            runs.observe_wait(0.0)
            return self._start_free(account, clock)
        if (error := self.lost_error(runs)) is not None:
            raise error
        return self._wait(runs, clock)

    def _find_free(self, runs: ModelRuns, now: float) -> DeviceAccount | None:
        """Return the account of the least loaded device with a free slot and an idle run."""
        best, least = None, (2.0, 0.0)
        lost = self.lost_devices
        for device, idle in runs.idle.items():
            account = runs.accounts.get(device) or self._account(runs, device)
            use = self._devices[device]
            use.note_request(account, now)
            if not (idle and use.free_slots) or (lost and device in lost):
                continue
            if len(runs.idle) == 1:
                return account
            if use.load < least:
                best, least = account, use.load
        return best

    def _start_free(self, account: DeviceAccount, clock: Callable[[], float]) -> DeviceTurn:
        """Start a turn for which nobody had to wait."""
        use = self._devices[account.device]
        use.advance(clock())
        use.limit_credit(account)
        return self._start(account, clock)

    def _start(self, account: DeviceAccount, clock: Callable[[], float]) -> DeviceTurn:
        use = self._devices[account.device]
        turn = DeviceTurn(self, clock, account)
        now = turn.started
        use.advance(now)
        account.turns += 1
        use.set_active(account, True)
        use.free_slots -= 1
        use.turns.add(turn)
        turn.max_seconds = use.max_seconds(account, now)
        return turn

    def _wait(self, runs: ModelRuns, clock: Callable[[], float]) -> "_Waiter":
        now = clock()
        waiter = _Waiter(self._new_condition(self._lock), clock, now, runs.due(now))
        runs.waiters.append(waiter)
        self._waiting[runs] = None
        for account in runs.accounts.values():
            use = self._devices[account.device]
            use.note_request(account, now)
            use.advance(now)
            if len(runs.waiters) == 1:
                use.limit_credit(account)
            use.set_active(account, True)
            use.push(account)
        return waiter

    def _dispatch(self, device: str, now: float) -> None:
        """Give the free slots of a device to those whose turn it is, and wake their threads."""
        if device in self.lost_devices:
            return
        use = self._devices[device]
        use.advance(now)
        while use.free_slots and (account := use.pop()) is not None:
            runs = account.runs
            waiter = runs.waiters.popleft()
            if not runs.waiters:
                del self._waiting[runs]
            turn = waiter.turn = self._start(account, waiter.clock)
            runs.observe_wait(turn.started - waiter.since)
            use.push(account)
            if len(runs.accounts) > 1:
                for other in runs.accounts.values():
                    self._update_activity(other)
            waiter.condition.notify()

    def _charge(self, turn: DeviceTurn, now: float) -> None:
        """Count the time of a turn since it was last charged, and free its slot if it has one."""
        account, use = turn.account, self._devices[turn.device]
        use.advance(now)
        seconds = now - turn.started
        use.charge(account, seconds)
        runs = turn.runs
        runs.used_seconds += seconds
        use.seconds += seconds
        turn.seconds += seconds
        turn.started = now
        if turn.holds_slot:
            turn.holds_slot = False
            use.free_slots += 1
            use.turns.discard(turn)
            runs.observe_turn(seconds)

    def _leave(self, account: DeviceAccount, now: float) -> None:
        """Count a turn as ended, after its run was put back."""
        account.turns -= 1
        self._devices[account.device].advance(now)
        self._update_activity(account)
        if account.runs.waiters:
            self._devices[account.device].push(account)

    def _update_activity(self, account: DeviceAccount) -> None:
        is_active = bool(account.turns or account.runs.waiters)
        self._devices[account.device].set_active(account, is_active)

    def _predict_on(self, account: DeviceAccount, now: float) -> float:
        """Return the predicted seconds for which turns of others keep a model from a device."""
        use = self._devices[account.device]
        if account.idle and use.free_slots:
            return 0.0
        runs = account.runs
        used, wait = account.used, 0.0
        if account.idle:
            rests = [
                # A run that takes longer than expected is assumed to go on for a while.
                max(turn.expected_end - now, OVERDUE_SHARE * (now - turn.started))
                for turn in use.turns
            ]
            wait = min(rests, default=0.0)
        else:  # its own turn ends before
            used += runs.turn_seconds
        due = runs.waiters[0].due if runs.waiters else runs.due(now)
        use.advance(now)
        seconds = wait + use.seconds_ahead(account, used, due)
        if used > use.virtual_time:  # those who ask later may go first, too
            usual = runs.wait_seconds + WAIT_DEVIATIONS * runs.wait_deviation
            seconds = max(seconds, usual)
        return seconds

    def _account(self, runs: ModelRuns, device: str) -> DeviceAccount:
        account = runs.accounts.get(device)
        if account is None:
            use = self._use(device)
            account = DeviceAccount(runs, device, use.next_number(), -math.inf)
            use.limit_credit(account)
            runs.accounts[device] = account
        return account

    def _use(self, device: str) -> DeviceUse:
        use = self._devices.get(device)
        if use is None:
            use = self._devices[device] = DeviceUse(self._slots)
        return use


def _wait_for_turn(waiter: _Waiter) -> DeviceTurn:
    """Wait with the lock until the scheduler gives a thread its turn, and return it.

    Raises:
        DeviceLostError: All devices of the model are lost.
    """
    while waiter.turn is None:
        if waiter.error is not None:
            raise waiter.error
        waiter.condition.wait()
    return waiter.turn


def _report_end(turn: DeviceTurn) -> None:
    if turn.runs.on_end is not None and turn.batches:
        turn.runs.on_end(turn.device, turn.batches, turn.seconds)
