"""The bounded queue in which a model's requests wait for an idle instance.

It is one file since every decision, about admission, waiting and the next batch, reads the same
levels under the same lock.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from neurona_server.batching.batch import Batch
from neurona_server.batching.device_scheduler import NewCondition
from neurona_server.batching.policy import ALL_WEIGHTS, WEIGHTS, BatchPolicy, Priority
from neurona_server.batching.request import Request
from neurona_server.errors import InvalidArgumentError, QueueFullError, UnavailableError

NO_LIMIT = 1 << 62
"""Of rows."""

Cost = Callable[[int, Hashable], float]
"""Seconds of a run by its rows and group: `CostModel.predict`."""


class Backlog:
    """The waiting rows of each group, and the predicted seconds to run them.

    The sum is read often, so only the groups that changed since the last reading are predicted
    again. Not thread-safe.
    """

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._seconds: dict[Hashable, float] = {}
        self._changed_groups: set[Hashable] = set()
        self._total = 0.0
        self._max_batch_rows = 0
        self.rows: dict[Hashable, int] = {}

    def add(self, group: Hashable, rows: int) -> None:
        """Count rows that joined the queue or, if negative, that left it."""
        remaining = self.rows.get(group, 0) + rows
        self._changed_groups.add(group)
        if remaining:
            self.rows[group] = remaining
        else:
            del self.rows[group]

    def seconds(self, max_batch_rows: int) -> float:
        """Return the predicted seconds to run all rows in batches of `max_batch_rows`."""
        if max_batch_rows != self._max_batch_rows:
            self._max_batch_rows = max_batch_rows
            self._changed_groups.update(self.rows)
        for group in self._changed_groups:
            self._total -= self._seconds.pop(group, 0.0)
            if rows := self.rows.get(group, 0):
                self._seconds[group] = self._group_seconds(group, rows, max_batch_rows)
                self._total += self._seconds[group]
        self._changed_groups.clear()
        if not self.rows:
            self._total = 0.0  # removes rounding errors
        return self._total

    def _group_seconds(self, group: Hashable, rows: int, max_batch_rows: int) -> float:
        full, rest = divmod(rows, max_batch_rows)
        seconds = full * self._cost(max_batch_rows, group) if full else 0.0
        return seconds + (self._cost(rest, group) if rest else 0.0)


class MergedBacklog(Backlog):
    """The backlog of a model whose batches have requests of several groups.

    Groups of few rows do not run one by one: what their runs cost more than their share of full
    batches is divided by the number of groups that a batch has if all are full.
    """

    def __init__(self, cost: Cost) -> None:
        super().__init__(cost)
        self._shares: dict[Hashable, tuple[float, int]] = {}
        self._share_total = 0.0  # seconds, if all batches are full
        self._batches = 0  # if each group runs by itself

    def seconds(self, max_batch_rows: int) -> float:
        changed = {*self._changed_groups}
        if max_batch_rows != self._max_batch_rows:
            changed.update(self.rows)
        separate = super().seconds(max_batch_rows)
        for group in changed:
            share, batches = self._shares.pop(group, (0.0, 0))
            self._share_total -= share
            self._batches -= batches
            if rows := self.rows.get(group, 0):
                share = self._cost(max_batch_rows, group) * rows / max_batch_rows
                batches = -(-rows // max_batch_rows)
                self._shares[group] = share, batches
                self._share_total += share
                self._batches += batches
        if not self.rows:
            self._share_total = 0.0
            return 0.0
        full_batches = math.ceil(sum(self.rows.values()) / max_batch_rows)
        share = min(self._share_total, separate)
        return share + (separate - share) * full_batches / self._batches


Accept = Callable[[int, Hashable], bool]
"""Whether to take a batch, by the most rows that it can have and its group."""

Merge = Callable[[Hashable, Mapping[Hashable, int], int], Sequence[Hashable]]
"""The groups of a batch, in the order in which they fill it: first its leader's.

