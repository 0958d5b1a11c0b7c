"""Finds runs that take too long: one thread for all models of a process.

A run in the transport's thread is looked at every INLINE_PERIOD, since nothing else is served
meanwhile; runs in the instances' threads every RUN_PERIOD. ONNX Runtime releases the interpreter's
lock while it runs, so that this thread gets its turns.
"""

import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

INLINE_PERIOD = 0.02
"""Seconds between two looks at the transport's thread."""

MAX_LOOKS = 3
"""A turn on the transport's thread that is still the same one at the third look is interrupted:
it takes eight times its limit or more."""

MIN_CPU_SECONDS = 0.01
"""CPU time between two looks below which the thread is not at fault: others keep the CPUs busy. It
is if it waits, for the threads that run the model together with it."""

RUN_PERIOD = 0.05
"""Seconds between two looks at the runs of the instances."""

AWAKE_PERIODS = 50
"""Looks without any run after which the watchdog sleeps until the next one."""

SLEEP_SECONDS = 1.0
"""Sleep after which it looks again, in case that a run began just before."""


STALL_MEMORY_SECONDS = 600.0
"""Time after which a stall counts 1/e."""

STALL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The durations that stalls are counted by: any sleep ends later than it should by less."""


class Stalls:
    """How often a thread that sleeps wakes up late, as do all others then.

    A stall is found if it goes on when the sleep ends, and what is left of it is measured: those
    shorter than the sleep are found in proportion to their length.
    """

    def __init__(self) -> None:
        self._watched_seconds = 0.0
        self._counts = [0.0] * len(STALL_SECONDS)

    def observe(self, slept: float, late: float) -> None:
        """Count a sleep of `slept` seconds that ended `late` seconds late."""
        kept = 1.0 - slept / STALL_MEMORY_SECONDS
        self._watched_seconds = self._watched_seconds * kept + slept
        index = bisect_right(STALL_SECONDS, late) - 1
        counts = [count * kept for count in self._counts]
        if index >= 0:
            counts[index] += 1.0
        self._counts = counts  # replaced, not changed: other threads read it

    def rates(self) -> Sequence[tuple[float, float]]:
        """Return the durations in seconds, and how many stalls a second are as long or longer."""
        seconds = self._watched_seconds
        totals = list(accumulate(reversed(self._counts)))[::-1]
        return [
            (least, total / seconds)
            for least, total in zip(STALL_SECONDS, totals, strict=True)
            if total
        ]


class TurnOfThread(Protocol):
    """A turn of a model on a transport's thread: an `InlineTurn`."""

    @property
    def runner(self) -> object:
        """The model's `InlineRunner`."""

    def interrupt(self) -> None:
        """End the turn as soon as possible."""


class RunsOfModel(Protocol):
    """What runs in threads of its own: a `Batcher`."""

    def check_runs(self) -> bool:
        """Act on the runs that take too long, and return whether there are any runs."""


class _Look(NamedTuple):
    turn: TurnOfThread
    looks: int
    """Looks at which it was the same turn."""
    cpu_seconds: float | None
    """Those of the thread at the last look; None at the first one, or if it waited then."""


class RunWatchdog:
    """Looks at all runs of a process in a thread, from `start` until `stop`."""

    inline_seconds = (MAX_LOOKS - 1) * INLINE_PERIOD
    """The time after which a turn on the transport's thread is interrupted, at the least."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.inline: dict[int, TurnOfThread] = {}
        """The turns, by the native id of the thread. Changed by these threads."""

        self.asleep = False
        """Whether who begins a run must call `wake`."""

        self.stalls = Stalls()
        """Those of the process, while it looks at runs."""

        self._clock = clock
        self._models: dict[RunsOfModel, None] = {}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; does nothing if it was not started."""
        self._stopping = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def wake(self) -> None:
        """Look at the runs again, at once and then every INLINE_PERIOD."""
        self.asleep = False
        self._woken.set()

    def add(self, model: RunsOfModel) -> None:
        """Check the model's runs from now on."""
        with self._lock:
            self._models[model] = None

    def remove(self, model: RunsOfModel) -> None:
        with self._lock:
            self._models.pop(model, None)

    def _watch(self) -> None:
        turns: dict[int, _Look] = {}
        running = False
        idle_periods = 0
        next_check = self._clock()
        while not self._stopping:
            on_time = True
            if idle_periods < AWAKE_PERIODS:
                started = self._clock()
                time.sleep(INLINE_PERIOD)
                # A watchdog that was held up itself knows nothing about the time of the others.
                slept = self._clock() - started
                on_time = slept < 2 * INLINE_PERIOD
                self.stalls.observe(slept, slept - INLINE_PERIOD)
            else:
                self._woken.clear()
                self.asleep = True
                self._woken.wait(SLEEP_SECONDS)
                self.asleep = False
            try:
                turns = self._interrupt_long_turns(turns if on_time else {})
                if (now := self._clock()) >= next_check:
                    next_check = now + RUN_PERIOD
                    running = self._check_models()
            except Exception:  # the thread must keep running
                log.exception("uncaught exception in the watchdog")
            idle_periods = 0 if turns or running or self._woken.is_set() else idle_periods + 1
            self._woken.clear()

    def _interrupt_long_turns(self, before: Mapping[int, _Look]) -> dict[int, _Look]:
        """Interrupt each turn that goes on since MAX_LOOKS; return those that go on now."""
        now: dict[int, _Look] = {}
        for thread, turn in list(self.inline.items()):
            last = before.get(thread)
            if last is None or last.turn is not turn:
                now[thread] = _Look(turn, 1, None)
                continue
            cpu_seconds = _cpu_seconds(thread)
            now[thread] = _Look(turn, last.looks + 1, cpu_seconds)
            if now[thread].looks < MAX_LOOKS:
                continue
            if cpu_seconds is None or last.cpu_seconds is None:
                at_fault = cpu_seconds is last.cpu_seconds
            else:
                at_fault = cpu_seconds - last.cpu_seconds >= MIN_CPU_SECONDS
            if at_fault:
                turn.interrupt()
        return now

    def _check_models(self) -> bool:
        with self._lock:
            models = list(self._models)
        running = False
        for model in models:
            try:
                running |= model.check_runs()
            except Exception:  # one model must not keep the others from being checked
                log.exception("uncaught exception while runs were checked")
        return running


def _cpu_seconds(thread: int) -> float | None:
    """Return the CPU time of a thread that runs or could run; None if it waits or is unknown."""
    try:
        folder = Path(f"/proc/self/task/{thread}")
        state = (folder / "stat").read_bytes().rpartition(b") ")[2][:1]
        nanoseconds = int((folder / "schedstat").read_bytes().split()[0])
    except (OSError, ValueError, IndexError):  # another system than Linux
        return None
    return nanoseconds / 1e9 if state == b"R" and nanoseconds else None
