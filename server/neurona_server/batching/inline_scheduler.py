"""Shares the transports' threads between the models that run inline on them.

While one model runs there, the requests of the others are not even read. So all models together get
a few milliseconds, in the order that keeps shares and objectives, before the thread reads again.
"""

import logging
import math
import threading
from collections.abc import Callable

from neurona_server.batching.fair_queue import Account, FairQueue, ModelShare

MAX_INLINE_SECONDS = 0.005
"""Limit for running batches in the transport's thread, which reads nothing meanwhile."""

log = logging.getLogger(__name__)

Deferred = Callable[[], bool | None]

ServeInline = Callable[[float, float], bool]
"""Runs batches of a model in the calling thread until a time, at least one, each of which takes so
many seconds at most. Returns whether the thread is to call again."""


class InlineAccount(Account):
    """What a model has used of a transport's thread."""

    __slots__ = ("is_waiting", "runs", "serve", "since")

    def __init__(self, runs: ModelShare, serve: ServeInline, number: int) -> None:
        super().__init__(number, -math.inf)
        self.runs = runs
        self.serve = serve
        self.is_waiting = False
        """Whether it has requests to run."""
        self.since = 0.0
        """Since when."""

    @property
    def can_start(self) -> bool:
        return self.is_waiting

    @property
    def due(self) -> float:
        return self.runs.due(self.since)

    @property
    def slack(self) -> float:
        return self.runs.slack

    @property
    def turn_seconds(self) -> float:
        return self.runs.turn_seconds

    @property
    def run_count(self) -> int:
        return 1


class ThreadTurns:
    """The turns on one transport's thread, which is the only one that uses this."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._queue: FairQueue[InlineAccount] = FairQueue(1)
        self._accounts: dict[ModelShare, InlineAccount] = {}
        self._only: InlineAccount | None = None
        """The model that is alone on the thread: then there is nothing to share."""

    def request(self, runs: ModelShare, serve: ServeInline) -> Deferred:
        """Note that a model has requests to run; return what the thread is to call for that.

        It is the same for all models, and runs those whose turn it is.
        """
        account = self._accounts.get(runs) or self._add(runs, serve)
        if not account.is_waiting:
            account.is_waiting = True
            if self._only is None:
                now = self._clock()
                self._queue.advance(now)
                self._enqueue(account, now)
        return self.run

    def run(self) -> bool:
        """Run models for MAX_INLINE_SECONDS or a little longer; return whether some still wait."""
        started = self._clock()
        end = started + MAX_INLINE_SECONDS
        if (only := self._only) is not None:
            return self._run_only(only, end)
        queue = self._queue
        queue.advance(started)
        while (account := queue.pop()) is not None:
            account.is_waiting = False
            now = started
            account.runs.observe_wait(now - account.since)
            until = now if queue.waiting or queue.eligible else end  # one batch if others wait
            try:
                more = account.serve(until, queue.max_seconds(account, now))
            except Exception:  # the fault of one model must not end the others
                log.exception("uncaught exception while a model ran inline")
                more = False
            started = self._clock()
            queue.advance(started)
            seconds = started - now
            queue.charge(account, seconds)
            account.runs.observe_turn(seconds)
            if more:
                account.is_waiting = True
                self._enqueue(account, started)
            else:
                queue.set_active(account, account.is_waiting)
            if started >= end:
                break
        return bool(queue.eligible or queue.waiting)

    def predict_turn(self, runs: ModelShare, now: float, turns: int = 1) -> float:
        """Return the predicted seconds by which turns of other models delay those of `runs`.

        See `DeviceScheduler.predict_turn`.
        """
        queue = self._queue
        further = (turns - 1) * runs.wait_seconds if turns > 1 else 0.0
        if not (queue.waiting or queue.eligible) or (account := self._accounts.get(runs)) is None:
            return further
        due = account.due if account.is_waiting else runs.due(now)
        return queue.seconds_ahead(account, account.used, due) + further

    def forget(self, runs: ModelShare) -> None:
        """Drop a model that does not run any more, so that its memory is freed. From any thread."""
        if (account := self._accounts.pop(runs, None)) is not None:
            account.runs, account.serve = ModelShare(), lambda _end, _seconds: False

    def _run_only(self, only: InlineAccount, end: float) -> bool:
        if only.is_waiting:
            only.is_waiting = False
            if only.serve(end, math.inf):
                self.request(only.runs, only.serve)
        return only.is_waiting

    def _enqueue(self, account: InlineAccount, now: float) -> None:
        queue = self._queue
        queue.note_request(account, now)
        queue.limit_credit(account)
        queue.set_active(account, True)
        account.since = now
        queue.push(account)

    def _add(self, runs: ModelShare, serve: ServeInline) -> InlineAccount:
        account = InlineAccount(runs, serve, self._queue.next_number())
        self._accounts[runs] = account
        if len(self._accounts) == 1:
            self._only = account
        elif (only := self._only) is not None:
            self._only = None
            if only.is_waiting:
                now = self._clock()
                self._queue.advance(now)
                self._enqueue(only, now)
        return account


class InlineScheduler:
    """The turns on all transports' threads of a process."""

    def __init__(self) -> None:
        self._threads: dict[int, ThreadTurns] = {}

    def in_this_thread(self, clock: Callable[[], float]) -> ThreadTurns:
        """Return the turns on the calling thread; `clock` returns the time in seconds."""
        thread = threading.get_ident()
        turns = self._threads.get(thread)
        if turns is None:
            turns = self._threads[thread] = ThreadTurns(clock)
        return turns

    def forget(self, runs: ModelShare) -> None:
        """Drop a model that does not run any more."""
        for turns in list(self._threads.values()):
            turns.forget(runs)
