"""Whether a request can be answered in time, judged before it waits."""

import math
from collections.abc import Callable

from neurona_server.batching.curve import Curve
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Request
from neurona_server.errors import ExpiredError, QueueFullError

TRUSTED = 5.0
"""Seconds without a run after which estimates refuse nobody: a request that is let in then
shows whether they still hold. Else a wrong one, refusing all, could never be mended."""


class Admission:
    """Foretells a request's wait from what waits, what runs and what runs cost."""

    def __init__(
        self,
        policy: BatchPolicy,
        queue: Queue,
        curve: Curve,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._queue = queue
        self._curve = curve
        self._clock = clock
        self.instances = 1
        # By instance: when the run that is under way should end.
        self._ends: dict[int, float] = {}
        self._last_run = -math.inf

    def begin(self, instance: int, seconds: float) -> None:
        self._ends[instance] = self._clock() + seconds

    def end(self, instance: int) -> None:
        self._ends.pop(instance, None)
        self._last_run = self._clock()

    def wait(self) -> float:
        """Seconds until a request that comes now would be taken; 0.0 if an instance idles."""
        waiting = 0.0
        if rows := self._queue.rows:
            batches = max(math.ceil(rows / self._queue.limit), self._queue.groups)
            waiting = batches * self._curve.predict(math.ceil(rows / batches)) / self.instances
        ends = list(self._ends.values())
        if len(ends) >= self.instances:
            waiting += max(0.0, min(ends) - self._clock())
        return waiting

    def check(self, request: Request) -> None:
        """Raises QueueFullError when too much waits before it, and ExpiredError when it would
        come too late even if nothing did. Both say what was foretold."""
        objective = self._policy.latency_objective
        if request.deadline == math.inf and objective is None:
            return
        now = self._clock()
        if request.deadline <= now:
            raise ExpiredError("the deadline had passed when the request came")
        run = self._curve.predict(request.rows, request.group, request.nbytes // request.rows)
        wait = self.wait()
        if not run or (not wait and now - self._last_run > TRUSTED):
            return
        left = request.deadline - now
        if run > left:
            raise ExpiredError(f"the request would take {_ms(run)}, its deadline is in {_ms(left)}")
        # An objective that a run by itself cannot meet must not close the door for good.
        allowed = left if objective is None else min(left, max(objective, 2 * run))
        if wait and wait + run > allowed:
            raise QueueFullError(
                f"the request would wait {_ms(wait)} and take {_ms(run)}; "
                f"expected an answer within {_ms(allowed)}",
                retry_after=wait + run - allowed,
            )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