By the group of the leader, the waiting rows of each group of its priority, and the most rows of any
batch. It must be fast, and take no lock that a thread holds which uses the queue."""


ChooseRows = Callable[[Hashable, int], int]
"""Returns the rows of the next batch, 0 to wait for more, by the group of the request that leads it
and the rows that wait for it.

It must be fast, and take no lock that a thread holds which uses the queue. While it says 0 it is
asked again with each arrival."""


_Lane = OrderedDict[Request, None]  # first in, first out; a request in the middle leaves in O(1)


_FINISH_TAG = attrgetter("finish_tag")


class _Level:
    """The waiting requests of one priority. Not thread-safe."""

    __slots__ = (
        "arrivals",
        "backlog",
        "counts",
        "delayed",
        "finish_tag",
        "lanes",
        "nbytes",
        "priority",
        "requests",
        "rows",
        "weight",
    )

    def __init__(self, priority: Priority, cost: Cost) -> None:
        self.priority = priority
        self.weight = WEIGHTS[priority]
        self.lanes: dict[Hashable, _Lane] = {}
        """The requests of each group."""
        self.arrivals: OrderedDict[Request, None] = OrderedDict()
        """All of them, the newest last."""
        self.delayed: set[Request] = set()
        """Those that have waited too long, and are served after all others of the level."""
        self.counts: dict[Request, int] = {}
        """The requests of callers that each stands for, if there is a limit of these."""
        self.requests = 0
        """The sum of these counts."""
        self.rows = 0
        self.nbytes = 0
        self.backlog = Backlog(cost)
        self.finish_tag = 0.0

    def lane_in_order(self, group: Hashable) -> Iterable[Request]:
        """Return the requests of a group in the order in which they are served."""
        lane = self.lanes.get(group, ())
        if not self.delayed:
            return lane
        return sorted(lane, key=self.delayed.__contains__)

    def first_group(self, groups: Iterable[Hashable]) -> Hashable:
        """Return the group of the lane whose first request is served before those of the others."""
        if not self.delayed:
            if groups is self.lanes:
                return next(iter(self.arrivals)).group
            return min(groups, key=lambda group: next(iter(self.lanes[group])).queued_at)

        def rank(group: Hashable) -> tuple[bool, float]:
            first = next(iter(self.lane_in_order(group)))
            return first in self.delayed, first.queued_at

        return min(groups, key=rank)


def _is_counted(request: Request) -> bool:
    """Return whether it counts as a request of a caller: of a split one, the last part does."""
    return request.parts[-1] is request


class LevelAhead(NamedTuple):
    """What another level may run before a request: it waits, or arrives meanwhile."""

    priority: Priority
    seconds: float
    """To run what waits, with one instance."""
    rows: int
    """That wait."""
    max_rows: int
    """What it can run in its turns until then, however much arrives."""


class WorkAhead(NamedTuple):
    """What runs before a request."""

    seconds: float
    """To run what waits in the request's own level, with one instance."""
    rows: int
    """That wait in its own level."""
    shared_rows: int
    """The rows among them of the batch that the request joins."""
    is_mixed: bool
    """Whether some of what waits is of other groups."""
    others: Sequence[LevelAhead]


