"""The bounded line in which a model's requests wait for an idle instance."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from neurona_server.batching.batch import Batch
from neurona_server.batching.policy import WEIGHTS, BatchPolicy, Priority
from neurona_server.batching.request import Request
from neurona_server.errors import InvalidArgumentError, QueueFullError, UnavailableError

Cost = Callable[[int, Hashable], float]
"""Seconds of a run, by its rows and group: `Curve.predict`."""


class Backlog:
    """The rows that wait in each group, and the seconds that running them takes.

    Asked for often and changed as often, so that only groups that changed since the last
    time are counted anew. Not for use by several threads at once.
    """

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._seconds: dict[Hashable, float] = {}
        self._changed: set[Hashable] = set()
        self._total = 0.0
        self._limit = 0
        self.rows: dict[Hashable, int] = {}

    def add(self, group: Hashable, rows: int) -> None:
        """Rows that come, or, below zero, that go."""
        left = self.rows.get(group, 0) + rows
        self._changed.add(group)
        if left:
            self.rows[group] = left
        else:
            del self.rows[group]

    def seconds(self, limit: int) -> float:
        """For all of it, one run after the other, with `limit` rows in a run."""
        if limit != self._limit:
            self._limit = limit
            self._changed.update(self.rows)
        for group in self._changed:
            self._total -= self._seconds.pop(group, 0.0)
            if rows := self.rows.get(group, 0):
                self._seconds[group] = self._group_seconds(group, rows, limit)
                self._total += self._seconds[group]
        self._changed.clear()
        if not self.rows:
            self._total = 0.0  # what rounding left
        return self._total

    def _group_seconds(self, group: Hashable, rows: int, limit: int) -> float:
        full, rest = divmod(rows, limit)
        seconds = full * self._cost(limit, group) if full else 0.0
        return seconds + (self._cost(rest, group) if rest else 0.0)


_Lane = OrderedDict[Request, None]  # first come first; a member leaves from anywhere at once


class Queue:
    """Requests in a line for each level of priority and each group.

    A batch is led by the oldest request of the level whose turn it is, and filled with
    others of its group. So a different shape never closes somebody else's batch, and no
    group and no level starves. All methods may be called from any thread; only `wait`
    blocks, and nothing is called back from inside the lock.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        clock: Callable[[], float] = time.monotonic,
        cost: Cost = lambda *_: 0.0,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self.max_batch_rows = policy.max_rows  # rows in a batch; self-tuning moves it
        # All other mutable state, guarded by the condition's lock:
        self._levels: tuple[dict[Hashable, _Lane], ...] = tuple({} for _ in Priority)
        # Start-time fair queueing (Goyal et al. 1996): each level's rows taken, by its weight,
        # and that of the level which was served last, where one that was empty begins.
        self._passes = [0.0] * len(Priority)
        self._virtual = 0.0
        self._rows = 0
        self._bytes = 0
        self._cost = cost
        self._backlogs = tuple(Backlog(cost) for _ in Priority)
        self._closed = False
        self._lock = threading.Lock()  # entered itself, it costs less than by the condition
        self._changed = threading.Condition(self._lock)

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return self._rows

    @property
    def nbytes(self) -> int:
        """Bytes of input that wait."""
        return self._bytes

    @property
    def max_rows(self) -> int:
        """Rows that may wait."""
        return self._policy.max_queue_rows

    def backlog_seconds(self, level: Priority = Priority.LOW) -> float:
        """What one instance runs before a request of this level that comes now: all that waits
        of its level and of more urgent ones, and of the others what their weight gives them."""
        with self._lock:
            seconds = [backlog.seconds(self.max_batch_rows) for backlog in self._backlogs]
        before = sum(seconds[: level + 1])
        for lower in Priority:
            if lower > level:
                before += min(seconds[lower], before * WEIGHTS[lower] / WEIGHTS[level])
        return before

    def group_rows(self, group: Hashable) -> int:
        """Rows of this group that wait."""
        return sum([backlog.rows.get(group, 0) for backlog in self._backlogs])

    def wake(self) -> None:
        """Tells the threads in `wait` of what was put without telling them."""
        with self._lock:
            self._changed.notify_all()

    def __repr__(self) -> str:
        with self._lock:
            requests = sum(len(line) for lines in self._levels for line in lines.values())
            state = "closed" if self._closed else "open"
            return f"<Queue {state}: {requests} requests, {self._rows} rows, {self._bytes} bytes>"

    def oldest_age(self) -> float:
        """Seconds that the oldest request has waited; 0.0 if none waits."""
        with self._lock:
            return self._clock() - self._oldest() if self._rows else 0.0

    def put(self, requests: Sequence[Request], *, wake: bool = True) -> None:
        """Admits all of them or none; never waits.

        Without `wake`, no thread in `wait` is told: somebody else will come for them.
        Raises QueueFullError when there is no room now, InvalidArgumentError when there never will
        be,
        UnavailableError after `close`.
        """
        rows = sum([request.rows for request in requests])
        size = sum([request.nbytes for request in requests])
        most_rows, most_bytes = self._policy.max_queue_rows, self._policy.max_queue_bytes
        if rows > most_rows:
            raise InvalidArgumentError(f"the request has {rows} rows; expected at most {most_rows}")
        if size > most_bytes:
            raise InvalidArgumentError(
                f"the request has {size} bytes; expected at most {most_bytes}"
            )
        with self._lock:
            if self._closed:
                raise UnavailableError("the model is stopping and takes no more requests")
            if self._rows + rows > most_rows or self._bytes + size > most_bytes:
                raise QueueFullError(
                    f"the queue is full: {self._rows} of {most_rows} rows and {self._bytes} of "
                    f"{most_bytes} bytes wait, no room for {rows} rows of {size} bytes"
                )
            now = self._clock()
            for request in requests:
                self._add(request, now)
            if wake:
                self._changed.notify(len(requests))

    def wait(self) -> bool:
        """Waits until there is a batch to cut; False when the queue is closed and empty."""
        with self._lock:
            while (seconds := self._until_ready()) != 0.0:
                if self._closed and not self._rows:
                    return False
                self._changed.wait(seconds)
            return True

    def take_batch(self) -> Batch | None:
        """Cuts a batch if there is one to cut now; never waits.

        The batch may be empty, when all that waited had expired.
        """
        with self._lock:
            return self._cut() if self._until_ready() == 0.0 else None

    def leave(self, request: Request) -> None:
        """Takes a request that has ended out, if it still waits."""
        with self._lock:
            line = self._levels[request.priority].get(request.group)
            if line is not None and request in line:
                self._remove(line, request)

    def close(self) -> None:
        """Refuses what comes from now on; what waits can still be taken."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> list[Request]:
        """Takes all that waits out, for a stop that cannot wait for it."""
        with self._lock:
            lines = [line for lines in self._levels for line in lines.values()]
            requests = [request for line in lines for request in line]
            for request in requests:
                self._remove(self._levels[request.priority][request.group], request)
            return requests

    def _add(self, request: Request, now: float) -> None:
        lines = self._levels[request.priority]
        if not lines:  # a level that was empty has no claim on the turns that it did not use
            self._passes[request.priority] = max(self._passes[request.priority], self._virtual)
        request.queued_at = now
        request.place = self
        lines.setdefault(request.group, OrderedDict())[request] = None
        self._rows += request.rows
        self._bytes += request.nbytes
        self._backlogs[request.priority].add(request.group, request.rows)

    def _remove(self, line: _Lane, request: Request) -> None:
        del line[request]
        if not line:
            del self._levels[request.priority][request.group]
        self._rows -= request.rows
        self._bytes -= request.nbytes
        self._backlogs[request.priority].add(request.group, -request.rows)

    def _oldest(self) -> float:
        heads = [next(iter(line)) for lines in self._levels for line in lines.values()]
        return min([head.queued_at for head in heads])

    def _until_ready(self) -> float | None:
        """Seconds until a batch may be cut: 0.0 now, None when there is nothing to wait for."""
        if not self._rows:
            return None
        if not self._policy.max_delay or self._closed or self._full_group() is not None:
            return 0.0
        waiting = [r for lines in self._levels for line in lines.values() for r in line]
        latest = min([one.deadline - self._cost(self.max_batch_rows, one.group) for one in waiting])
        ready = min(self._oldest() + self._policy.max_delay, latest)
        return max(0.0, ready - self._clock())

    def _full_group(self) -> Hashable | None:
        """A group of which a whole batch waits."""
        for lines in self._levels:
            for group in lines:
                if self.group_rows(group) >= self.max_batch_rows:
                    return group
        return None

    def _cut(self) -> Batch:
        level = min(
            [priority for priority in Priority if self._levels[priority]],
            key=lambda priority: self._passes[priority],
        )
        lines = self._levels[level]
        group = min(lines, key=lambda group: next(iter(lines[group])).queued_at)
        if self._policy.max_delay and (full := self._full_group()) is not None and full in lines:
            group = full
        cut = Batch()
        rows = self._fill(cut, level, group, 0)
        self._virtual = self._passes[level]
        self._passes[level] += rows / WEIGHTS[level]
        for other in Priority:  # room that is left costs nothing, so nobody pays for it
            if other != level and group in self._levels[other]:
                rows = self._fill(cut, other, group, rows)
        return cut

    def _fill(self, cut: Batch, level: Priority, group: Hashable, rows: int) -> int:
        """Moves requests from one line into the cut; the rows that the batch has then."""
        now = self._clock()
        line = self._levels[level][group]
        while line:
            request = next(iter(line))
            if request.deadline <= now:
                cut.expired.append(request)
            elif cut.batch and rows + request.rows > self.max_batch_rows:
                break
            elif not request.ended:  # one that has ended is on its way out of here
                request.dequeued_at = now
                rows += request.rows
                cut.batch.append(request)
            self._remove(line, request)
        return rows
