"""The threads in which models are loaded, a limited number at a time.

A load may last for ever: a graph with an endless loop, a file on a volume that hangs. So a load
that takes unusually long gives its place to another one, and one that makes no progress for the
time limit is given up: its thread ends when it can, and nobody waits for it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.repository.scanner import ModelSource

SLOW_SECONDS = 10.0
"""A load that has taken longer no longer counts against the number of loads at a time ..."""

MAX_SLOW_LOADS = 8
"""... but no more than so many do not."""

RETRY_SECONDS = 0.05
"""Interval in which a load looks whether the previous one of its version has ended."""


@dataclass(eq=False)
class VersionLoad:
    """One load of one version of a model."""

    source: ModelSource
    previous: "VersionLoad | None" = None
    """An earlier load of the version that was given up."""

    cancellation: LoadCancellation = field(default_factory=LoadCancellation)
    started: float = 0.0
    """Seconds of the monotonic clock, 0.0 before its thread starts."""

    slow: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> tuple[str, int]:
        return self.source.name, self.source.version

    def wait_for_previous(self) -> None:
        """Wait for the end of the earlier load: each that hangs would otherwise add a thread.

        Raises:
            LoadError: This load has been cancelled.
        """
        while self.previous is not None and not self.previous.ended.wait(RETRY_SECONDS):
            self.cancellation.raise_if_cancelled()


class LoadThreads:
    """Runs loads in the order of their submission. Any thread may call it."""

    def __init__(
        self,
        threads: int,
        timeout: float,
        run: Callable[[VersionLoad], None],
        on_timeout: Callable[[VersionLoad], None],
    ) -> None:
        """Prepare the threads, which start when they are needed.

        Args:
            threads: Number of loads at a time, those not counted that are slow.
            timeout: Seconds without progress after which a load is given up; 0: never.
            run: Runs one load; it must not raise.
            on_timeout: Called once for a load that exceeds the limit. It should `abandon` it.
        """
        self._limit = threads
        self._timeout = timeout
        self._run = run
        self._on_timeout = on_timeout
        self._waiting: deque[VersionLoad] = deque()
        self._running: list[VersionLoad] = []
        self._abandoned: list[VersionLoad] = []
        self._changed = threading.Condition()
        self._watch: threading.Thread | None = None

    def submit(self, load: VersionLoad) -> None:
        """Run a load as soon as others leave room."""
        with self._changed:
            self._waiting.append(load)
            self._start_next()

    def abandon(self, load: VersionLoad) -> None:
        """Count a load no longer, whether it waits, runs or hangs."""
        with self._changed:
            if load in self._waiting:
                self._waiting.remove(load)
                load.ended.set()
            elif load in self._running:
                self._running.remove(load)
                self._abandoned.append(load)
            self._start_next()

    def join(self, timeout: float) -> bool:
        """Wait for the end of all loads, the abandoned ones included.

        Returns:
            Whether they ended within `timeout` (seconds).
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._waiting or self._running or self._abandoned), timeout
            )

    def _start_next(self) -> None:
        slow = min(MAX_SLOW_LOADS, sum(load.slow for load in self._running))
        while self._waiting and len(self._running) - slow < self._limit:
            load = self._waiting.popleft()
            load.started = load.cancellation.last_progress = time.monotonic()
            self._running.append(load)
            name = f"load {load.source}"
            # A daemon: a load that never ends must not keep the process from ending.
            threading.Thread(target=self._run_one, args=(load,), name=name, daemon=True).start()
        if self._watch is None and self._running:
            self._watch = threading.Thread(target=self._watch_loads, name="loads", daemon=True)
            self._watch.start()
        self._changed.notify_all()

    def _run_one(self, load: VersionLoad) -> None:
        try:
            self._run(load)
        finally:
            load.ended.set()
            with self._changed:
                for loads in (self._running, self._abandoned):
                    if load in loads:
                        loads.remove(load)
                self._start_next()

    def _watch_loads(self) -> None:
        """Notice slow loads and those that exceed the limit, as long as any load runs."""
        reported: set[VersionLoad] = set()
        while True:
            with self._changed:
                if not self._running:
                    self._watch = None
                    return
                now = time.monotonic()
                for load in self._running:
                    load.slow = load.slow or now - load.started >= SLOW_SECONDS
                self._start_next()
                late = {
                    load
                    for load in self._running
                    if self._timeout and now - load.cancellation.last_progress >= self._timeout
                } - reported
                if not late:
                    self._changed.wait(self._seconds_to_next_event(now, reported))
            for load in late:
                self._on_timeout(load)
            reported |= late

    def _seconds_to_next_event(self, now: float, reported: set[VersionLoad]) -> float | None:
        events = [load.started + SLOW_SECONDS for load in self._running if not load.slow]
        if self._timeout:
            loads = [load for load in self._running if load not in reported]
            events += [load.cancellation.last_progress + self._timeout for load in loads]
        return max(0.001, min(events) - now) if events else None
