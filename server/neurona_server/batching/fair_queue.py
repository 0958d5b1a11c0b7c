"""Which of the models that wait for a device, or for a transport's thread, goes next.

Each has used more or less than its share. Of those that have used no more, the one goes first whose
objective requires it first; of the others, the one that has used least.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Generic, TypeVar

MAX_CREDIT = 0.1
"""Seconds that a model which used less than its share is owed at most. That makes up for the bursts
of its requests: about twenty runs of 5 ms."""

BURST_SECONDS = 1.0
"""Seconds after which a model that has been busy all the time has no such credit any more: what is
left after so long is no burst."""

IDLE_SECONDS = 0.001
"""A model that wants no turn for this long is not busy all the time."""

PATIENCE = 10.0
"""Seconds that a model without an objective waits at most while others, that keep to their shares
as well, go first because of their objectives."""

SLACK_SHARE = 0.5
"""The part of the time that an objective leaves which one run of another model may take."""

ACTIVE_SECONDS = 10.0
"""The objective of a model limits the runs of others until it has had no turn for this long."""

LIMIT_INTERVAL = 0.1
"""Seconds after which the limit of the runs is computed again."""


SMOOTHING = 0.1
"""The weight of the latest turn in the averages of a model's turns."""


class ModelShare:
    """What a model needs of what it shares with others, and what its turns take."""

    def __init__(self) -> None:
        self.objective: float | None = None
        """Seconds within which its requests are to be answered, None if there is no limit."""
        self.turn_seconds = 0.0
        """Those of a turn, on average."""
        self.wait_seconds = 0.0
        """Those for which a turn is waited for, on average."""
        self.wait_deviation = 0.0
        """By how much they differ from that, on average."""

    @property
    def slack(self) -> float:
        """The seconds that a run of another model may take, inf without an objective.

        A request may arrive just after a batch was cut, so it waits for two turns of its own model.
        A part of what is left is kept for turns of several others, and for what nobody predicts. An
        objective that is shorter than two turns does not make the runs of others ever smaller.
        """
        if self.objective is None:
            return math.inf
        return SLACK_SHARE * max(self.objective - 2.0 * self.turn_seconds, self.turn_seconds)

    def due(self, now: float) -> float:
        """Return when a turn that is wanted from now on has to begin at the latest."""
        slack = self.slack
        return now + (PATIENCE if slack == math.inf else slack)

    def observe_wait(self, seconds: float) -> None:
        """Learn what a turn was waited for."""
        difference = seconds - self.wait_seconds
        self.wait_seconds += SMOOTHING * difference
        self.wait_deviation += SMOOTHING * (abs(difference) - self.wait_deviation)

    def observe_turn(self, seconds: float) -> None:
        """Learn what a turn has taken."""
        weight = SMOOTHING if self.turn_seconds else 1.0
        self.turn_seconds += weight * (seconds - self.turn_seconds)


class Account(ABC):
    """What a model has used."""

    __slots__ = ("busy_since", "idle_since", "is_active", "is_queued", "number", "used")

    def __init__(self, number: int, used: float) -> None:
        self.number = number
        """Which of the accounts of its queue it is."""
        self.used = used
        """Its seconds on the scale of the queue's virtual time."""
        self.busy_since = self.idle_since = -math.inf
        """When it began to want turns all the time, and when it last wanted none."""
        self.is_active = False
        """Whether it has a turn, or wants one."""
        self.is_queued = False
        """Whether it is in one of the queue's heaps."""

    @property
    @abstractmethod
    def can_start(self) -> bool:
        """Whether it waits, and may go next."""

    @property
    @abstractmethod
    def due(self) -> float:
        """When its turn has to begin at the latest, by its objective; only asked if it waits."""

    @property
    @abstractmethod
    def slack(self) -> float:
        """The seconds that a run of another model may take, inf without an objective."""

    @property
    @abstractmethod
    def turn_seconds(self) -> float:
        """Those of its turns, on average."""

    @property
    @abstractmethod
    def run_count(self) -> int:
        """How many turns it can have at once."""


OneAccount = TypeVar("OneAccount", bound=Account)


