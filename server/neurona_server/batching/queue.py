"""The bounded queue in which a model's requests wait for an idle instance.

It is one file since every decision, about admission, waiting and the next batch, reads the same
levels under the same lock.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple

from neurona_server.batching.backlog import Backlog, Cost, Merge, MergedBacklog
from neurona_server.batching.batch import Batch
from neurona_server.batching.complete_batches import CompleteBatches, ready_rows
from neurona_server.batching.device_scheduler import NewCondition
from neurona_server.batching.policy import ALL_WEIGHTS, WEIGHTS, BatchPolicy, Priority
from neurona_server.batching.request import Request
from neurona_server.batching.request_heap import RequestHeap
from neurona_server.errors import InvalidArgumentError, QueueFullError, UnavailableError

NO_LIMIT = 1 << 62
"""Of rows."""

NO_ROWS: Mapping[Priority, int] = {}

GROUPS_TO_OFFER = 8
"""Groups that a transport's thread is offered for its next batch. If it takes none of them, the
instances serve all."""

Accept = Callable[[int, Hashable], bool]
"""Whether to take a batch, by the most rows that it can have and its group."""

ChooseRows = Callable[[Hashable, int, Request], int]
"""Returns the rows of the next batch, 0 to wait for more, by the group of the request that leads
it, the rows that wait for it, and that request.

