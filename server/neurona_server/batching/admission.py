"""Whether a request can be answered in time, judged before it waits."""

import math
from collections.abc import Callable

from neurona_server.batching.cost_model import CostModel
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Request
from neurona_server.errors import DeadlineExceededError, QueueFullError

MOST_STRETCH = 4.0
"""What one batch that the machine held up may at most say about the next."""


class RunningEstimate:
    """A batch that has begun: when, and how long its run was foretold to take."""

    __slots__ = ("began", "foretold")

    def __init__(self, began: float, foretold: float) -> None:
        self.began = began
        self.foretold = foretold


class Admission:
    """Foretells a request's wait from what waits, what runs and what runs cost."""

    def __init__(
        self,
        policy: BatchPolicy,
        queue: Queue,
        cost_model: CostModel,
        clock: Callable[[], float],
        instances: int = 1,
    ) -> None:
        self._policy = policy
        self._queue = queue
        self._curve = cost_model
        self._clock = clock
        self.instances = instances
        self._under_way: set[RunningEstimate] = set()
        # A batch takes longer than its run: it is joined, answered, and others want the CPU too.
        self._stretch = 1.0

    def begin(self, foretold: float) -> RunningEstimate:
        """A batch begins of which the run was foretold to take so many seconds."""
        batch = RunningEstimate(self._clock(), foretold)
        self._under_way.add(batch)
        return batch

    def end(self, batch: RunningEstimate) -> None:
        """It is answered."""
        self._under_way.discard(batch)
        if batch.foretold:
            stretch = min((self._clock() - batch.began) / batch.foretold, MOST_STRETCH)
            self._stretch = max(1.0, self._stretch + 0.1 * (stretch - self._stretch))

    def wait(self, level: Priority = Priority.LOW) -> float:
        """Seconds until a request of this level that comes now would be taken; 0.0 if an
        instance idles."""
        waiting = self._queue.backlog_seconds(level) * self._stretch / self.instances
        ends = [one.began + one.foretold * self._stretch for one in list(self._under_way)]
        if len(ends) >= self.instances:
            waiting += max(0.0, min(ends) - self._clock())
        return waiting

    def check(self, request: Request) -> None:
        """Refuses what would come too late: raises DeadlineExceededError or QueueFullError, which
        say
        what was foretold."""
        objective = self._policy.latency_objective
        if request.deadline == math.inf and objective is None:
            return
        now = self._clock()
        if request.deadline <= now:
            raise DeadlineExceededError("the deadline had passed when the request came")
        if not self._curve.trusted(request.group, now):
            return
        limit = self._queue.max_batch_rows
        alone = self._curve.predict(request.rows, request.group)
        left = request.deadline - now
        if alone > left:
            raise DeadlineExceededError(
                f"the request would take {_ms(alone)}, its deadline is in {_ms(left)}"
            )
        wait = self.wait(request.priority)
        if not wait:
            return
        # The last batch of its group that waits has room for it: it shares that run. So that
        # run is not waited for; it is as long as what waits makes it or, if more comes, a full one.
        shared = self._queue.group_rows(request.group) % limit
        if shared:
            run = self._curve.predict(shared, request.group) * self._stretch / self.instances
            wait = max(0.0, wait - run)
        run = self._curve.predict(min(shared + request.rows, limit), request.group)
        if wait + run > left:
            raise _too_much_waits(wait, run, left)
        full = self._curve.predict(max(request.rows, limit), request.group)
        # An objective that cannot be met must not close the transport for good.
        if objective is not None and wait + full > max(objective, 2 * full):
            raise _too_much_waits(wait, full, max(objective, 2 * full))


def _too_much_waits(wait: float, run: float, allowed: float) -> QueueFullError:
    return QueueFullError(
        f"the request would wait {_ms(wait)} and take {_ms(run)}; "
        f"expected an answer within {_ms(allowed)}",
        retry_after=wait + run - allowed,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
