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


MOST_STRETCH = 4.0
"""What one batch that the machine held up may at most say about the next."""


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
        # By instance: when the batch that is under way began, and should be answered.
        self._begun: dict[int, tuple[float, float]] = {}
        self._last = -math.inf
        # A batch takes longer than its run: it is joined, answered, and others want the CPU too.
        self._stretch = 1.0

    def begin(self, instance: int, seconds: float) -> None:
        """An instance begins a batch of which the run was foretold to take `seconds`."""
        self._begun[instance] = (self._clock(), seconds)

    def end(self, instance: int) -> None:
        """The batch is answered."""
        began, foretold = self._begun.pop(instance)
        self._last = self._clock()
        if foretold:
            stretch = min((self._last - began) / foretold, MOST_STRETCH)
            self._stretch = max(1.0, self._stretch + 0.1 * (stretch - self._stretch))

    def wait(self) -> float:
        """Seconds until a request that comes now would be taken; 0.0 if an instance idles."""
        waiting = self._queue.backlog_seconds() * self._stretch / self.instances
        ends = [began + foretold * self._stretch for began, foretold in [*self._begun.values()]]
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
        alone = run = self._curve.predict(request.rows, request.group, request.row_bytes)
        wait = self.wait()
        if wait:  # others will come and share its run
            rows = max(request.rows, self._queue.limit)
            run = self._curve.predict(rows, request.group, request.row_bytes)
        if not run or (not wait and now - self._last > TRUSTED):
            return
        left = request.deadline - now
        if alone > left:
            raise ExpiredError(
                f"the request would take {_ms(alone)}, its deadline is in {_ms(left)}"
            )
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
