"""Rejects requests that would miss their deadline before they are queued.

It is one file since what is predicted for a request, and what is learned from it later, must agree.
"""

import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from neurona_server.batching.batch import RequestSlots
from neurona_server.batching.cost_distribution import BatchTimes, CostDistribution
from neurona_server.batching.cost_model import CostModel
from neurona_server.batching.cycle_reserve import MIN_RATIO, CycleReserve
from neurona_server.batching.policy import ALL_WEIGHTS, WEIGHTS, BatchPolicy, Priority
from neurona_server.batching.queue import NO_ROWS, Queue
from neurona_server.batching.request import Request
from neurona_server.errors import DeadlineExceededError, QueueFullError

SHARE_SECONDS = 1.0
"""The share of the capacity that a level takes is an average over about this time ..."""

SHARE_RUNS = 8
"""... or over this many runs, if they are longer."""

SHARE_INTERVAL = 0.1
"""Seconds between two updates of that average."""

DEVIATIONS = 1.0
"""Standard deviations by which arrivals may exceed their average before a request is predicted to
miss the next batch."""

LATE_SHARE = 0.0005
"""The proportion of admitted requests that may be late."""

MARGIN_STEP = 1.0
"""The full cycles by which a margin grows if all requests of a batch are late."""

MAX_MARGIN = 2.0
"""Full cycles that a margin has at most."""

MARGIN_SECONDS = 30.0
"""The time in which most of a margin is forgotten: what caused it may have been an exception."""

MIN_OBJECTIVE = 1.25
"""Full cycles that an objective must have to be in reach. One that is not must not reject all, so
three cycles take its place: those of a request that arrives just after a batch has started, and a
reserve."""

SPARE_SHARE = 0.5
"""The part of the time beyond two full cycles that an objective leaves which is always reserved: it
costs hardly any throughput, and stalls of the machine come that were not seen before ..."""

SPARE_CYCLES = 2.0
"""... up to so many full cycles, ..."""

STALL_SECONDS = 0.02
"""... or a usual stall of a busy machine, if that is longer."""

MAX_RETRY_AFTER = 10.0
"""Seconds after which a caller is told to try again at the latest: much changes meanwhile."""

GAP_GAIN = 1 / 16
"""How far the mean gap between batches moves towards the last one."""


class RunningEstimate:
    """When a running batch started, how long it is predicted to take, and its rows."""

    __slots__ = (
        *("full_seconds", "gap_seconds", "group", "is_known", "level_rows", "predicted_seconds"),
        *("run_finished", "run_rows", "run_started", "runs", "started"),
    )

    def __init__(
        self,
        started: float,
        predicted_seconds: float,
        full_seconds: float,
        gap_seconds: float,
        level_rows: Mapping[Priority, int],
        group: Hashable,
    ) -> None:
        self.started = started
        self.predicted_seconds = predicted_seconds
        """Of its cycle: from taking the requests to the last answer."""
        self.full_seconds = full_seconds
        """Of the cycle of a full batch."""
        self.gap_seconds = gap_seconds
        """By how much it started later than it could, less what was predicted."""
        self.level_rows = level_rows
        self.group = group
        self.is_known = False
        """Whether the cost of its group was known when it started."""
        self.runs = 0
        """Those that have begun: more than one if it was halved."""
        self.run_rows = 0
        """Those of the last run that ended, padding included."""
        self.run_started = self.run_finished = 0.0

    def record_run(self, rows: int, started: float, finished: float) -> None:
        """Note when a run of `rows`, padding included, started and ended."""
        self.run_rows, self.run_started, self.run_finished = rows, started, finished


