"""Hedging: a call without a response for some time is sent to a second server as well.

The first response counts. Source: J. Dean and L. A. Barroso, "The Tail at Scale", Communications of
the ACM 56 (2), 2013.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from neurona_client.calls.retry import StepFactory
from neurona_client.calls.steps import Call, Deadline, Step
from neurona_client.errors import NeuronaError, OverloadedError, UnavailableError
from neurona_client.options import Retries
from neurona_client.transport.endpoint import Endpoint
from neurona_client.transport.endpoint_pool import EndpointPool
from neurona_client.transport.grpc_calls import Outcome, OutcomeCallback, generic_deadline_error
from neurona_client.transport.stream import Deliver, Deliveries, Stream

_MAX_SAVED_HEDGES = 10.0
"""How many unused hedges are saved up, and how many a client starts with."""


class HedgeBudget:
    """Limits the hedges of one client to a share of its requests. Safe for threads.

    Servers that are all slow because of their load get little more of it.
    """

    def __init__(self, retries: Retries) -> None:
        self.hedges_sent = 0
        self._share = retries.hedge_share
        self._available = _MAX_SAVED_HEDGES
        self._lock = threading.Lock()

    def add_request(self) -> None:
        """Earn a share of a hedge, by a request."""
        with self._lock:
            self._available = min(_MAX_SAVED_HEDGES, self._available + self._share)

    def try_spend(self) -> bool:
        """Take one hedge from the budget; return whether there was one."""
        with self._lock:
            if self._available < 1.0:
                return False
            self._available -= 1.0
            self.hedges_sent += 1
            return True


class Race:
    """The attempts of one request, one or two, and the operation that waits for an outcome."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiter: OutcomeCallback | None = None
        self.has_news = False
        """An outcome arrived while no operation was waiting."""
        self.end = math.inf
        """When the deadline of all attempts has passed, in monotonic time."""
        self._attempts: list[Attempt] = []

    @property
    def overloaded(self) -> bool:
        """Whether a server has reported overload."""
        return any(isinstance(one.outcome, OverloadedError) for one in self._attempts)

    def start_attempt(self, step: Step) -> "Attempt":
        """Send the request to one more server."""
        attempt = Attempt(self)
        self.end = math.inf if step.timeout is None else time.monotonic() + step.timeout
        self._attempts.append(attempt)
        attempt.give_up = step.start(attempt)
        return attempt

    def give_up(self) -> None:
        """Give up all attempts."""
        for attempt in self._attempts:
            attempt.give_up()

    def wait_for_delivery(self) -> None:
        """Return when the waiter that `Attempt.take_waiter` returned has been called.

        A stream calls it while it holds the lock that giving up takes.
        """
        for attempt in self._attempts:
            if attempt.outcome is not None:
                attempt.give_up()


class Attempt:
    """One attempt of a race; the callback of its step."""

    def __init__(self, race: Race) -> None:
        self.outcome: Outcome | None = None
        self.give_up: Callable[[], Any] = _do_nothing
        self._race = race

    def __call__(self, outcome: Outcome) -> None:
        """Store the outcome and call the waiter, if there is one."""
        with self._race.lock:
            if (waiter := self._store_outcome(outcome)) is not None:
                waiter(outcome)

    def take_waiter(self, outcome: Outcome) -> OutcomeCallback | None:
        """Store the outcome and return the callback that waits for it; None: there is none now."""
        with self._race.lock:
            return self._store_outcome(outcome)

    def _store_outcome(self, outcome: Outcome) -> OutcomeCallback | None:
        self.outcome = outcome
        waiter, self._race.waiter = self._race.waiter, None
        self._race.has_news = waiter is None
        return waiter


