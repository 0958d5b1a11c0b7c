"""The bounded line in which a model's requests wait for an idle instance."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Request
from neurona_server.errors import InvalidError, QueueFullError, StoppingError


@dataclass
class Cut:
    """What `Queue.take` took: a batch to run, and what must not run any more."""

    batch: list[Request] = field(default_factory=list)
    expired: list[Request] = field(default_factory=list)
    cancelled: list[Request] = field(default_factory=list)


class Queue:
    """Requests in one line for each group, and the oldest request's group goes first.

    So a different shape never closes somebody else's batch, and none starves. All methods
    may be called from any thread; only `take` blocks, and nothing is called back from
    inside the lock.
    """

    def __init__(self, policy: BatchPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._clock = clock
        # All mutable state, guarded by the condition's lock:
        self._lines: dict[Hashable, deque[Request]] = {}
        self._rows = 0
        self._closed = False
        self._changed = threading.Condition(threading.Lock())

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return self._rows

    def __repr__(self) -> str:
        with self._changed:
            requests = sum(len(line) for line in self._lines.values())
            state = "closed" if self._closed else "open"
            return f"<Queue {state}: {requests} requests, {self._rows} rows>"

    def oldest_age(self) -> float:
        """Seconds that the oldest request has waited; 0.0 if none waits."""
        with self._changed:
            if not self._lines:
                return 0.0
            return self._clock() - min(line[0].arrived for line in self._lines.values())

    def put(self, request: Request, retry_after: float) -> None:
        """Admits a request or refuses it; never waits.

        Raises QueueFullError, with `retry_after` seconds in it, when there is no room now;
        InvalidError when there never will be; StoppingError after `close`.
        """
        limit = self._policy.max_queue_rows
        if request.rows > limit:
            raise InvalidError(f"the request has {request.rows} rows; expected at most {limit}")
        with self._changed:
            if self._closed:
                raise StoppingError("the model is stopping and takes no more requests")
            if self._rows + request.rows > limit:
                raise QueueFullError(
                    f"the queue is full: {self._rows} of {limit} rows wait, "
                    f"no room for {request.rows} more",
                    retry_after,
                )
            request.arrived = self._clock()
            self._lines.setdefault(request.group, deque()).append(request)
            self._rows += request.rows
            self._changed.notify()

    def take(self) -> Cut | None:
        """Waits for work, then cuts the batch that the oldest request leads.

        None when the queue is closed and empty. The batch may be empty, when all that
        waited had expired or been cancelled.
        """
        with self._changed:
            while not self._lines:
                if self._closed:
                    return None
                self._changed.wait()
            return self._cut()

    def close(self) -> None:
        """Refuses what comes from now on; what waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> list[Request]:
        """Takes all that waits out, for a stop that cannot wait for it."""
        with self._changed:
            requests = [request for line in self._lines.values() for request in line]
            self._lines.clear()
            self._rows = 0
            return requests

    def _cut(self) -> Cut:
        group = min(self._lines, key=lambda group: self._lines[group][0].arrived)
        line = self._lines[group]
        now = self._clock()
        cut = Cut()
        rows = 0
        while line:
            request = line[0]
            if request.ended:
                cut.cancelled.append(line.popleft())
            elif request.deadline <= now:
                cut.expired.append(line.popleft())
            elif cut.batch and rows + request.rows > self._policy.max_rows:
                break
            else:
                request.taken = now
                rows += request.rows
                cut.batch.append(line.popleft())
            self._rows -= request.rows
        if not line:
            del self._lines[group]
        return cut