class Queue:
    """Requests in a lane for each priority and each group.

    A batch is led by the oldest request of the priority whose turn it is, and filled with
    others of its group, or of groups that `merge` adds. So a request of another shape never closes
    a batch, and no group and no priority starves. A request that finds the queue full displaces
    less urgent ones. All methods are thread-safe; only `wait` blocks, and no request's callback is
    called while the lock is held.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        clock: Callable[[], float] = time.monotonic,
        cost: Cost = lambda *_: 0.0,
        new_condition: NewCondition = threading.Condition,
    ) -> None:
        self._policy = policy
        self._policies = policy.queue_policies
        self._has_timeouts = self._policies is not None and self._policies.have_timeouts
        self._clock = clock
        self.max_batch_rows = policy.max_rows  # self-tuning changes it
        # All other mutable state, guarded by the condition's lock:
        # Start-time fair queueing (Goyal, Vin and Cheng 1996): the finish tag of a level has the
        # rows that it has taken, divided by its weight. The virtual time is the start tag of the
        # level that was served last, at which one that was empty begins.
        self._levels = tuple(_Level(priority, cost) for priority in Priority)
        self._virtual_time = 0.0
        self._rows = 0
        self._bytes = 0
        self._interrupted: deque[Batch] = deque()  # batches to run again
        self._next_timeout = math.inf  # no waiting request has to leave or to be delayed before
        self._cost = cost
        self._merge: Merge | None = None
        self.limit_rows: Callable[[Hashable, int], int] | None = None
        """Returns the most rows of a batch by the group of its leader and the most of any batch;
        None if all have the same. It is set after `merge`."""
        self.choose_rows: ChooseRows | None = None
        """Decides how many rows a batch takes; None: as many as there are and as it can have. It
        is not asked where the policy has `max_delay` or `preferred_rows`."""
        self.choice_wait = 0.0
        """Seconds that rows wait at most because `choose_rows` returns 0, from the first time that
        it does after a batch was taken."""
        self._choice_end = math.inf  # the end of such a wait; inf: nothing waits for this reason
        self._closed = False
        self._lock = threading.Lock()  # entering it is cheaper than entering the condition
        self._changed = new_condition(self._lock)

    @property
    def rows(self) -> int:
        """The number of waiting rows."""
        return self._rows

    @property
    def request_count(self) -> int:
        """The number of waiting requests."""
        with self._lock:
            arrivals = [request for level in self._levels for request in level.arrivals]
        return sum([one.count for one in arrivals if _is_counted(one)])

    @property
    def merge(self) -> Merge | None:
        """Which groups share a batch; None for each by itself. It is set before any request."""
        return self._merge

    @merge.setter
    def merge(self, merge: Merge | None) -> None:
        self._merge = merge
        self.limit_rows = None
        for level in self._levels:
            level.backlog = Backlog(self._cost) if merge is None else MergedBacklog(self._cost)

    @property
    def closed(self) -> bool:
        """Whether further requests are rejected."""
        return self._closed

    @property
    def nbytes(self) -> int:
        """The bytes of waiting input."""
        return self._bytes

    @property
    def max_rows(self) -> int:
        """The maximum number of waiting rows."""
        return self._policy.max_queue_rows

    def group_rows(self, group: Hashable) -> int:
        """Return the number of waiting rows of this group."""
        return sum([level.backlog.rows.get(group, 0) for level in self._levels])

    def backlog_seconds(self) -> float:
        """Return the predicted seconds in which one instance runs all that waits."""
        with self._lock:
            return sum([level.backlog.seconds(self.max_batch_rows) for level in self._levels])

    def work_ahead(self, priority: Priority, group: Hashable, rows: int) -> "WorkAhead":
        """Return what runs before a request of so many rows that is queued now."""
        with self._lock:
            limit = self.max_batch_rows
            own = self._levels[priority]
            shared = own.backlog.rows.get(group, 0) % limit
            if shared + rows > limit:
                shared = 0
            start_tag = self._next_start_tag(own) + (own.rows - shared) / own.weight
            is_mixed = own.rows != own.backlog.rows.get(group, 0)
            others = []
            for level in self._levels:
                if level is own:
                    continue
                batches = (start_tag - self._next_start_tag(level)) * level.weight / limit
                # Of levels with the same start tag, the most urgent one has its turn.
                turns = math.floor(batches) + 1 if level.priority < priority else math.ceil(batches)
                max_rows = max(0, turns) * limit
                if max_rows and level.rows != level.backlog.rows.get(group, 0):
                    is_mixed = True
                seconds = level.backlog.seconds(limit)
                others.append(LevelAhead(level.priority, seconds, level.rows, max_rows))
            return WorkAhead(own.backlog.seconds(limit), own.rows, shared, is_mixed, others)

    def oldest_age(self) -> float:
        """Return the seconds that the oldest request has waited, 0.0 if the queue is empty."""
        with self._lock:
            return self._clock() - self._oldest() if self._rows else 0.0

    def __repr__(self) -> str:
        requests = self.request_count
        with self._lock:
            state = "closed" if self._closed else "open"
            return f"<Queue {state}: {requests} requests, {self._rows} rows, {self._bytes} bytes>"

    def put(self, requests: Sequence[Request], *, notify: bool = True) -> Sequence[Request]:
        """Admit all of the requests, which have one priority, or none; never blocks.

        If there is no room for them, they displace the newest requests of the lowest level below
        theirs, and then of the next one, as many as necessary. Each level keeps the share of the
        queue that is its share of the runs: requests of one level cannot shut the others out.

        Without `notify` no thread in `wait` wakes up: the caller takes care of the batch.

        Returns:
            The requests that were displaced, which the caller fails.

        Raises:
            InvalidArgumentError: The requests exceed an empty queue.
            QueueFullError: The requests exceed the room that is left and that can be made.
            UnavailableError: The queue is closed.
        """
        rows = sum([request.rows for request in requests])
        nbytes = sum([request.nbytes for request in requests])
        max_rows, max_bytes = self._policy.max_queue_rows, self._policy.max_queue_bytes
        if rows > max_rows:
            raise InvalidArgumentError(f"request has {rows} rows (expected at most {max_rows})")
        if nbytes > max_bytes:
            raise InvalidArgumentError(f"request has {nbytes} bytes (expected at most {max_bytes})")
        with self._lock:
            if self._closed:
                raise UnavailableError("model is shutting down: it accepts no more requests")
            if self._policies is not None:
                self._check_count(requests[-1])
            displaced: Sequence[Request] = ()
            if self._rows + rows > max_rows or self._bytes + nbytes > max_bytes:
                displaced = self._find_displaceable(
                    requests[0].priority,
                    self._rows + rows - max_rows,
                    self._bytes + nbytes - max_bytes,
                )
                if not displaced:
                    raise QueueFullError(
                        f"queue full: {self._rows} of {max_rows} rows and {self._bytes} of "
                        f"{max_bytes} bytes are taken, no room for {rows} rows of {nbytes} bytes"
                    )
                for request in displaced:
                    self._remove(request)
            now = self._clock()
            for request in requests:
                self._add(request, now)
            if notify:
                self._changed.notify(len(requests))
        return displaced

    def notify(self) -> None:
        """Wake the threads in `wait` for requests that were put without a notification."""
        with self._lock:
            self._changed.notify_all()

    def wait(self) -> bool:
        """Wait until a batch is ready; return False when the queue is closed and empty."""
        with self._lock:
            while (seconds := self._seconds_until_ready()) != 0.0:
                if self._closed and not self._rows:  # nor a batch to run again
                    return False
                self._changed.wait(seconds)
            return True

    def take_batch(self, accept: Accept | None = None, max_rows: int = NO_LIMIT) -> Batch | None:
        """Take a batch if one is ready; never block.

        It has no requests to run if all that waited had exceeded their deadlines. With `accept`,
        only groups that it accepts are taken, and no batch that was put back. It has `max_rows` at
        most, unless its oldest request alone has more.
        """
        with self._lock:
            if self._interrupted and accept is None:
                return self._interrupted.popleft()
            # The transport's thread does not come back to a batch that waits to be filled.
            if not self._rows or self._seconds_until_ready(chooses=accept is None) != 0.0:
                return None
            return self._form_batch(accept, max_rows)

    def remove_rejectable(self) -> Sequence[Request]:
        """Remove and return the requests that have waited longer than their policy allows."""
        if not self._has_timeouts:
            return ()
        with self._lock:
            return self._apply_timeouts()

    def put_back(self, batch: Batch) -> None:
        """Have an instance run a batch again, before all others, that was interrupted inline."""
        with self._lock:
            self._interrupted.append(batch)
            self._changed.notify_all()

    def discard(self, request: Request) -> None:
        """Remove a finished request if it is still waiting."""
        with self._lock:
            if request in self._levels[request.priority].arrivals:
                self._remove(request)

    def close(self) -> None:
        """Reject further requests; waiting requests can still be taken."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> list[Request]:
        """Remove and return all waiting requests."""
        with self._lock:
            requests = [request for level in self._levels for request in level.arrivals]
            for request in requests:
                self._remove(request)
            requests += [request for batch in self._interrupted for request in batch.requests]
            self._interrupted.clear()
            return requests

    def _add(self, request: Request, now: float) -> None:
        level = self._levels[request.priority]
        # A level that was empty has no claim on the turns that it did not use.
        level.finish_tag = self._next_start_tag(level)
        request.queued_at = now
        if (timeout := request.queue_timeout) is not None:
            self._next_timeout = min(self._next_timeout, now + timeout.seconds)
        request.holder = self
        level.lanes.setdefault(request.group, OrderedDict())[request] = None
        level.arrivals[request] = None
        if self._policies is not None and _is_counted(request):
            level.counts[request] = request.count
            level.requests += request.count
        rows, nbytes = request.rows, request.nbytes
        level.rows += rows
        level.nbytes += nbytes
        self._rows += rows
        self._bytes += nbytes
        level.backlog.add(request.group, rows)

    def _remove(self, request: Request) -> None:
        level = self._levels[request.priority]
        group = request.group
        lane = level.lanes[group]
        del lane[request]
        if not lane:
            del level.lanes[group]
        del level.arrivals[request]
        if self._policies is not None:
            level.delayed.discard(request)
            level.requests -= level.counts.pop(request, 0)
        rows, nbytes = request.rows, request.nbytes
        level.rows -= rows
        level.nbytes -= nbytes
        self._rows -= rows
        self._bytes -= nbytes
        level.backlog.add(group, -rows)

    def _find_displaceable(self, priority: Priority, rows: int, nbytes: int) -> Sequence[Request]:
        """Return requests below `priority` that take `rows` and `nbytes`; none if too few do."""
        displaceable: dict[Request, None] = {}
        for lower in reversed(Priority):
            if lower <= priority:
                break
            level = self._levels[lower]
            share = level.weight / ALL_WEIGHTS
            spare_rows = level.rows - int(self._policy.max_queue_rows * share)
            spare_bytes = level.nbytes - int(self._policy.max_queue_bytes * share)
            for newest in reversed(level.arrivals):
                if (rows > 0 and spare_rows <= 0) or (nbytes > 0 and spare_bytes <= 0):
                    break  # what is needed is the level's own share
                if newest in displaceable:
                    continue
                for request in newest.parts:  # without one of them the others are useless
                    if request in level.arrivals:
                        displaceable[request] = None
                        spare_rows -= request.rows
                        spare_bytes -= request.nbytes
                        rows -= request.rows
                        nbytes -= request.nbytes
                if rows <= 0 and nbytes <= 0:
                    return list(displaceable)
        return ()

    def _next_start_tag(self, level: _Level) -> float:
        return level.finish_tag if level.rows else max(level.finish_tag, self._virtual_time)

    def _check_count(self, request: Request) -> None:
        assert self._policies is not None  # noqa: S101  for the type checker
        limit = self._policies.level_policy(request.priority).max_requests
        count = self._levels[request.priority].requests
        if limit and count + request.count > limit:
            raise QueueFullError(
                f"Exceeds maximum queue size: {count} requests of this priority wait (expected at "
                f"most {limit})"
            )

    def _oldest(self) -> float:
        heads = [next(iter(lane)) for level in self._levels for lane in level.lanes.values()]
        return min([head.queued_at for head in heads])

    def _apply_timeouts(self) -> Sequence[Request]:
        """Delay the requests that have waited too long, or remove and return them."""
        now = self._clock()
        removed: list[Request] = []
        if now < self._next_timeout:
            return removed
        self._next_timeout = math.inf
        for level in self._levels:
            for request in [*level.arrivals]:
                timeout = request.queue_timeout
                if timeout is None or request in level.delayed:
                    continue
                end = request.queued_at + timeout.seconds
                if now < end:
                    self._next_timeout = min(self._next_timeout, end)
                elif timeout.delays:
                    level.delayed.add(request)
                else:
                    self._remove(request)
                    removed.append(request)
        return removed

    def _seconds_until_ready(self, *, chooses: bool = True) -> float | None:
        """Return the seconds until a batch is ready: 0.0 for now, None for an empty queue.

        Without `chooses` it does not wait because `choose_rows` says so.
        """
        if self._interrupted:
            return 0.0
        if not self._rows:
            return None
        if self.choose_rows is not None and chooses and not self._policy.max_delay:
            return self._seconds_by_choice(self.choose_rows)
        if not self._policy.max_delay or self._closed or self._find_ready_group() is not None:
            return 0.0
        waiting = [request for level in self._levels for request in level.arrivals]
        latest = min([r.deadline - self._cost(self.max_batch_rows, r.group) for r in waiting])
        ready = min(self._oldest() + self._policy.max_delay, latest)
        if self._has_timeouts:
            ready = min(ready, self._next_timeout)
        return max(0.0, ready - self._clock())

    def _seconds_by_choice(self, choose_rows: ChooseRows) -> float:
        """Return the seconds for which the next batch waits because of `choose_rows`."""
        if self._closed or self._policy.preferred_rows or self._choose(choose_rows, self._leader()):
            return 0.0
        now = self._clock()
        if self._choice_end == math.inf:
            self._choice_end = now + self.choice_wait
        seconds = max(0.0, self._choice_end - now)
        return min(seconds, max(0.0, self._next_timeout - now)) if self._has_timeouts else seconds

    def _leader(self) -> tuple[_Level, Hashable]:
        """Return the level whose turn it is, and the group of its first request."""
        levels = [level for level in self._levels if level.rows]
        turn = levels[0] if len(levels) == 1 else min(levels, key=_FINISH_TAG)
        return turn, turn.first_group(turn.lanes)

    def _choose(self, choose_rows: ChooseRows, leader: tuple[_Level, Hashable]) -> int:
        """Return the rows of the next batch by `choose_rows`, 0 if it is to wait."""
        level, group = leader
        if self._merge is None:
            return choose_rows(group, self.group_rows(group))
        groups, limit = self._merge_groups(level, group)
        return choose_rows(group, min(limit, sum(map(self.group_rows, groups))))

    def _find_ready_group(self) -> tuple[Hashable, int] | None:
        """Return a group of which a batch need not wait for more, and the rows of the batch."""
        for level in self._levels:
            for group in level.lanes:
                if rows := self._ready_rows(self._levels, group):
                    return group, rows
        if self._merge is not None and not self._policy.preferred_rows:
            for level in self._levels:
                if not level.rows:
                    continue
                leader = level.first_group(level.lanes)
                groups, limit = self._merge_groups(level, leader)
                if self._merged_rows(level, groups) >= limit:
                    return leader, limit
        return None

    def _ready_rows(self, levels: Sequence[_Level], group: Hashable) -> int:
        """Return the rows of a batch that need not wait for more, 0 if it may grow.

        It is the largest batch of a preferred size or, if the next request would exceed all of
        these, what there is.
        """
        limit = self.max_batch_rows
        preferred = [size for size in self._policy.preferred_rows if size <= limit]
        if not preferred:
            return limit if self.group_rows(group) >= limit else 0
        largest = max(preferred)
        rows = ready = 0
        for level in levels:
            for request in level.lane_in_order(group):
                if rows and rows + request.rows > largest:
                    ready = ready or rows
                if rows + request.rows > limit and rows:
                    return ready
                rows += request.rows
                if rows in preferred:
                    ready = rows
        return ready or (rows if rows >= largest else 0)

    def _form_batch(self, accept: Accept | None, max_rows: int) -> Batch | None:
        batch = Batch()
        if self._has_timeouts:
            batch.expired.extend(self._apply_timeouts())
            if not self._rows or self._seconds_until_ready() != 0.0:
                return batch
        turn, group = self._leader()
        limit = min(self.max_batch_rows, max_rows)
        delay = self._policy.max_delay
        if delay and self._oldest() + delay > self._clock() and (ready := self._find_ready_group()):
            # The most urgent level leads: nothing has waited for longer than it should.
            group, limit = ready
            turn = next(level for level in self._levels if group in level.lanes)
        if accept is not None and not accept(self._rows_of_batch(turn, group), group):
            short = [one for one in turn.lanes if accept(self._rows_of_batch(turn, one), one)]
            if not short:
                return batch if batch.expired else None
            group = turn.first_group(short)
        if self._policy.preferred_rows and not delay:
            in_turn = [turn, *[level for level in self._levels if level is not turn]]
            limit = self._ready_rows(in_turn, group) or limit
        groups: Sequence[Hashable] = (group,)
        if self._merge is not None:
            groups, most = self._merge_groups(turn, group, accept)
            limit = min(self._merged_limit(turn, groups, limit, most), max_rows)
        if self.choose_rows is not None and not delay and not self._policy.preferred_rows:
            waiting = min(limit, sum(map(self.group_rows, groups)))
            limit = min(limit, self.choose_rows(group, waiting) or limit)
            self._choice_end = math.inf
        rows = self._fill_from(turn, batch, groups, 0, limit)
        batch.level_rows[turn.priority] = rows
        self._virtual_time = turn.finish_tag
        turn.finish_tag += rows / turn.weight
        for other in self._levels:  # room that is left costs nothing, so no level pays for it
            if other is not turn and other.rows:
                filled = self._fill_from(other, batch, groups, rows, limit)
                batch.level_rows[other.priority] = filled - rows
                rows = filled
        return batch

    def _merge_groups(
        self, level: _Level, leader: Hashable, accept: Accept | None = None
    ) -> tuple[Sequence[Hashable], int]:
        """Return the groups and the most rows of a batch that the oldest request of a lane leads.

        Only those of its level are merged: a less urgent request does not make it take longer. With
        `accept` the batch is one that it accepts, or the leader's group alone.
        """
        assert self._merge is not None  # noqa: S101  for the type checker
        limit = self.max_batch_rows
        if self.limit_rows is not None:
            limit = self.limit_rows(leader, limit)
        groups = self._merge(leader, level.backlog.rows, limit)
        if accept is not None and len(groups) > 1:
            rows = min(sum(map(self.group_rows, groups)), limit)
            if not all(accept(rows, group) for group in groups):
                return (leader,), limit
        return groups, limit

    def _merged_rows(self, level: _Level, groups: Sequence[Hashable]) -> int:
        return sum([level.backlog.rows.get(group, 0) for group in groups])

    def _merged_limit(
        self, level: _Level, groups: Sequence[Hashable], limit: int, merged_limit: int
    ) -> int:
        """Return the most rows of a batch: if it can have one, a preferred size.

        `limit` is that of its leader's group alone, `merged_limit` that of all groups.
        """
        if not self._policy.preferred_rows:
            return min(limit, merged_limit)
        if len(groups) == 1:
            return limit
        most = min(self._merged_rows(level, groups), self.max_batch_rows)
        preferred = [size for size in self._policy.preferred_rows if size <= most]
        return max(preferred, default=self.max_batch_rows)

    def _rows_of_batch(self, level: _Level, group: Hashable) -> int:
        """Return the most rows of a batch that the oldest request of a lane leads."""
        oldest = next(iter(level.lanes[group]))
        return max(oldest.rows, min(self.group_rows(group), self.max_batch_rows))

    def _fill_from(
        self, level: _Level, batch: Batch, groups: Sequence[Hashable], rows: int, limit: int
    ) -> int:
        for group in groups:
            if group in level.lanes:
                rows = self._fill(batch, level, group, rows, limit)
        return rows

    def _fill(self, batch: Batch, level: _Level, group: Hashable, rows: int, limit: int) -> int:
        """Move requests from one lane into the batch, and return the rows of the batch."""
        now = self._clock()
        lane = level.lanes[group]
        in_order = iter([*level.lane_in_order(group)]) if level.delayed else None
        while lane:
            request = next(iter(lane)) if in_order is None else next(in_order)
            if request.deadline <= now:
                batch.expired.append(request)
            elif batch.requests and rows + request.rows > limit:
                break
            elif not request.finished:  # another thread is about to discard a finished one
                request.dequeued_at = now
                rows += request.rows
                batch.requests.append(request)
            self._remove(request)
        return rows
