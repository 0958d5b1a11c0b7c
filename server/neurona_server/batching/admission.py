"""Rejects requests that would miss their deadline before they are queued."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from neurona_server.batching.batch import RequestSlots
from neurona_server.batching.cost_distribution import BatchTimes, CostDistribution
from neurona_server.batching.cost_model import CostModel
from neurona_server.batching.policy import ALL_WEIGHTS, WEIGHTS, BatchPolicy, Priority
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Request
from neurona_server.errors import DeadlineExceededError, QueueFullError

MAX_STRETCH = 4.0
"""Upper bound of the ratio of actual to predicted seconds that is learned from one batch: a single
slow batch says little about the next one."""

SHARE_SECONDS = 1.0
"""The share of the capacity that a level takes is an average over about this time ..."""

SHARE_RUNS = 8
"""... or over this many runs, if they are longer."""

SHARE_INTERVAL = 0.1
"""Seconds between two updates of that average."""

DEVIATIONS = 1.0
"""Standard deviations by which arrivals may exceed their average before a request is predicted to
miss the next batch."""

LATE_SHARE = 0.01
"""The proportion of admitted requests that may be late."""

MARGIN_STEP = 1.0
"""The runs by which a margin grows if all requests of a batch are late."""

MARGIN_SECONDS = 30.0
"""The time in which most of a margin is forgotten: what caused it may have been an exception."""

MAX_MARGIN = 0.5
"""The part of the allowed wait that a margin takes at most: a shorter queue would leave batches
smaller than they could be."""

NO_ROWS: Mapping[Priority, int] = {}


class RunningEstimate:
    """When a running batch started, the predicted seconds of its run, and its rows."""

    __slots__ = (
        *("group", "level_rows", "predicted_seconds", "run_finished", "run_rows", "run_started"),
        *("runs", "started"),
    )

    def __init__(
        self,
        started: float,
        predicted_seconds: float,
        level_rows: Mapping[Priority, int],
        group: Hashable,
    ) -> None:
        self.started = started
        self.predicted_seconds = predicted_seconds
        self.level_rows = level_rows
        self.group = group
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

    A margin grows while admitted requests start too late, and shrinks while those are less than
    LATE_SHARE of all, and with time. So it makes up for what the predictions do not know.
    """

    def __init__(self, now: float) -> None:
        self._margins = [0.0] * len(Priority)
        self._updated = now

    def margin(self, level: Priority, allowed: float) -> float:
        """Return the margin of a wait that may take `allowed` seconds.

        It is no smaller than that of a more urgent level: these are to be refused last.
        """
        return min(max(self._margins[: level + 1]), MAX_MARGIN * allowed)

    def observe(
        self,
        started: Mapping[Priority, int],
        late: Mapping[Priority, Sequence[float]],
        run: float,
        now: float,
    ) -> None:
        """Learn from requests that start to run at `now`, for `run` seconds.

        They are the number of each level, and the waits of those that are late.
        """
        kept = math.exp((self._updated - now) / MARGIN_SECONDS)
        self._updated = now
        margins = [kept * margin for margin in self._margins]
        for level, count in started.items():
            waits = late.get(level, ())
            margin = margins[level]
            change = MARGIN_STEP * run * (len(waits) / count - LATE_SHARE)
            # No margin is larger than a wait was.
            margins[level] = min(max(0.0, margin + change), max(waits, default=margin))
        self._margins = margins


