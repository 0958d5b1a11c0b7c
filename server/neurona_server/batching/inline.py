"""Runs batches inline: in the transport's own thread, instead of an instance's.

That saves handing requests over to another thread, which costs more than a short run. The thread
reads nothing meanwhile, so only groups and sizes run inline whose runs were measured and short. The
time of some models depends on the values of their inputs (the count of a loop): a run that takes
longer than it should is interrupted by the watchdog, and its requests run on an instance's thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from functools import cache
from statistics import median

from neurona_server.batching.batch import Batch
from neurona_server.batching.cost_model import CostModel
from neurona_server.batching.inline_scheduler import MAX_INLINE_SECONDS
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Queue
from neurona_server.batching.watchdog import RunWatchdog

log = logging.getLogger(__name__)

HANDOVER_ROUNDS = 200

HANDOVERS = 10
"""Cost, in plain handovers, of passing a request to an instance's thread and its response back to
the transport's: two threads are woken, and each waits for the interpreter's lock."""

MIN_SUSPENSION = 10.0
MAX_SUSPENSION = 86_400.0
"""Seconds for which a model does not run inline after the watchdog has interrupted it. They double
each time, unless it ran inline for ten times as long as it was suspended before."""


class InlineTurn:
    """One call of `run_batches`, in one thread."""

    __slots__ = ("batch", "is_interrupted", "runner")

    def __init__(self, runner: "InlineRunner") -> None:
        self.runner = runner
        self.batch: Batch | None = None  # that runs
        self.is_interrupted = False

    def interrupt(self) -> None:
        """See `InlineRunner.interrupt`."""
        self.runner.interrupt(self)


class InlineRunner:
    """Decides whether a transport's thread runs a model itself, and runs its batches there.

    Each transport has a thread, so several turns may go on at the same time.
    """

    def __init__(
        self,
        name: str,
        policy: BatchPolicy,
        queue: Queue,
        cost_model: CostModel,
        watchdog: RunWatchdog,
        clock: Callable[[], float],
    ) -> None:
        self.enabled = False
        """Whether the transport's thread runs the requests that it submits; `update` decides."""
        self.is_allowed = True
        """Whether it may be enabled, unless the policy says so in any case."""
        self._name = name  # of the model, for the log
        self._policy = policy
        self._queue = queue
        self._cost_model = cost_model
        self._watchdog = watchdog
        self._clock = clock
        self._recent_seconds = 0.0
        self._suspended_until = 0.0  # 0: not suspended
        self._resumed_at = self._suspension = 0.0

    def observe(self, seconds: float) -> None:
        """Learn the duration of a batch, whichever thread ran it."""
        self._recent_seconds += 0.2 * (seconds - self._recent_seconds)

    def update(self) -> None:
        """Decide by the policy or, without one, by the current costs."""
        if self._suspended_until:
            if self._clock() < self._suspended_until:
                self.enabled = False
                return
            self._resumed_at, self._suspended_until = self._suspended_until, 0.0
        # The transport does not return to a batch that waits to be filled, and its workers write
        # large responses in any order.
        self.enabled = not (self._policy.max_delay or self._policy.preserve_order) and (
            self.is_allowed and self._is_worthwhile()
            if self._policy.inline is None
            else self._policy.inline
        )

    def run_batches(self, process: Callable[[Batch], None], end: float) -> bool:
        """Run waiting requests in the calling thread until `end`, a time; at least one batch.

        Returns whether requests are left for which the transport is to call again once it has read
        all available messages. Longer batches, and those whose cost was not measured, are left to
        the instances.
        """
        watchdog = self._watchdog
        thread = threading.get_native_id()
        turn = InlineTurn(self)
        watchdog.inline[thread] = turn  # before it takes a batch: `wait_until_idle` must see it
        try:
            while not self._suspended_until:
                turn.batch = batch = self._queue.take_batch(self._is_short)
                if batch is None:
                    break
                process(batch)
                if self._clock() >= end:
                    return bool(self._queue.rows)
        finally:
            turn.batch = None
            del watchdog.inline[thread]
        if self._queue.rows:
            self._queue.notify()
        return False

    def interrupt(self, turn: InlineTurn) -> None:
        """Take the model off the transports' threads, because a turn takes too long.

        The run is terminated, and its requests run again in an instance's thread. The watchdog
        calls this while the same turn goes on: a run inside one node cannot be terminated.
        """
        if turn.is_interrupted:
            return
        turn.is_interrupted = True
        now = self._clock()
        if self._suspension and now - self._resumed_at < 10 * self._suspension:
            self._suspension = min(2 * self._suspension, MAX_SUSPENSION)
        else:
            self._suspension = MIN_SUSPENSION
        self._suspended_until = now + self._suspension
        self.enabled = False
        if (batch := turn.batch) is not None:
            batch.interrupt()
        log.warning(
            "%s: a run on the transport's thread took longer than %g ms: the model runs on threads "
            "of its own for %g s",
            *(self._name, 1000 * self._watchdog.inline_seconds, self._suspension),
        )

    def runs_in_this_thread(self) -> bool:
        """Return whether the calling thread is in `run_batches`."""
        turn = self._watchdog.inline.get(threading.get_native_id())
        return turn is not None and turn.runner is self

    def wait_until_idle(self, end: float) -> bool:
        """Wait until no thread is in `run_batches`.

        Returns False if one still is at `end`, a time of the monotonic clock.
        """
        while any(turn.runner is self for turn in list(self._watchdog.inline.values())):
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True

    def _is_worthwhile(self) -> bool:
        """Return whether a row costs less than the handovers and no batch blocks the transport."""
        handovers = HANDOVERS * handover_seconds()
        return (
            0.0 < self._cost_model.predict(1) < handovers
            and self._recent_seconds < MAX_INLINE_SECONDS
        )

    def _is_short(self, rows: int, group: Hashable) -> bool:
        """Return whether such a run was measured and is short enough for the transport's thread."""
        seconds = self._cost_model.predict_measured(rows, group)
        return seconds is not None and seconds < MAX_INLINE_SECONDS


@cache
def handover_seconds() -> float:
    """Measure once how many seconds this machine needs from waking a thread until it works."""
    request, response = threading.Semaphore(0), threading.Semaphore(0)

    def respond() -> None:
        for _ in range(HANDOVER_ROUNDS):
            request.acquire()
            response.release()

    thread = threading.Thread(target=respond, name="handover", daemon=True)
    thread.start()
    round_trips = []
    for _ in range(HANDOVER_ROUNDS):
        started = time.perf_counter()
        request.release()
        response.acquire()
        round_trips.append(time.perf_counter() - started)
    thread.join()
    return median(round_trips) / 2
