"""Takes batches from a queue, runs them and answers every request in them."""

import logging
import time
from collections.abc import Callable, Sequence

from neurona_server.batching.admission import Admission
from neurona_server.batching.batch import join, split
from neurona_server.batching.curve import Curve
from neurona_server.batching.cut import Cut
from neurona_server.batching.failures import Failures
from neurona_server.batching.inline import Inline
from neurona_server.batching.padding import Padding
from neurona_server.batching.parts import split_request
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Outputs, Request
from neurona_server.batching.running import Run, Running
from neurona_server.batching.share import DeviceShare
from neurona_server.batching.trace import BatchTracer, RunTimes
from neurona_server.errors import ExpiredError, ModelFailedError, NeuronaError, QueueFullError
from neurona_server.metrics import ModelMetrics

log = logging.getLogger(__name__)

NewRun = Callable[[], Run]

EXPLORE = 16
"""Full batches after which the next higher rung is tried."""


class Batcher:
    """The queue of one model and what happens to the batches cut from it.

    It owns no thread: each of the model's instances calls `serve` from its own, and waits
    there for work. So a batch is cut when an instance is idle, never before, and is as
    large as load allows; nothing waits while an instance is idle.

    `batched` is False for a model without a batch axis: its requests run one by one and
    get its outputs whole. `share` is the device's, if other models run on it too; `tracer` is
    told of batches that have run, if requests are traced.
    """

    def __init__(
        self,
        name: str,
        policy: BatchPolicy,
        metrics: ModelMetrics,
        *,
        batched: bool = True,
        share: DeviceShare | None = None,
        tracer: BatchTracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name  # of the model, for the log
        self.policy = policy
        self.curve = Curve(policy.rungs if batched else (1,))
        self.queue = Queue(policy, clock, self.curve.predict)
        self.queue.limit = self.curve.rungs[-1]
        self.padding = Padding(self.curve.rungs)
        self.failures = Failures(name)
        self.admission = Admission(policy, self.queue, self.curve, clock)
        self._door = Inline(policy, self.queue, self.curve, clock)
        self._metrics = metrics
        self._batched = batched
        self._clock = clock
        self._tracer = tracer
        self._full_batches = 0  # since a higher rung was tried
        self._cuts: set[Cut] = set()  # that are being processed
        self._stop_error: NeuronaError | None = None
        self._share = share or DeviceShare(1 << 30)  # by itself, a model has every turn
        self.tune()

    def tune(self) -> None:
        """Sets the rows of a batch and where it runs by what runs cost now."""
        if self.policy.latency_objective is not None:
            self.queue.limit = self._next_limit()
        self._door.tune()

    @property
    def inline(self) -> bool:
        """Whether the door runs what it reads, by `serve_waiting`."""
        return self._door.on

    def _next_limit(self) -> int:
        """The best rung; now and then, while batches are full, the one above it: what it cost
        when the machine was slow, it may not cost any more."""
        best = self.curve.best_rung(self.policy.latency_objective)
        if self._full_batches >= EXPLORE:
            self._full_batches = 0
            return next((rung for rung in self.curve.rungs if rung > best), best)
        return best

    def submit(self, request: Request, *, wake: bool = True) -> None:
        """Admits a request, or refuses it at once; never waits.

        Raises what `Admission.check` and `Queue.put` raise.
        """
        self.admission.check(request)
        parts = split_request(request, self.policy.max_rows) if self._batched else [request]
        if request.ended:
            return
        try:
            self.queue.put(parts, wake=wake)
        except QueueFullError as error:
            error.retry_after = self.admission.wait(request.priority)
            raise

    def serve(self, new_run: NewRun) -> None:
        """Runs batch after batch until the queue is closed and empty."""
        while self.queue.wait():
            with self._share.turn(self.name, self._clock):
                if (cut := self.queue.poll()) is not None:
                    self.process(cut, new_run)
                    del cut  # an instance may wait long for the next one

    def serve_waiting(self, new_run: NewRun) -> bool:
        """Runs what waits in the caller's thread: see `Inline.serve`."""
        return self._door.serve(lambda cut: self.process(cut, new_run))

    def wait_until_idle(self, end: float) -> bool:
        """For a batcher that is closed, and whose instances have ended: False when a thread
        that called `serve_waiting` is still inside at `end`, by the monotonic clock."""
        return self._door.wait_until_idle(end)

    def process(self, cut: Cut, new_run: NewRun) -> None:
        """Ends every request of the cut; raises nothing, whatever the model does."""
        self._cuts.add(cut)
        try:
            for request in cut.expired:
                request.fail(ExpiredError("the deadline passed while the request waited"))
            if cut.batch:
                self._metrics.waited(cut.waits)
                if self._tracer is not None:
                    self._tracer.cut(cut.batch)
                under_way = self.admission.begin(self.curve.predict(cut.rows, cut.batch[0].group))
                self._run_or_halve(cut, cut.batch, new_run)
                self.admission.end(under_way)
        except Exception:  # a fault of ours: it must end neither the thread nor the callers' hope
            log.exception("%s: a batch could not be processed", self.name)
            self._fail(cut, ModelFailedError())
        finally:
            self._cuts.discard(cut)

    def forget(self) -> None:
        """It has run for the last time."""
        self._share.forget(self.name)

    def close(self) -> None:
        """Takes no more; what was admitted is still served."""
        self.queue.close()

    def cancel_all(self, error: NeuronaError) -> int:
        """Ends all that still wait or run with `error`; how many there were."""
        self._stop_error = error  # for what is on its way from the queue into a run
        waiting = self.queue.clear()
        cut = [request for cut in list(self._cuts) for request in cut.batch]
        open_ones = [request for request in [*waiting, *cut] if not request.ended]
        for request in open_ones:
            request.cancel(error)
        return sum([request.count for request in open_ones])

    def _fail(self, cut: Cut, error: NeuronaError) -> None:
        for request in [*cut.expired, *cut.batch]:
            request.fail(error)

    def _run_or_halve(self, cut: Cut, batch: Sequence[Request], new_run: NewRun) -> None:
        """A batch that fails is run again by halves, so that only the guilty fail."""
        now = self._clock()
        for request in batch:
            if self._stop_error is not None:
                request.fail(self._stop_error)
            elif request.deadline <= now:
                request.fail(ExpiredError("the deadline passed while the request waited"))
        batch = [request for request in batch if not request.ended]
        if not batch:
            return
        running = None
        halves: list[Sequence[Request]] = []
        try:
            run = new_run()
            running = Running(batch, run)
            parts = self._run(batch, run)
        except Exception as error:
            if self._tracer is not None:
                self._tracer.failed(batch, now, error)
            if running is not None and running.terminated:
                self._metrics.terminated.inc()
            elif not (halves := cut.halves(batch)):
                self.failures.tell("it failed on a request", error, batch[0].log_fields)
                batch[0].fail(ModelFailedError())
        else:
            for request, part in zip(batch, parts, strict=True):
                request.succeed(part)
        for half in halves:
            self._run_or_halve(cut, half, new_run)

    def _run(self, batch: Sequence[Request], run: Run) -> Sequence[Outputs]:
        """Each request's outputs. Raises what the model raises, and BatchError."""
        rows = sum([request.rows for request in batch])
        padded = self.padding.rows(rows) if self._batched else rows
        group = batch[0].group
        predicted = self.curve.predict(padded, group)
        started = self._clock()
        inputs = join(batch, padded)
        joined = self._clock()
        outputs = run(inputs)
        ended = self._clock()
        seconds = ended - started
        parts = split(outputs, batch, padded) if self._batched else [outputs]
        over = self._clock()
        if self._tracer is not None:
            self._tracer.ran(batch, rows, padded, RunTimes(started, joined, ended, over))
        taken = (joined - started, ended - joined, over - ended)
        requests = sum([request.count for request in batch])
        self._metrics.ran(rows, requests, padded - rows, taken, predicted)
        self.curve.observe(padded, seconds, group, ended)
        self._full_batches += rows >= self.queue.limit
        self._door.ran(seconds)
        self.tune()
        return parts
