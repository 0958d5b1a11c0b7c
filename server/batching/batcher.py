"""Takes batches from a queue, runs them and answers every request in them."""

import logging
import time
from collections.abc import Callable, Sequence

from neurona_server.batching.batch import join, split
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Cut, Queue
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.errors import ExpiredError, ModelFailedError, NeuronaError
from neurona_server.metrics import ModelMetrics

log = logging.getLogger(__name__)

Run = Callable[[Inputs], Outputs]


class Batcher:
    """The queue of one model and what happens to the batches cut from it.

    It owns no thread: each of the model's instances calls `serve` from its own, and waits
    there for work. So a batch is cut when an instance is idle, never before, and is as
    large as load allows; nothing waits while an instance is idle.

    `batched` is False for a model without a batch axis: its requests run one by one and
    get its outputs whole.
    """

    def __init__(
        self,
        name: str,
        policy: BatchPolicy,
        metrics: ModelMetrics,
        *,
        batched: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not batched:
            policy = BatchPolicy(max_rows=1, max_queue_rows=policy.max_queue_rows)
        self.name = name  # of the model, for the log
        self.policy = policy
        self.queue = Queue(policy, clock)
        self._metrics = metrics
        self._batched = batched
        self._clock = clock
        self._run_seconds = 0.0  # of a typical recent batch, for the hint to who is refused
        metrics.watch_queue(self.queue)

    def submit(self, request: Request) -> None:
        """Never waits. Raises what `Queue.put` raises."""
        waiting_runs = self.queue.rows / self.policy.max_rows
        self.queue.put(request, retry_after=waiting_runs * self._run_seconds)

    def serve(self, run: Run) -> None:
        """Runs batch after batch until the queue is closed and empty."""
        while (cut := self.queue.take()) is not None:
            self.process(cut, run)

    def process(self, cut: Cut, run: Run) -> None:
        """Ends every request of the cut; raises nothing, whatever the model does."""
        for request in cut.expired:
            request.fail(ExpiredError("the deadline passed while the request waited"))
        if cut.batch:
            try:
                self._run(cut.batch, run)
            except Exception:
                log.exception("%s failed on a batch of %d requests", self.name, len(cut.batch))
                _fail(cut.batch, ModelFailedError())

    def close(self) -> None:
        """Takes no more; what was admitted is still served."""
        self.queue.close()

    def cancel_waiting(self, error: NeuronaError) -> int:
        """Ends all that still wait with `error`; how many there were."""
        return _fail(self.queue.clear(), error)

    def _run(self, batch: Sequence[Request], run: Run) -> None:
        started = self._clock()
        outputs = run(join(batch))
        seconds = self._clock() - started
        self._run_seconds += 0.2 * (seconds - self._run_seconds)
        rows = sum(request.rows for request in batch)
        self._metrics.ran(rows, seconds, [request.taken - request.arrived for request in batch])
        parts = split(outputs, batch) if self._batched else [outputs]
        for request, part in zip(batch, parts, strict=True):
            try:
                request.succeed(part)
            except Exception:  # one answer that cannot be encoded or sent must not lose the others
                log.exception("%s: an answer could not be delivered", self.name)


def _fail(requests: Sequence[Request], error: NeuronaError) -> int:
    return sum([request.fail(error) for request in requests])