It must be fast, and take no lock that a thread holds which uses the queue. While it says 0 it is
asked again with each arrival."""


_Lane = OrderedDict[Request, None]  # first in, first out; a request in the middle leaves in O(1)


_FINISH_TAG = attrgetter("finish_tag")


class _Level:
    """The waiting requests of one priority. Not thread-safe.

    Those that have waited too long, and are served after all others of the level, are kept apart
    as the delayed ones.
    """

    __slots__ = (
        "arrivals",
        "backlog",
        "counts",
        "delayed",
        "delayed_lanes",
        "finish_tag",
        "lanes",
        "nbytes",
        "priority",
        "requests",
        "rows",
        "weight",
    )

    def __init__(self, priority: Priority, backlog: Backlog) -> None:
        self.priority = priority
        self.weight = WEIGHTS[priority]
        self.lanes: dict[Hashable, _Lane] = {}
        """The requests of each group that are not delayed."""
        self.arrivals: _Lane = OrderedDict()
        """All of these, the newest last."""
        self.delayed_lanes: dict[Hashable, _Lane] = {}
        self.delayed: _Lane = OrderedDict()
        """All of these, in the order in which their time was over."""
        self.counts: dict[Request, int] = {}
        """The requests of callers that each stands for, if there is a limit of these."""
        self.requests = 0
        """The sum of these counts."""
        self.rows = 0
        self.nbytes = 0
        self.backlog = backlog
        self.finish_tag = 0.0

    def __iter__(self) -> Iterator[Request]:
        """Return the requests in the order in which they are served."""
        return chain(self.arrivals, self.delayed)

    def __reversed__(self) -> Iterator[Request]:
        return chain(reversed(self.delayed), reversed(self.arrivals))

    def __contains__(self, request: Request) -> bool:
        return request in self.arrivals or request in self.delayed

    def remove(self, request: Request) -> None:
        """Remove a request from its lane."""
        if request in self.arrivals:
            del self.arrivals[request]
            lanes = self.lanes
        else:
            del self.delayed[request]
            lanes = self.delayed_lanes
        lane = lanes[request.group]
        del lane[request]
        if not lane:
            del lanes[request.group]

    def delay(self, request: Request) -> None:
        """Have a request served after all others."""
        self.remove(request)
        self.delayed[request] = None
        self.delayed_lanes.setdefault(request.group, OrderedDict())[request] = None

    def lane_in_order(self, group: Hashable) -> Iterator[Request]:
        """Return the requests of a group in the order in which they are served."""
        return chain(self.lanes.get(group, ()), self.delayed_lanes.get(group, ()))

    def first(self) -> Request:
        """Return the request that is served first."""
        return next(iter(self.arrivals or self.delayed))

    def first_groups(self, count: int) -> Sequence[Hashable]:
        """Return some of the groups whose requests have waited for long."""
        return [*islice(self.lanes or self.delayed_lanes, count)]

    def oldest(self) -> float:
        """Return the time since which requests wait."""
        heads = [next(iter(lane)).queued_at for lane in (self.arrivals, self.delayed) if lane]
        return min(heads)


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
        self._levels = tuple(_Level(one, Backlog(cost, policy.max_rows)) for one in Priority)
        self._virtual_time = 0.0
        self._rows = 0
        self._bytes = 0
        self._interrupted: deque[Batch] = deque()  # batches to run again
        self._timeouts = RequestHeap()  # when a request has to leave or to be delayed
        # Where batches wait to be filled: when a request has to run for its deadline, and the
        # groups that need not wait for more.
        self._latest_starts = RequestHeap()
        self._complete_batches: CompleteBatches | None = None
        if policy.max_delay:
            self._complete_batches = CompleteBatches(self._ready_rows, self._level_of)
        self._readiness_limit: int | None = None  # the most rows of a batch, at the last look
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
            waiting = [*chain.from_iterable(self._levels)]
        return sum([one.count for one in waiting if _is_counted(one)])

    @property
    def merge(self) -> Merge | None:
        """Which groups share a batch; None for each by itself. It is set before any request."""
        return self._merge

    @merge.setter
    def merge(self, merge: Merge | None) -> None:
        self._merge = merge
        self.limit_rows = None
        for level in self._levels:
            level.backlog = (
                Backlog(self._cost, self.max_batch_rows)
                if merge is None
                else MergedBacklog(self._cost, self.max_batch_rows, merge)
            )

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

    def level_rows(self, level: Priority) -> int:
        """Return the number of waiting rows of a level."""
        return self._levels[level].rows

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

    def put(
        self,
        requests: Sequence[Request],
        *,
        notify: bool = True,
        displace: Mapping[Priority, int] = NO_ROWS,
    ) -> Sequence[Request]:
        """Admit all of the requests, which have one priority, or none; never blocks.

        If there is no room for them, they displace the newest requests of the lowest level below
        theirs, and then of the next one, as many as necessary. Each level keeps the share of the
        queue that is its share of the runs: requests of one level cannot shut the others out.

        They also displace the newest requests of the levels in `displace`, as many as have so many
        rows: admission says so where they would otherwise be late.

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
            if displace:
                displaced = [*displaced, *self._remove_newest(displace)]
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
            if request in self._levels[request.priority]:
                self._remove(request)

    def close(self) -> None:
        """Reject further requests; waiting requests can still be taken."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> list[Request]:
        """Remove and return all waiting requests."""
        with self._lock:
            requests = [*chain.from_iterable(self._levels)]
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
        request.holder = self
        if (lane := level.lanes.get(request.group)) is None:
            lane = level.lanes[request.group] = OrderedDict()
        lane[request] = None
        level.arrivals[request] = None
        if self._policies is not None:
            if _is_counted(request):
                level.counts[request] = request.count
                level.requests += request.count
            if self._has_timeouts and (timeout := request.queue_timeout) is not None:
                self._timeouts.add(request, now + timeout.seconds)
        if (complete := self._complete_batches) is not None:
            complete.note_change(request.group)
            if request.deadline != math.inf:
                run = self._cost(self.max_batch_rows, request.group)
                self._latest_starts.add(request, request.deadline - run)
        rows, nbytes = request.rows, request.nbytes
        level.rows += rows
        level.nbytes += nbytes
        self._rows += rows
        self._bytes += nbytes
        level.backlog.add(request.group, rows)

    def _remove(self, request: Request) -> None:
        level = self._levels[request.priority]
        group = request.group
        if level.delayed:
            level.remove(request)
        else:
            lane = level.lanes[group]
            del lane[request]
            if not lane:
                del level.lanes[group]
            del level.arrivals[request]
        if self._policies is not None:
            level.requests -= level.counts.pop(request, 0)
            self._timeouts.discard(request)
        if (complete := self._complete_batches) is not None:
            complete.note_change(group)
            self._latest_starts.discard(request)
        rows, nbytes = request.rows, request.nbytes
        level.rows -= rows
        level.nbytes -= nbytes
        self._rows -= rows
        self._bytes -= nbytes
        level.backlog.add(group, -rows)

    def _find_displaceable(self, priority: Priority, rows: int, nbytes: int) -> Sequence[Request]:
        """Return requests below `priority` that take `rows` and `nbytes`; none if too few do."""
        displaceable: dict[Request, None] = {}
        below = self._levels[priority + 1 :]
        if rows > sum([one.rows for one in below]) or nbytes > sum([one.nbytes for one in below]):
            return ()
        for lower in reversed(Priority):
            if lower <= priority:
                break
            level = self._levels[lower]
            share = level.weight / ALL_WEIGHTS
            spare_rows = level.rows - int(self._policy.max_queue_rows * share)
            spare_bytes = level.nbytes - int(self._policy.max_queue_bytes * share)
            for newest in reversed(level):
                if (rows > 0 and spare_rows <= 0) or (nbytes > 0 and spare_bytes <= 0):
                    break  # what is needed is the level's own share
                if newest in displaceable:
                    continue
                for request in newest.parts:  # without one of them the others are useless
                    if request in level:
                        displaceable[request] = None
                        spare_rows -= request.rows
                        spare_bytes -= request.nbytes
                        rows -= request.rows
                        nbytes -= request.nbytes
                if rows <= 0 and nbytes <= 0:
                    return list(displaceable)
        return ()

    def _remove_newest(self, level_rows: Mapping[Priority, int]) -> Sequence[Request]:
        """Remove and return the newest requests of each level that have so many rows."""
        removed: list[Request] = []
        for priority, rows in level_rows.items():
            level = self._levels[priority]
            kept = max(0, level.rows - rows)
            while level.rows > kept:
                for request in next(reversed(level)).parts:  # useless without the others
                    if request in level:
                        self._remove(request)
                        removed.append(request)
        return removed

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
        return min([level.oldest() for level in self._levels if level.rows])

    def _level_of(self, group: Hashable) -> int | None:
        """Return the most urgent level with requests of a group, None if none waits."""
        return next((one.priority for one in self._levels if group in one.backlog.rows), None)

    def _apply_timeouts(self) -> Sequence[Request]:
        """Delay the requests that have waited too long, or remove and return them."""
        removed: list[Request] = []
        for request in self._timeouts.pop_until(self._clock()):
            assert request.queue_timeout is not None  # noqa: S101  for the type checker
            if request.queue_timeout.delays:
                self._levels[request.priority].delay(request)
                if self._complete_batches is not None:
                    self._complete_batches.note_change(request.group)
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
        ready = min(self._oldest() + self._policy.max_delay, self._latest_starts.first)
        if self._has_timeouts:
            ready = min(ready, self._timeouts.first)
        return max(0.0, ready - self._clock())

    def _seconds_by_choice(self, choose_rows: ChooseRows) -> float:
        """Return the seconds for which the next batch waits because of `choose_rows`."""
        if self._closed or self._policy.preferred_rows or self._choose(choose_rows):
            return 0.0
        now = self._clock()
        if self._choice_end == math.inf:
            self._choice_end = now + self.choice_wait
        seconds = max(0.0, self._choice_end - now)
        return min(seconds, max(0.0, self._timeouts.first - now)) if self._has_timeouts else seconds

    def _leader(self) -> tuple[_Level, Hashable]:
        """Return the level whose turn it is, and the group of its first request."""
        levels = [level for level in self._levels if level.rows]
        turn = levels[0] if len(levels) == 1 else min(levels, key=_FINISH_TAG)
        return turn, turn.first().group

    def _choose(self, choose_rows: ChooseRows) -> int:
        """Return the rows of the next batch by `choose_rows`, 0 if it is to wait."""
        level, group = self._leader()
        if self._merge is None:
            return choose_rows(group, self.group_rows(group), level.first())
        limit = self._row_limit(group)
        groups = self._merge_groups(level, group, limit)
        waiting = min(limit, sum(map(self.group_rows, groups)))
        return choose_rows(group, waiting, level.first())

    def _find_ready_group(self) -> tuple[Hashable, int] | None:
        """Return a group of which a batch need not wait for more, and the rows of the batch."""
        complete = self._complete_batches
        assert complete is not None  # noqa: S101  for the type checker
        if self._readiness_limit not in (None, self.max_batch_rows):
            complete.check_all(chain.from_iterable(one.backlog.rows for one in self._levels))
        self._readiness_limit = self.max_batch_rows
        if (ready := complete.find()) is not None:
            return ready
        if self._merge is not None and not self._policy.preferred_rows:
            for level in self._levels:
                if not level.rows:
                    continue
                leader = level.first().group
                limit = self._row_limit(leader)
                if level.rows >= limit:
                    groups = self._merge_groups(level, leader, limit)
                    if self._merged_rows(level, groups) >= limit:
                        return leader, limit
        return None

    def _ready_rows(self, group: Hashable, first: _Level | None = None) -> int:
        """Return the rows of a batch that need not wait for more, 0 if it may grow.

        With `first` the requests of that level are the first of the batch.
        """
        limit = self.max_batch_rows
        preferred = [size for size in self._policy.preferred_rows if size <= limit]
        if not preferred:
            return limit if self.group_rows(group) >= limit else 0
        levels: Iterable[_Level] = self._levels
        if first is not None:
            levels = [first, *[level for level in levels if level is not first]]
        in_order = chain.from_iterable(level.lane_in_order(group) for level in levels)
        return ready_rows(in_order, preferred)

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
            group, rows = ready
            limit = min(limit, rows)
            turn = next(level for level in self._levels if group in level.backlog.rows)
        if accept is not None and not accept(self._rows_of_batch(turn, group), group):
            offered = turn.first_groups(GROUPS_TO_OFFER)
            short = [one for one in offered if accept(self._rows_of_batch(turn, one), one)]
            if not short:
                return batch if batch.expired else None
            group = min(short, key=lambda one: next(turn.lane_in_order(one)).queued_at)
        if self._policy.preferred_rows and not delay:
            limit = self._ready_rows(group, turn) or limit
        groups: Sequence[Hashable] = (group,)
        if self._merge is not None:
            most = self._row_limit(group)
            groups = self._merge_groups(turn, group, most, accept)
            limit = min(self._merged_limit(turn, groups, limit, most), max_rows)
        if self.choose_rows is not None and not delay and not self._policy.preferred_rows:
            waiting = min(limit, sum(map(self.group_rows, groups)))
            first = next(turn.lane_in_order(group))
            limit = min(limit, self.choose_rows(group, waiting, first) or limit)
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

    def _row_limit(self, leader: Hashable) -> int:
        """Return the most rows of a batch that a request of a group leads."""
        limit = self.max_batch_rows
        return limit if self.limit_rows is None else self.limit_rows(leader, limit)

    def _merge_groups(
        self, level: _Level, leader: Hashable, limit: int, accept: Accept | None = None
    ) -> Sequence[Hashable]:
        """Return the groups of a batch of `limit` rows that the oldest request of a lane leads.

        Only those of its level are merged: a less urgent request does not make it take longer. With
        `accept` the batch is one that it accepts, or the leader's group alone.
        """
        assert self._merge is not None  # noqa: S101  for the type checker
        assert isinstance(level.backlog, MergedBacklog)  # noqa: S101  for the type checker
        groups = self._merge.choose(leader, level.backlog, limit)
        if accept is not None and len(groups) > 1:
            rows = min(sum(map(self.group_rows, groups)), limit)
            if not all(accept(rows, group) for group in groups):
                return (leader,)
        return groups

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
        oldest = next(level.lane_in_order(group))
        return max(oldest.rows, min(self.group_rows(group), self.max_batch_rows))

    def _fill_from(
        self, level: _Level, batch: Batch, groups: Sequence[Hashable], rows: int, limit: int
    ) -> int:
        for group in groups:
            if rows >= limit:
                break
            if group in level.backlog.rows:
                rows = self._fill(batch, level, group, rows, limit)
        return rows

    def _fill(self, batch: Batch, level: _Level, group: Hashable, rows: int, limit: int) -> int:
        """Move requests from one lane into the batch, and return the rows of the batch."""
        now = self._clock()
        lanes = (level.lanes, level.delayed_lanes) if level.delayed else (level.lanes,)
        for one in lanes:
            lane = one.get(group)
            while lane:
                request = next(iter(lane))
                if request.deadline <= now:
                    batch.expired.append(request)
                elif batch.requests and rows + request.rows > limit:
                    return rows
                elif not request.finished:  # another thread is about to discard a finished one
                    request.dequeued_at = now
                    rows += request.rows
                    batch.requests.append(request)
                self._remove(request)
        return rows
