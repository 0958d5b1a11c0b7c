"""Virtual time: events, processes that block in it, and conditions to wait in.

Code that blocks (the loop of an instance's thread, a run, a wait for a device) runs unchanged: each
process has a thread of its own, of which only one runs at a time. A process that blocks handles the
next events itself, until one of them makes another process go on. So a simulation is deterministic,
needs no locks of its own, and changes threads only where another process goes on.
"""

import heapq
import math
import threading
from collections.abc import Callable
from typing import Self


class _Ended(BaseException):
    """Ends the thread of a process, which must not catch it."""


class Process:
    """Code that may block in virtual time; `Kernel.spawn` makes it."""

    __slots__ = ("_thread", "_turn", "_waits", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._turn = threading.Lock()
        self._turn.acquire()
        self._thread: threading.Thread | None = None
        self._waits = 0  # that have ended: what would wake it from an earlier one is void


class Kernel:
    """A clock that moves from event to event.

    The thread that made it runs the simulation with `run`. Events at the same time happen in the
    order in which they were scheduled. It is the context in which its processes exist: they end
    with it.
    """

    def __init__(self, now: float = 1.0) -> None:
        """Make a clock that shows `now` (seconds): not 0, which means "never" to some."""
        self.now = now
        self.handover_seconds = 0.0
        """From notifying a process until it goes on."""
        self._events: list[tuple[float, int, Callable[[], object] | Process, int]] = []
        self._scheduled = 0
        self._main = Process("main")
        self._current: Process | None = self._main
        self._processes: list[Process] = []
        self._error: BaseException | None = None
        self._is_closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clock(self) -> float:
        """Return the virtual time in seconds."""
        return self.now

    def at(self, time: float, action: Callable[[], object]) -> None:
        """Have `action` called at a time, or now if that has passed.

        It must not block; to do that it wakes a process.
        """
        self._scheduled += 1
        heapq.heappush(self._events, (max(time, self.now), self._scheduled, action, -1))

    def spawn(self, function: Callable[[], object], name: str) -> Process:
        """Start a process that calls `function`, now; it may block."""
        process = Process(name)

        def work() -> None:
            process._turn.acquire()
            try:
                if not self._is_closing:
                    function()
            except _Ended:
                pass
            except BaseException as error:
                self._error = error
            process._waits += 1
            self._processes.remove(process)
            self._pass_on(None)

        process._thread = threading.Thread(target=work, name=name, daemon=True)
        process._thread.start()
        self._processes.append(process)
        self.wake(process)
        return process

    def sleep(self, seconds: float) -> None:
        """Have the calling process go on after so many seconds."""
        process = self._calling_process()
        self.wake(process, seconds)
        self._pass_on(process)

    def suspend(self) -> None:
        """Have the calling process go on when it is woken."""
        self._pass_on(self._calling_process())

    def wake(self, process: Process, delay: float = 0.0) -> None:
        """Have a process go on after `delay` seconds, unless something else wakes it before."""
        self._scheduled += 1
        entry = (self.now + max(0.0, delay), self._scheduled, process, process._waits)
        heapq.heappush(self._events, entry)

    def new_condition(self, lock: threading.Lock) -> "VirtualCondition":
        """Return a condition to wait in, in place of `threading.Condition(lock)`."""
        return VirtualCondition(self, lock)

    def run(self, until: float = math.inf) -> None:
        """Let time pass, up to `until` or until nothing is left to happen.

        Args:
            until: A time of this clock, in seconds.

        Raises:
            BaseException: What an action or a process has raised.
        """
        if until < math.inf:
            self.sleep(until - self.now)
        else:
            self.suspend()
        if (error := self._error) is not None:
            self._error = None
            raise error

    def close(self) -> None:
        """End all processes; each leaves what it waits in by an exception that it cannot catch."""
        self._is_closing = True
        for process in [*self._processes]:
            self._current = process
            process._turn.release()
            self._main._turn.acquire()
        self._events.clear()

    def _calling_process(self) -> Process:
        if self._current is None:
            raise RuntimeError("an action blocks in virtual time (expected a process: see `spawn`)")
        return self._current

    def _pass_on(self, process: Process | None) -> None:
        """Handle events until `process` goes on; it is None if it has ended.

        If another process goes on before, that one handles them from then on.
        """
        self._current = None
        target = self._next_process()
        target._waits += 1
        self._current = target
        if target is not process:
            target._turn.release()
            if process is None:
                return
            process._turn.acquire()
        if self._is_closing and process is not self._main:
            raise _Ended

    def _next_process(self) -> Process:
        """Handle events until one wakes a process."""
        events = self._events
        while events and self._error is None and not self._is_closing:
            time, _, what, waits = heapq.heappop(events)
            if waits >= 0:
                assert isinstance(what, Process)  # noqa: S101  for the type checker
                if what._waits == waits:
                    self.now = time
                    return what
                continue
            self.now = time
            try:
                what()  # type: ignore[operator]
            except BaseException as error:  # of the simulation, not of the process it ran in
                self._error = error
        return self._main


class VirtualCondition(threading.Condition):
    """A condition whose waits take virtual time."""

    def __init__(self, kernel: Kernel, lock: threading.Lock) -> None:
        """Make a condition with `lock`, for processes of `kernel`."""
        super().__init__(lock)
        self._kernel = kernel
        self._held_lock = lock
        self._sleepers: dict[Process, None] = {}  # in the order in which they are woken

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until notified, for at most `timeout` seconds; return whether that was so."""
        kernel = self._kernel
        process = kernel._calling_process()
        self._sleepers[process] = None
        if timeout is not None:
            kernel.wake(process, timeout)
        self._held_lock.release()
        try:
            kernel.suspend()
        finally:
            self._held_lock.acquire()
            is_notified = process not in self._sleepers
            self._sleepers.pop(process, None)
        return is_notified

    def notify(self, n: int = 1) -> None:
        """Wake `n` of the processes that wait."""
        sleepers = self._sleepers
        for process in list(sleepers)[:n] if sleepers else ():
            del sleepers[process]
            self._kernel.wake(process, self._kernel.handover_seconds)

    def notify_all(self) -> None:
        """Wake all processes that wait."""
        self.notify(len(self._sleepers))
