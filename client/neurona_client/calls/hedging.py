"""Hedging: a call that takes long is sent to a second server as well, and the first answer counts.

J. Dean and L. A. Barroso, "The Tail at Scale", Communications of the ACM 56 (2), 2013.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from neurona_client.calls.steps import Conversation, Deadline, Send, Step
from neurona_client.errors import NeuronaError, OverloadedError, UnavailableError
from neurona_client.options import Retries
from neurona_client.transport.endpoint import Endpoint, late
from neurona_client.transport.endpoint_pool import Fleet
from neurona_client.transport.grpc_calls import Done, Outcome
from neurona_client.transport.stream import Deliver, Stream, Told

_BURST = 10.0
"""Hedges that may be saved up, and that a client begins with."""


class Budget:
    """Of one client: so many hedges for each request, that a fleet that is slow because it has too
    much to do does not get much more. Any thread may ask."""

    def __init__(self, retries: Retries) -> None:
        self.spent = 0
        """Hedges that were sent."""
        self._share = retries.hedge_share
        self._left = _BURST
        self._lock = threading.Lock()

    def earn(self) -> None:
        """By a request."""
        with self._lock:
            self._left = min(_BURST, self._left + self._share)

    def spend(self) -> bool:
        """Whether there is one left, which is taken then."""
        with self._lock:
            if self._left < 1.0:
                return False
            self._left -= 1.0
            self.spent += 1
            return True


class Hedging:
    """Of one call, however often it is tried."""

    def __init__(self, retries: Retries, budget: Budget) -> None:
        self._after = retries.hedge_after or math.inf
        self._budget = budget
        self._over = False  # a server has said that it has too much to do

    def ask(self, fleet: Fleet, endpoint: Endpoint, deadline: Deadline, send: Send) -> Conversation:
        """The first answer. What goes wrong with a hedge is dropped: errors are the first server's.

        Raises NeuronaError.
        """
        self._budget.earn()
        if self._over or len(fleet.endpoints) < 2:
            # The same server twice would do the same work, behind the same queue, twice.
            return (yield send(endpoint, deadline.left()))
        race = Race()
        try:
            return (yield from self._raced(race, fleet, endpoint, deadline, send))
        finally:  # cancelling comes here too
            race.give_up()

    def _raced(
        self, race: "Race", fleet: Fleet, endpoint: Endpoint, deadline: Deadline, send: Send
    ) -> Conversation:
        first, hedge = race.enter(send(endpoint, deadline.left())), None
        pause = self._after
        due = time.monotonic() + pause
        while True:
            if isinstance(first.outcome, bytes):
                return first.outcome
            if hedge is not None and isinstance(hedge.outcome, bytes):
                endpoint.overtaken()
                return hedge.outcome
            self._over = self._over or race.overloaded
            waits = first.outcome is None or (hedge is not None and hedge.outcome is None)
            if isinstance(first.outcome, NeuronaError) and not (waits and _mends(first.outcome)):
                raise first.outcome
            now = time.monotonic()
            if now >= race.end:
                raise late()
            if now >= due:
                if not self._over:
                    hedge = self._hedge(race, fleet, endpoint, deadline, send)
                # Without a budget or another server now, there may be one later.
                pause *= 2
                due = math.inf if hedge or self._over else now + pause
            with contextlib.suppress(NeuronaError):  # the runners have it
                yield _News(race, min(due, race.end) - now)

    def _hedge(
        self, race: "Race", fleet: Fleet, endpoint: Endpoint, deadline: Deadline, send: Send
    ) -> "Runner | None":
        other = fleet.pick(endpoint)
        if other is None or other is endpoint or not self._budget.spend():
            return None
        return race.enter(send(other, deadline.left()))


class Race:
    """A request that is under way once or twice, and one conversation that waits."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: Done | None = None
        self.news = False
        """There is an outcome that nobody was there to be told of."""
        self.end = math.inf
        """When the deadline has passed for all of it; of the monotonic clock."""
        self._runners: list[Runner] = []

    @property
    def overloaded(self) -> bool:
        return any(isinstance(one.outcome, OverloadedError) for one in self._runners)

    def enter(self, step: Step) -> "Runner":
        runner = Runner(self)
        self.end = math.inf if step.timeout is None else time.monotonic() + step.timeout
        self._runners.append(runner)
        runner.give_up = step.start(runner)
        return runner

    def give_up(self) -> None:
        for runner in self._runners:
            runner.give_up()

    def settle(self) -> None:
        """Returns when whoever was taken by `Runner.take` has been told: it is done in the lock
        that giving up takes."""
        for runner in self._runners:
            if runner.outcome is not None:
                runner.give_up()


class Runner:
    """One of a race; what its step tells the outcome."""

    def __init__(self, race: Race) -> None:
        self.outcome: Outcome | None = None
        self.give_up: Callable[[], Any] = _nothing
        self._race = race

    def __call__(self, outcome: Outcome) -> None:
        with self._race.lock:
            if (waiting := self._told(outcome)) is not None:
                waiting(outcome)

    def take(self, outcome: Outcome) -> Done | None:
        """Who is to be told; None: nobody waits now."""
        with self._race.lock:
            return self._told(outcome)

    def _told(self, outcome: Outcome) -> Done | None:
        self.outcome = outcome
        waiting, self._race.waiting = self._race.waiting, None
        self._race.news = waiting is None
        return waiting


class _News:
    """A step: the next outcome in a race. Giving it up gives nothing else up."""

    def __init__(self, race: Race, timeout: float) -> None:
        self.timeout = None if timeout == math.inf else timeout
        self._race = race

    def start(self, done: Done) -> Callable[[], bool]:
        race = self._race
        with race.lock:
            if not race.news:
                race.waiting = done
                return self._give_up
            race.news = False
        done(b"")
        return lambda: True

    def expired(self) -> Outcome:
        return b""

    def _give_up(self) -> bool:
        with self._race.lock:
            if self._race.waiting is not None:
                self._race.waiting = None
                return False
        self._race.settle()
        return True


def delivering(deliver: Deliver) -> Deliver:
    """`deliver` for streams that runners are in: it tells those who wait for them."""

    def deliver_waiting(stream: Stream, told: Told) -> None:
        waiting: list[tuple[Done, Outcome]] = []
        for done, outcome in told:
            one = done.take(outcome) if isinstance(done, Runner) else done
            if one is not None:
                waiting.append((one, outcome))
        if waiting:
            deliver(stream, waiting)

    return deliver_waiting


def _mends(error: NeuronaError) -> bool:
    """Whether another server may have an answer."""
    return isinstance(error, (OverloadedError, UnavailableError))


def _nothing() -> None:
    pass