class CapacityShares:
    """The share of the capacity that each level has taken recently, exponentially weighted.

    Threads that add at once may lose an addition: only estimates are made of the shares.
    """

    def __init__(self, now: float) -> None:
        self._shares = [0.0] * len(Priority)
        self._seconds = [0.0] * len(Priority)  # since the last update
        self._longest_run = 0.0  # since the last update
        self._updated = now

    def add(self, level_rows: Mapping[Priority, int], seconds: float) -> None:
        """Count a batch that took `seconds` of one instance."""
        total = sum(level_rows.values())
        for level, rows in level_rows.items():
            self._seconds[level] += seconds * rows / total
        self._longest_run = max(self._longest_run, seconds)

    def update(self, now: float, instances: int) -> Sequence[float]:
        """Return the share of each level at `now`."""
        elapsed = now - self._updated
        if elapsed >= SHARE_INTERVAL:
            window = max(SHARE_SECONDS, SHARE_RUNS * self._longest_run)
            weight = 1.0 - math.exp(-elapsed / window)
            self._shares = [
                share + weight * (min(1.0, seconds / elapsed / instances) - share)
                for share, seconds in zip(self._shares, self._seconds, strict=True)
            ]
            self._seconds = [0.0] * len(Priority)
            self._longest_run = 0.0
            self._updated = now
        return self._shares


class Margins:
    """What is added to the predicted waits of each level, in seconds.

    A margin grows while admitted requests are late, and shrinks while those are less than
    LATE_SHARE of all, and with time. So it makes up for what the distributions do not know.
    """

    def __init__(self, now: float) -> None:
        self._margins = [0.0] * len(Priority)
        self._updated = now

    def margin(self, level: Priority) -> float:
        """Return the margin of a level.

        It is no smaller than that of a more urgent level: these are to be refused last.
        """
        return max(self._margins[: level + 1])

    def observe(
        self,
        started: Mapping[Priority, int],
        lateness: Mapping[Priority, Sequence[float]],
        full: float,
        now: float,
    ) -> None:
        """Learn from requests of a batch: their number of each level, and how late late ones are.

        A full cycle takes `full` seconds.
        """
        kept = math.exp((self._updated - now) / MARGIN_SECONDS)
        self._updated = now
        margins = [kept * margin for margin in self._margins]
        for level, count in started.items():
            late = lateness.get(level, ())
            change = MARGIN_STEP * full * (len(late) / count - LATE_SHARE)
            # No margin need be larger than one with which they would have been in time.
            margin = margins[level] + min(change, max(late, default=change))
            margins[level] = min(max(0.0, margin), MAX_MARGIN * full)
        self._margins = margins


class _Moment(NamedTuple):
    """When a request arrives."""

    now: float
    busy: float
    """See `_busy_seconds`."""
    overdue: float
    """See `_busy_seconds`."""
    full: float
    """The seconds of a full cycle."""
    bound: float
    """The seconds in which its answer is due by the latency objective; inf without one."""