class Admission:
    """Predicts queueing delay from the backlog, the running batches and the cost model.

    It reckons with the requests of other levels that will arrive meanwhile and go first.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        queue: Queue,
        cost_model: CostModel,
        cost_distribution: CostDistribution,
        clock: Callable[[], float],
        instances: int = 1,
    ) -> None:
        self._policy = policy
        self._queue = queue
        self._cost_model = cost_model
        self._cost_distribution = cost_distribution
        self._clock = clock
        self.instances = instances
        self.slots: Sequence[RequestSlots] = ()
        """Those of the instances, if requests need several runs."""
        self._running: set[RunningEstimate] = set()
        # A batch takes longer than its run: inputs are joined, responses written, CPUs shared.
        self._stretch = 1.0
        self._shares = CapacityShares(clock())
        self._margins = Margins(clock())
        self._is_learning = False  # until there is a request whose wait is bounded

    def check(self, request: Request) -> None:
        """Reject a request that would miss its deadline.

        Raises:
            DeadlineExceededError: The deadline has passed, or is shorter than the run alone.
            QueueFullError: The predicted wait exceeds the deadline or the latency objective.
        """
        objective = self._policy.latency_objective
        if request.deadline == math.inf and objective is None:
            return
        self._is_learning = True
        now = self._clock()
        if request.deadline <= now:
            raise DeadlineExceededError("deadline already exceeded on arrival")
        group = request.group
        if not self._cost_model.is_reliable(group, now):
            return
        limit = self._queue.max_batch_rows
        alone = self._cost_model.predict(request.rows, group)
        remaining = request.deadline - now
        if alone > remaining:
            raise DeadlineExceededError(
                f"deadline too short: {_ms(remaining)} remain "
                f"(expected at least the predicted run time of {_ms(alone)})"
            )
        busy = self._busy_seconds(now)
        if not busy and not self._queue.rows and not self.slots:
            return
        priority, margin = request.priority, self._margins.margin
        full = self._cost_model.predict(max(request.rows, limit), group)
        allowed = remaining if objective is None else min(remaining, objective)
        # A level gets its share of the turns at least: most requests need no further prediction.
        waiting = self._queue.backlog_seconds() + 2 * full
        longest = busy + waiting * self._stretch * ALL_WEIGHTS / WEIGHTS[Priority.LOW]
        if not self.slots and longest + full + margin(priority, allowed) < allowed:
            return
        wait, other_rows = self._predict_start(priority, group, request.rows, now, busy)
        run = self._cost_model.predict(
            max(request.rows, min(other_rows + request.rows, limit)), group
        )
        if wait + run + margin(priority, remaining - run) > remaining:
            raise _wait_too_long(wait, run, remaining)
        if objective is None:
            return
        # An objective that cannot be met must not reject all requests for good.
        allowed = max(objective, 2 * full)
        if wait + full + margin(priority, allowed - full) > allowed:
            raise _wait_too_long(wait, full, allowed)

    def predict_wait(self, priority: Priority = Priority.NORMAL) -> float:
        """Return the predicted seconds in the queue of a request that is submitted now.

        They are 0.0 if an instance is idle.
        """
        now = self._clock()
        return self._predict_start(priority, None, 1, now, self._busy_seconds(now))[0]

    def start_batch(
        self,
        predicted_seconds: float,
        level_rows: Mapping[Priority, int] = NO_ROWS,
        group: Hashable = None,
    ) -> RunningEstimate:
        """Record that a batch starts whose run is predicted to take `predicted_seconds`.

        `level_rows` are its rows of each level.
        """
        batch = RunningEstimate(self._clock(), predicted_seconds, level_rows, group)
        self._running.add(batch)
        return batch

    def observe_waits(
        self, expired: Sequence[Request], requests: Sequence[Request], run: float
    ) -> None:
        """Learn from the waits of requests whose batch starts now and takes `run` seconds.

        Some may have expired since theirs started, which took as long.
        """
        if not self._is_learning:
            return
        now = self._clock()
        latest_arrival = -math.inf
        if (objective := self._policy.latency_objective) is not None:
            group = (*requests, *expired)[0].group
            full = self._cost_model.predict(self._queue.max_batch_rows, group)
            latest_arrival = now - max(objective, 2 * full)
        started: dict[Priority, int] = {}
        late: dict[Priority, list[float]] = {}
        for request in (*expired, *requests):
            level = request.priority
            started[level] = started.get(level, 0) + 1
            if request.deadline < now + run or request.queued_at < latest_arrival:
                late.setdefault(level, []).append(now - request.queued_at)
        self._margins.observe(started, late, run, now)

    def finish_batch(self, batch: RunningEstimate) -> None:
        """Record that all requests of the batch are finished."""
        self._running.discard(batch)
        now = self._clock()
        if batch.runs == 1 and batch.run_rows:
            times = BatchTimes(
                join=batch.run_started - batch.started,
                run=batch.run_finished - batch.run_started,
                answer=now - batch.run_finished,
                cycle=now - batch.started,
            )
            self._cost_distribution.observe(batch.run_rows, batch.group, times)
        if batch.predicted_seconds:
            stretch = min((now - batch.started) / batch.predicted_seconds, MAX_STRETCH)
            self._stretch = max(1.0, self._stretch + 0.1 * (stretch - self._stretch))
            if self._is_learning and batch.level_rows:
                self._shares.add(batch.level_rows, self._seconds_under_load(batch))
                self._shares.update(now, self.instances)

    def _seconds_under_load(self, batch: RunningEstimate) -> float:
        """Return what the rows of a batch take when batches are full."""
        limit = self._queue.max_batch_rows
        full = self._cost_model.predict(limit, batch.group)
        rows = sum(batch.level_rows.values())
        return min(full * rows / limit, batch.predicted_seconds) * self._stretch

    def _busy_seconds(self, now: float) -> float:
        """Return the predicted seconds until an instance is idle."""
        running = list(self._running)
        if len(running) < self.instances:
            return 0.0
        ends = [batch.started + batch.predicted_seconds * self._stretch for batch in running]
        return max(0.0, min(ends) - now)

    def _predict_start(
        self, priority: Priority, group: Hashable, rows: int, now: float, busy: float
    ) -> tuple[float, int]:
        """Return the seconds until the batch of a request starts, and its other rows by then.

        `busy` are the seconds until an instance is idle.
        """
        if self.slots and (slots := [*self.slots]):
            waiting = self._queue.rows
            ahead = [one.look_ahead(waiting + rows, group, priority) for one in slots]
            seconds, run_rows = min(ahead)
            if waiting + rows > sum([max(0, one.room) for one in slots]):
                seconds += self._queue.backlog_seconds() / self.instances
            return max(busy, seconds * self._stretch), max(0, run_rows - rows)
        if not busy and not self._queue.rows:
            return 0.0, 0
        work = self._queue.work_ahead(priority, group, rows)
        limit = self._queue.max_batch_rows
        scale = self._stretch / self.instances
        full = self._cost_model.predict(limit, group) * scale
        row_seconds = max(full / limit, 1e-9)
        shares = self._shares.update(now, self.instances)
        # The last waiting batch of its group has room for it, and the request shares that run
        # instead of waiting for it.
        own = work.seconds
        if work.shared_rows:
            own = max(0.0, own - self._cost_model.predict(work.shared_rows, group))
        least = busy + own * scale
        others = []
        waiting_rows, arriving_rows = work.rows, 0.0  # until the running batch ends
        for level in work.others:
            seconds = level.seconds * scale
            each = seconds / level.rows if level.rows else row_seconds
            share = shares[level.priority]
            others.append((seconds, share, level.max_rows * each))
            if level.max_rows:
                waiting_rows += min(level.rows, level.max_rows)
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


def _wait_too_long(wait: float, run: float, allowed: float) -> QueueFullError:
    return QueueFullError(
        f"predicted wait too long: {_ms(wait)} in the queue and {_ms(run)} to run "
        f"(expected at most {_ms(allowed)} in total)",
        retry_after=wait + run - allowed,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