class FairQueue(Generic[OneAccount]):
    """The models that use a number of slots. Not thread-safe.

    To choose the next one takes time proportional to the logarithm of the number of those that
    wait.
    """

    __slots__ = (
        *("accounts", "eligible", "limit", "limit_until", "limiting", "other_limit"),
        *("recent", "slots", "updated", "virtual_time", "waiting"),
    )

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.virtual_time = 0.0
        """The seconds that a model has had which used its equal share all the time, as in weighted
        fair queueing (Demers, Keshav and Shenker 1989). The share is that among all models which
        asked for a turn in the last ACTIVE_SECONDS, not only those that want one now: what does not
        wait, because its admission refuses it, would make the shares of others larger."""
        self.updated = -math.inf
        """When that was computed."""
        self.accounts = 0
        self.eligible: list[tuple[float, int, OneAccount]] = []
        """A heap of the models that wait and have used no more than their shares, the one that is
        due first first: earliest eligible deadline first (Stoica and Abdel-Wahab 1995)."""
        self.waiting: list[tuple[float, int, OneAccount]] = []
        """A heap of the other models that wait, the one that has used least first."""
        self.recent: OrderedDict[OneAccount, float] = OrderedDict()
        """When each model last asked for a turn, give or take LIMIT_INTERVAL; the latest last."""
        self.limit = self.other_limit = math.inf
        """Seconds that a run may take: one of any model but `limiting`, and one of that."""
        self.limiting: OneAccount | None = None
        """The model with the tightest objective."""
        self.limit_until = -math.inf
        """When these limits have to be computed again."""

    def next_number(self) -> int:
        """Return the number of a new account."""
        self.accounts += 1
        return self.accounts

    def advance(self, now: float) -> None:
        """Bring the virtual time up to date."""
        if now > self.updated:
            if self.updated > -math.inf:
                models = max(1, len(self.recent))
                self.virtual_time += (now - self.updated) * self.slots / models
            self.updated = now

    def set_active(self, account: OneAccount, is_active: bool) -> None:
        """Note whether a model has a turn, or wants one; the virtual time is up to date."""
        if is_active != account.is_active:
            account.is_active = is_active
            if not is_active:
                account.idle_since = self.updated
            elif self.updated - account.idle_since > IDLE_SECONDS:
                account.busy_since = self.updated

    def limit_credit(self, account: OneAccount) -> None:
        """Take credit from a model that asks for a turn.

        It has no claim on time that it did not use, but for a burst of requests.
        """
        credit = MAX_CREDIT
        if account.is_active:
            credit *= 1.0 - (self.updated - account.busy_since) / BURST_SECONDS
            credit = max(credit, account.turn_seconds)
        account.used = max(account.used, self.virtual_time - credit)

    def charge(self, account: OneAccount, seconds: float) -> None:
        """Count a turn that has just ended.

        What a model has used beyond its share, while nobody else wanted it, is no debt: only the
        last turn may be.
        """
        debt = self.virtual_time + self.slots * seconds
        account.used = max(account.used, min(account.used + seconds, debt))

    def push(self, account: OneAccount) -> None:
        """Add a model that waits, unless it is there."""
        if not account.is_queued and account.can_start:
            account.is_queued = True
            heapq.heappush(self.waiting, (account.used, account.number, account))

    def pop(self) -> OneAccount | None:
        """Remove and return the model whose turn it is, None if nobody waits.

        Accounts have changed since they were put into the heaps: they may have used more, or need
        no turn any more. This is found out only when it matters.
        """
        waiting, eligible, virtual_time = self.waiting, self.eligible, self.virtual_time
        while waiting and waiting[0][0] <= virtual_time:
            _, _, account = heapq.heappop(waiting)
            if not account.can_start:
                account.is_queued = False
            elif account.used <= virtual_time:
                heapq.heappush(eligible, (self._due(account), account.number, account))
            else:
                heapq.heappush(waiting, (account.used, account.number, account))
        while eligible:
            _, _, account = heapq.heappop(eligible)
            if account.can_start and account.used > virtual_time:
                heapq.heappush(waiting, (account.used, account.number, account))
                continue
            account.is_queued = False
            if account.can_start:
                return account
        while waiting:
            used, _, account = heapq.heappop(waiting)
            if account.can_start and account.used > used:
                heapq.heappush(waiting, (account.used, account.number, account))
                continue
            account.is_queued = False
            if account.can_start:
                return account
        return None

    def remove(self, account: OneAccount) -> None:
        """Forget a model that has no more turns."""
        self.recent.pop(account, None)
        if self.limiting is account:
            self.limiting = None
            self.limit_until = -math.inf
        for heap in (self.eligible, self.waiting):
            heap[:] = [entry for entry in heap if entry[2] is not account]
            heapq.heapify(heap)

    def note_request(self, account: OneAccount, now: float) -> None:
        """Note that a model wants a turn."""
        recent = self.recent
        last = recent.get(account)
        if last is None:
            self.limit_until = -math.inf
        elif now - last < LIMIT_INTERVAL:
            return
        recent[account] = now
        recent.move_to_end(account)

    def max_seconds(self, account: OneAccount, now: float) -> float:
        """Return what a run of a model may take that begins now, because of others' objectives."""
        if now >= self.limit_until:
            self._update_limits(now)
        return self.other_limit if account is self.limiting else self.limit

    def seconds_ahead(self, account: OneAccount, used: float, due: float) -> float:
        """Return the predicted seconds of the turns that go before one of a model.

        Args:
            account: That of the model.
            used: What it will have used before that turn.
            due: When the turn has to begin at the latest.
        """
        virtual_time = self.virtual_time
        is_eligible = used <= virtual_time
        ahead = 0.0
        for heap in (self.eligible, self.waiting):
            for key, _, other in heap:
                if other is account or not other.can_start:
                    continue
                if other.used <= virtual_time:
                    other_due = key if heap is self.eligible else self._due(other)
                    goes_first = not is_eligible or other_due < due
                else:
                    goes_first = not is_eligible and other.used < used
                if goes_first:
                    ahead += other.turn_seconds
        return ahead / self.slots

    def _due(self, account: OneAccount) -> float:
        """Return when the turn of a model that has used no more than its share has to begin.

        Its objective asks for no more than its share: it is no sooner than the turn would end if
        the slots were divided among all, as in generalized processor sharing. Otherwise models
        under pressure, that are late all the time, would go before those which keep to their
        shares.
        """
        lag = self.virtual_time - account.used
        share_end = self.updated + (account.turn_seconds - lag) * len(self.recent) / self.slots
        return max(account.due, share_end)

    def _update_limits(self, now: float) -> None:
        recent = self.recent
        while recent and recent[next(iter(recent))] < now - ACTIVE_SECONDS:
            recent.popitem(last=False)
        self.limit_until = now + LIMIT_INTERVAL
        self.limit = self.other_limit = math.inf
        self.limiting = None
        runs = 0
        for account in recent:
            runs += account.run_count
            slack = account.slack
            if slack < self.limit:
                self.limit, self.other_limit = slack, self.limit
                self.limiting = account
            elif slack < self.other_limit:
                self.other_limit = slack
        if runs <= self.slots:  # nobody waits for the run of another
            self.limit = self.other_limit = math.inf