class Admission:
    """Admits a request if the chance that its answer is late is below LATE_SHARE.

    The time of its answer is predicted from the cycle that runs, the cycles of what goes first and
    its own, as the means of their distributions, and a reserve for their spread and jumps. It
    reckons with the requests of other levels that will arrive meanwhile and go first.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        queue: Queue,
        cost_model: CostModel,
        cost_distribution: CostDistribution,
        clock: Callable[[], float],
        instances: int = 1,
        predict_turn: Callable[[float, int], float] | None = None,
    ) -> None:
        self._policy = policy
        self._queue = queue
        self._cost_model = cost_model
        self._cost_distribution = cost_distribution
        self._clock = clock
        self.instances = instances
        self.slots: Sequence[RequestSlots] = ()
        """Those of the instances, if requests need several runs."""
        self.predict_turn = predict_turn
        """Returns the seconds by which other models delay one of the next turns on the devices:
        see `DeviceScheduler.predict_turn`. None if there are no other models."""
        self.is_learning = policy.latency_objective is not None
        """Whether there is an objective, or was a request with a deadline."""
        self._running: set[RunningEstimate] = set()
        self._shares = CapacityShares(clock())
        self._margins = Margins(clock())
        self._reserve = CycleReserve(LATE_SHARE)
        self._gap = 0.0  # mean seconds from the end of a batch to the next one that is due
        self._due: deque[float] = deque(maxlen=instances)  # since when batches could have started

    def check(self, request: Request) -> Mapping[Priority, int]:
        """Reject a request that would probably miss its deadline.

        Returns:
            The rows of less urgent levels without which it will not miss it.

        Raises:
            DeadlineExceededError: The deadline has passed, or is shorter than the run alone.
            QueueFullError: The predicted wait exceeds the deadline or the latency objective.
        """
        objective = self._policy.latency_objective
        if request.deadline == math.inf and objective is None:
            return NO_ROWS
        self.is_learning = True
        now = self._clock()
        if request.deadline <= now:
            raise DeadlineExceededError("deadline already exceeded on arrival")
        group = request.group
        if not self._cost_model.is_reliable(group, now):
            return NO_ROWS
        limit = self._queue.max_batch_rows
        alone = self._cycle(request.rows, group)
        remaining = request.deadline - now
        if alone > remaining:
            raise DeadlineExceededError(
                f"deadline too short: {_ms(remaining)} remain "
                f"(expected at least the predicted run time of {_ms(alone)})"
            )
        full = self._cycle(max(request.rows, limit), group)
        bound, lag = math.inf, request.arrival_lag
        if objective is not None:
            bound = _in_reach(objective, full) - lag
            if lag and alone > bound:  # it has waited for too long before it was read
                raise _wait_too_long(lag, alone, bound + lag)
        busy, overdue = self._busy_seconds(now)
        if self._is_idle(busy, now):
            return NO_ROWS
        allowed = min(remaining, bound)
        # A level gets its share of the turns at least: most requests need no further prediction.
        waiting = self._queue.backlog_seconds() * self._cost_distribution.pace + 2 * full
        longest = waiting * ALL_WEIGHTS / WEIGHTS[Priority.LOW]
        longest += self._other_turns(now, longest / full)
        priority = request.priority
        if not self.slots and busy + 2 * longest + overdue < allowed:
            reserve = self._reserve_seconds(priority, longest / full, overdue, full)
            if busy + longest + full + max(reserve, _spare(bound, full)) < allowed:
                return NO_ROWS
        moment = _Moment(now, busy, overdue, full, bound)
        if (error := self._find_lateness(request, moment)) is None:
            return NO_ROWS
        choices = [] if self.slots else self._displaceable_rows(priority, allowed * limit / full)
        if not choices or self._find_lateness(request, moment, choices[-1]) is not None:
            raise error
        late = self._find_lateness
        return next((one for one in choices if late(request, moment, one) is None), choices[-1])

    def _find_lateness(
        self, request: Request, moment: "_Moment", without: Mapping[Priority, int] = NO_ROWS
    ) -> QueueFullError | None:
        """Return the error of a request that would be late, None if it would not.

        Some rows of less urgent levels do not count: those in `without`.
        """
        now, busy, overdue, full, bound = moment
        limit = self._queue.max_batch_rows
        group, rows, remaining = request.group, request.rows, request.deadline - now
        wait, other_rows = self._predict_start(request.priority, group, rows, now, busy, without)
        reserve = self._reserve_seconds(request.priority, (wait - busy) / full + 1.0, overdue, full)
        run = self._cycle(max(rows, min(other_rows + rows, limit)), group)
        margin = _bounded(reserve, remaining, run)
        if wait + run + margin > remaining:
            return _wait_too_long(wait, run, remaining, margin)
        if bound < math.inf:
            reserve = _bounded(max(reserve, _spare(bound, full)), bound, full)
            if wait + full + reserve > bound:
                return _wait_too_long(wait, full, bound, reserve)
        return None

    def _displaceable_rows(
        self, priority: Priority, capacity: float
    ) -> Sequence[Mapping[Priority, int]]:
        """Return what a request of a level may displace: first little, and then more.

        That is what waits of less urgent levels beyond their shares of the rows that can be
        answered in time, `capacity`. So no level shuts another one out.
        """
        choices: list[Mapping[Priority, int]] = []
        rows: dict[Priority, int] = {}
        for level in reversed(Priority):
            if level <= priority:
                break
            share = int(capacity * self.instances * WEIGHTS[level] / ALL_WEIGHTS)
            if (spare := self._queue.level_rows(level) - share) > 0:
                choices += [{**rows, level: -(-spare * part // 4)} for part in (1, 2)]
                choices.append(rows := {**rows, level: spare})
        return choices

    def predict_wait(
        self, priority: Priority = Priority.NORMAL, group: Hashable = None, rows: int = 1
    ) -> float:
        """Return the predicted seconds in the queue of a request that is submitted now.

        They are 0.0 if an instance is idle.
        """
        now = self._clock()
        return self._predict_start(priority, group, rows, now, self._busy_seconds(now)[0])[0]

    def retry_after(self, request: Request) -> float:
        """Return the seconds after which a request that was refused or displaced may come again.

        They are those that it would have waited in the queue, within bounds.
        """
        wait = self.predict_wait(request.priority, request.group, request.rows)
        return min(wait, MAX_RETRY_AFTER)

    def start_batch(
        self,
        rows: int,
        level_rows: Mapping[Priority, int] = NO_ROWS,
        group: Hashable = None,
        could_start: float = 0.0,
    ) -> RunningEstimate:
        """Record that a batch starts.

        Args:
            rows: All of its rows.
            level_rows: Those of each level.
            group: Whose cost it has.
            could_start: When other models left the device to it, 0.0 if that is unknown.
        """
        now = self._clock()
        late = 0.0
        if self._due:
            try:
                gap = now - max(self._due.popleft(), could_start)
            except IndexError:  # another instance was quicker
                pass
            else:
                late = gap - self._gap
                self._gap += GAP_GAIN * late
        full = self._cycle(self._queue.max_batch_rows, group)
        batch = RunningEstimate(now, self._cycle(rows, group), full, late, level_rows, group)
        batch.is_known = self._cost_model.is_known(group)
        self._running.add(batch)
        return batch

    def finish_batch(self, batch: RunningEstimate) -> None:
        """Record that all requests of the batch are finished."""
        try:
            self._running.remove(batch)
        except KeyError:
            return
        now = self._clock()
        if self._queue.rows >= self._queue.max_batch_rows:
            self._due.append(now)
        cycle = now - batch.started
        distribution = self._cost_distribution
        if batch.runs == 1 and batch.run_rows and self._cost_model.is_known(batch.group):
            if batch.is_known and batch.predicted_seconds:
                excess = (cycle - batch.predicted_seconds) / batch.full_seconds
                distribution.adjust_pace(excess)
                if self.is_learning:
                    late = max(0.0, batch.gap_seconds) / batch.full_seconds
                    self._reserve.observe(max(1.0 + excess + late, MIN_RATIO))
            times = BatchTimes(
                join=batch.run_started - batch.started,
                run=batch.run_finished - batch.run_started,
                answer=now - batch.run_finished,
                cycle=cycle,
            )
            distribution.observe(batch.run_rows, batch.group, times)
        if self.is_learning and batch.level_rows:
            self._shares.add(batch.level_rows, self._seconds_under_load(batch))
            self._shares.update(now, self.instances)

    def _allowed(self, full: float) -> float:
        """Return the seconds in which requests have to be answered, if a cycle takes `full`."""
        objective = self._policy.latency_objective
        return math.inf if objective is None else _in_reach(objective, full)

    def pop_late(self, requests: list[Request], group: Hashable) -> Sequence[Request]:
        """Remove and return the requests of a batch that cannot be answered in time any more.

        That is so if a cycle would be too long that is shorter than almost all. The newest one
        stays, or a wrong prediction that drops all requests would never be corrected.
        """
        now = self._clock()
        full = self._cycle(self._queue.max_batch_rows, group)
        if not full or not self._cost_model.is_reliable(group, now):
            return ()
        rows = sum([request.rows for request in requests])
        # What a batch is made larger for, to try it, may cost less than it seemed to at warm-up.
        best = self._cost_model.best_batch_size(self._policy.latency_objective)
        cycle = min(self._cycle(rows, group), self._cycle(min(rows, best), group))
        end = now + cycle - full * (1.0 - self._reserve.least_ratio)
        # Those that arrived before are late; they are found without a call for each request.
        arrived = end - self._allowed(full)
        late = [
            request
            for request in requests
            if request.queued_at - request.arrival_lag < arrived or request.deadline < end
        ]
        if not late:
            return ()
        requests[:] = [request for request in requests if request not in late]
        if not requests:
            requests.append(late.pop(late.index(max(late, key=_queued_at))))
        return late

    def observe_answers(
        self, expired: Sequence[Request], requests: Sequence[Request]
    ) -> tuple[int, int]:
        """Learn from requests of a batch that are answered now, or have expired before.

        Returns how many requests of callers are in time, and how many are not.
        """
        now = self._clock()
        group = (*requests, *expired)[0].group
        full = self._cycle(self._queue.max_batch_rows, group)
        allowed = self._allowed(full)
        objective = self._policy.latency_objective or math.inf
        started: dict[Priority, int] = {}
        lateness: dict[Priority, list[float]] = {}
        met = missed = 0
        for request in (*requests, *expired):
            level = request.priority
            started[level] = started.get(level, 0) + 1
            seconds = now - request.queued_at + request.arrival_lag
            late = max(seconds - allowed, now - request.deadline)
            if late > 0.0 or request in expired:
                lateness.setdefault(level, []).append(max(late, 0.0))
                missed += request.count
            elif seconds > objective:  # which is out of reach
                missed += request.count
            else:
                met += request.count
        if not self._reserve.jumped:  # or the reserve has learned from it
            self._margins.observe(started, lateness, full, now)
        return met, missed

    def _cycle(self, rows: int, group: Hashable) -> float:
        """Return the mean seconds of a cycle at the moment."""
        distribution = self._cost_distribution
        return distribution.usual_cycle(rows, group) * distribution.pace

    def _reserve_seconds(
        self, priority: Priority, cycles: float, overdue: float, full: float
    ) -> float:
        """Return the reserve for the batch that runs, and so many cycles after it.

        It is `overdue` seconds at least, if that is what the batch that runs may take at most.
        """
        reserve = self._reserve
        spread = reserve.reserve(cycles + 1.0) * full
        if overdue:
            spread = max(spread, overdue + reserve.reserve(cycles) * full)
        return spread + self._margins.margin(priority)

    def _seconds_under_load(self, batch: RunningEstimate) -> float:
        """Return what the rows of a batch take when batches are full."""
        rows = sum(batch.level_rows.values())
        full = batch.full_seconds * rows / self._queue.max_batch_rows
        return min(full, batch.predicted_seconds)

    def _is_idle(self, busy: float, now: float) -> bool:
        """Return whether a request runs at once."""
        return not (busy or self._queue.rows or self.slots or self._other_turns(now))

    def _other_turns(self, now: float, cycles: float = 0.0) -> float:
        """Return the seconds by which other models delay the batch after so many cycles."""
        return 0.0 if self.predict_turn is None else self.predict_turn(now, 1 + int(cycles))

    def _busy_seconds(self, now: float) -> tuple[float, float]:
        """Return the predicted seconds until an instance is idle, and how many more it may take.

        The latter is 0.0 unless its batch takes longer than predicted.
        """
        running = list(self._running)
        if len(running) < self.instances:
            return 0.0, 0.0
        batch = min(running, key=_predicted_end)
        rest = batch.started + batch.predicted_seconds - now
        full = batch.full_seconds
        if rest > 0.0 or not full:
            return max(0.0, rest) + self._gap, 0.0
        rest, most = self._reserve.rest(1.0 - rest / full)
        return rest * full + self._gap, (most - rest) * full

    def _predict_start(
        self,
        priority: Priority,
        group: Hashable,
        rows: int,
        now: float,
        busy: float,
        without: Mapping[Priority, int] = NO_ROWS,
    ) -> tuple[float, int]:
        """Return the seconds until the batch of a request starts, and its other rows by then.

        `busy` are the seconds until an instance is idle. Of other levels, the rows in `without` do
        not count.
        """
        if self.slots and (slots := [*self.slots]):
            waiting = self._queue.rows
            ahead = [one.look_ahead(waiting + rows, group, priority) for one in slots]
            seconds, run_rows = min(ahead)
            seconds *= self._cost_distribution.stretch
            if waiting + rows > sum([max(0, one.room) for one in slots]):
                pace = self._cost_distribution.pace
                seconds += self._queue.backlog_seconds() * pace / self.instances
            wait = max(busy, seconds) + self._other_turns(now)
            return wait, max(0, run_rows - rows)
        if not busy and not self._queue.rows:
            return self._other_turns(now), 0
        work = self._queue.work_ahead(priority, group, rows)
        limit = self._queue.max_batch_rows
        usual = self._cost_distribution.usual_cycle
        full = self._cycle(limit, group)
        # Between two batches there is a gap, which the cycles do not have.
        gaps = (full + self._gap) / full if full else 1.0
        scale = self._cost_distribution.pace * gaps / self.instances
        full *= gaps / self.instances
        row_seconds = max(full / limit, 1e-9)
        shares = self._shares.update(now, self.instances)
        # The last waiting batch of its group has room for it, and the request shares that run
        # instead of waiting for it.
        own = work.seconds
        if work.shared_rows:
            own = max(0.0, own - usual(work.shared_rows, group))
        least = busy + own * scale
        others = []
        waiting_rows, arriving_rows = work.rows, 0.0  # until the running batch ends
        for level in work.others:
            seconds = level.seconds * scale
            each = seconds / level.rows if level.rows else row_seconds
            share = shares[level.priority]
            level_rows = max(0, level.rows - without.get(level.priority, 0))
            others.append((level_rows * each, share, level.max_rows * each))
            if level.max_rows:
                waiting_rows += min(level_rows, level.max_rows)
                arriving_rows += share * busy / row_seconds
        wait = _solve_wait(least, others)
        if not work.is_mixed:
            # Of the rows that go first, some share the batch that the request joins: all, if there
            # is room for them, else half a batch on average.
            deviation = math.sqrt(arriving_rows * rows)
            if waiting_rows + arriving_rows + DEVIATIONS * deviation + rows <= limit:
                wait = busy
            else:
                wait = max(least, wait - full / 2)
        wait += self._other_turns(now, (wait - busy) / full if full else 0.0)
        return wait, work.shared_rows + int(sum(shares) * wait / row_seconds)


def _solve_wait(least: float, others: Sequence[tuple[float, float, float]]) -> float:
    """Return the wait T = least + sum(min(waiting + share * T, maximum)) over other levels.

    `others` has the three values of each: the seconds of what waits, the share of the capacity that
    it takes, and the maximum of seconds in its turns.
    """
    wait, slope = least, 0.0
    growing = []
    for waiting, share, maximum in others:
        wait += min(waiting, maximum)
        if share and waiting < maximum:
            slope += share
            growing.append(((maximum - waiting) / share, maximum - waiting, share))
    for reached, growth, share in sorted(growing):  # in the order in which they reach their maxima
        if slope < 1.0 and wait / (1.0 - slope) <= reached:
            break
        wait += growth
        slope -= share
    return wait / (1.0 - slope) if slope > 1e-9 else wait


def _queued_at(request: Request) -> float:
    return request.queued_at


def _predicted_end(batch: RunningEstimate) -> float:
    return batch.started + batch.predicted_seconds


def _in_reach(objective: float, full: float) -> float:
    """Return the objective, or three full cycles if it is out of reach."""
    return objective if objective >= MIN_OBJECTIVE * full else 3 * full


def _spare(bound: float, full: float) -> float:
    """Return what is always reserved of an objective; 0.0 if there is none."""
    if bound == math.inf:
        return 0.0
    return min(SPARE_SHARE * (bound - 2 * full), max(SPARE_CYCLES * full, STALL_SECONDS))


def _bounded(reserve: float, allowed: float, cycle: float) -> float:
    """Return a reserve, or the most of it that an answer within `allowed` seconds can have.

    With a larger one no batch of such a `cycle` would wait when the one before it ends. If there is
    no time for two cycles in any case, half of what one leaves is reserved.
    """
    return min(reserve, max(allowed - 2 * cycle, 0.5 * (allowed - cycle), 0.0))


def _wait_too_long(wait: float, run: float, allowed: float, reserve: float = 0.0) -> QueueFullError:
    return QueueFullError(
        f"predicted wait too long: {_ms(wait)} in the queue, {_ms(run)} to run and {_ms(reserve)} "
        f"in reserve (expected at most {_ms(allowed)} in total)",
        retry_after=min(wait, MAX_RETRY_AFTER),
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
