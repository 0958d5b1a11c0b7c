"""Rejects requests that would miss their deadline before they are queued."""

import math
from collections.abc import Callable

from neurona_server.batching.cost_model import CostModel
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Request
from neurona_server.errors import DeadlineExceededError, QueueFullError

MAX_STRETCH = 4.0
"""Upper bound of the ratio of actual to predicted seconds that is learned from one batch: a single
slow batch says little about the next one."""


class RunningEstimate:
    """When a running batch started, and the predicted seconds of its run."""

    __slots__ = ("predicted_seconds", "started")

    def __init__(self, started: float, predicted_seconds: float) -> None:
        self.started = started
        self.predicted_seconds = predicted_seconds


class Admission:
    """Predicts queueing delay from the backlog, the running batches and the cost model."""

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
        self._cost_model = cost_model
        self._clock = clock
        self.instances = instances
        self._running: set[RunningEstimate] = set()
        # A batch takes longer than its run: inputs are joined, responses written, CPUs shared.
        self._stretch = 1.0

    def check(self, request: Request) -> None:
        """Reject a request that would miss its deadline.

        Raises:
            DeadlineExceededError: The deadline has passed, or is shorter than the run alone.
            QueueFullError: The predicted wait exceeds the deadline or the latency objective.
        """
        objective = self._policy.latency_objective
        if request.deadline == math.inf and objective is None:
            return
        now = self._clock()
        if request.deadline <= now:
            raise DeadlineExceededError("deadline already exceeded on arrival")
        if not self._cost_model.is_reliable(request.group, now):
            return
        limit = self._queue.max_batch_rows
        alone = self._cost_model.predict(request.rows, request.group)
        remaining = request.deadline - now
        if alone > remaining:
            raise DeadlineExceededError(
                f"deadline too short: {_ms(remaining)} remain "
                f"(expected at least the predicted run time of {_ms(alone)})"
            )
        wait = self.predict_wait(request.priority)
        if not wait:
            return
        # The last waiting batch of its group has room for it, and the request shares that run
        # instead of waiting for it. The run is as long as the waiting rows make it or, if more
        # arrive, as long as that of a full batch.
        shared = self._queue.group_rows(request.group) % limit
        if shared:
            run = self._cost_model.predict(shared, request.group) * self._stretch / self.instances
            wait = max(0.0, wait - run)
        run = self._cost_model.predict(min(shared + request.rows, limit), request.group)
        if wait + run > remaining:
            raise _wait_too_long(wait, run, remaining)
        full = self._cost_model.predict(max(request.rows, limit), request.group)
        # An objective that cannot be met must not reject all requests for good.
        if objective is not None and wait + full > max(objective, 2 * full):
            raise _wait_too_long(wait, full, max(objective, 2 * full))

    def predict_wait(self, priority: Priority = Priority.LOW) -> float:
        """Return the predicted seconds in the queue of a request that is submitted now.

        They are 0.0 if an instance is idle.
        """
        wait = self._queue.backlog_seconds(priority) * self._stretch / self.instances
        ends = [
            batch.started + batch.predicted_seconds * self._stretch for batch in list(self._running)
        ]
        if len(ends) >= self.instances:
            wait += max(0.0, min(ends) - self._clock())
        return wait

    def start_batch(self, predicted_seconds: float) -> RunningEstimate:
        """Record that a batch starts whose run is predicted to take `predicted_seconds`."""
        batch = RunningEstimate(self._clock(), predicted_seconds)
        self._running.add(batch)
        return batch

    def finish_batch(self, batch: RunningEstimate) -> None:
        """Record that all requests of the batch are finished."""
        self._running.discard(batch)
        if batch.predicted_seconds:
            actual = self._clock() - batch.started
            stretch = min(actual / batch.predicted_seconds, MAX_STRETCH)
            self._stretch = max(1.0, self._stretch + 0.1 * (stretch - self._stretch))


def _wait_too_long(wait: float, run: float, allowed: float) -> QueueFullError:
    return QueueFullError(
        f"predicted wait too long: {_ms(wait)} in the queue and {_ms(run)} to run "
        f"(expected at most {_ms(allowed)} in total)",
        retry_after=wait + run - allowed,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