class _NextOutcome:
    """A step: waits for the next outcome in a race. Giving it up does not give up the race."""

    def __init__(self, race: Race, timeout: float) -> None:
        self.timeout = None if timeout == math.inf else timeout
        self._race = race

    def start(self, callback: OutcomeCallback) -> Callable[[], bool]:
        race = self._race
        with race.lock:
            if not race.has_news:
                race.waiter = callback
                return self._give_up
            race.has_news = False
        callback(b"")
        return lambda: True

    def timeout_outcome(self) -> Outcome:
        return b""

    def _give_up(self) -> bool:
        with self._race.lock:
            if self._race.waiter is not None:
                self._race.waiter = None
                return False
        self._race.wait_for_delivery()
        return True


class Hedging:
    """Sends the request of one operation, with hedges, in each of its attempts."""

    def __init__(self, retries: Retries, budget: HedgeBudget) -> None:
        self._hedge_after = retries.hedge_after or math.inf
        self._budget = budget
        self._server_overloaded = False  # of any attempt so far

    def send(
        self, pool: EndpointPool, endpoint: Endpoint, deadline: Deadline, make_step: StepFactory
    ) -> Call:
        """Send a request and return the first response.

        Errors of a hedge are dropped: the error that is raised is that of the first server.

        Raises:
            NeuronaError: the first server failed, and no other may still answer.
        """
        self._budget.add_request()
        if self._server_overloaded or len(pool.endpoints) < 2:
            # One server would do the same work twice, in the same queue.
            return (yield make_step(endpoint, deadline.remaining()))
        race = Race()
        try:
            return (yield from self._run_race(race, pool, endpoint, deadline, make_step))
        finally:  # also when the operation is cancelled
            race.give_up()

    def _run_race(
        self,
        race: Race,
        pool: EndpointPool,
        endpoint: Endpoint,
        deadline: Deadline,
        make_step: StepFactory,
    ) -> Call:
        started = time.monotonic()
        first = race.start_attempt(make_step(endpoint, deadline.remaining()))
        hedge: Attempt | None = None
        pause = self._hedge_after
        hedge_time = started + pause
        while True:
            if isinstance(first.outcome, bytes):
                return first.outcome
            if hedge is not None and isinstance(hedge.outcome, bytes):
                endpoint.record_lost_hedge()
                return hedge.outcome
            self._server_overloaded = self._server_overloaded or race.overloaded
            is_running = first.outcome is None or (hedge is not None and hedge.outcome is None)
            if isinstance(first.outcome, NeuronaError) and not (
                is_running and _another_server_may_answer(first.outcome)
            ):
                raise first.outcome
            now = time.monotonic()
            if now >= race.end:
                endpoint.record_timeout(now - started)
                raise generic_deadline_error()
            if now >= hedge_time:
                if not self._server_overloaded:
                    hedge = self._start_hedge(race, pool, endpoint, deadline, make_step)
                # Without budget or a second server now, there may be one later.
                pause *= 2
                hedge_time = math.inf if hedge or self._server_overloaded else now + pause
            with contextlib.suppress(NeuronaError):  # it is in the attempt's outcome
                yield _NextOutcome(race, min(hedge_time, race.end) - now)

    def _start_hedge(
        self,
        race: Race,
        pool: EndpointPool,
        endpoint: Endpoint,
        deadline: Deadline,
        make_step: StepFactory,
    ) -> Attempt | None:
        other = pool.pick(endpoint)
        if other is None or other is endpoint or not self._budget.try_spend():
            return None
        return race.start_attempt(make_step(other, deadline.remaining()))


def deliver_to_waiters(deliver: Deliver) -> Deliver:
    """Adapt `deliver` to streams that carry attempts: outcomes go to the operations that wait."""

    def deliver_outcomes(stream: Stream, deliveries: Deliveries) -> None:
        waiting: list[tuple[OutcomeCallback, Outcome]] = []
        for callback, outcome in deliveries:
            waiter = callback.take_waiter(outcome) if isinstance(callback, Attempt) else callback
            if waiter is not None:
                waiting.append((waiter, outcome))
        if waiting:
            deliver(stream, waiting)

    return deliver_outcomes


def _another_server_may_answer(error: NeuronaError) -> bool:
    return isinstance(error, (OverloadedError, UnavailableError))


def _do_nothing() -> None:
    pass
