"""Takes batches from a queue, runs them and answers every request in them."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

from neurona_server.batching.admission import Admission
from neurona_server.batching.batch import Batch, Run, RunningBatch, join, split, split_request
from neurona_server.batching.cost_model import CostModel, Padding
from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Queue
from neurona_server.batching.request import Outputs, Request
from neurona_server.errors import (
    DeadlineExceededError,
    ModelFailedError,
    NeuronaError,
    QueueFullError,
)
from neurona_server.telemetry.failure_log import RateLimitedFailureLog
from neurona_server.telemetry.metrics import ModelMetrics
from neurona_server.telemetry.trace import BatchTracer, RunTimes

log = logging.getLogger(__name__)

ROUNDS = 200


@cache
def hand_off_seconds() -> float:
    """Seconds from waking a thread until it works, on this machine: measured once."""
    go, gone = threading.Semaphore(0), threading.Semaphore(0)

    def answer() -> None:
        for _ in range(ROUNDS):
            go.acquire()
            gone.release()

    thread = threading.Thread(target=answer, name="hand-off", daemon=True)
    thread.start()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        go.release()
        gone.acquire()
        rounds.append(time.perf_counter() - started)
    thread.join()
    return median(rounds) / 2


HAND_OFFS = 10
"""The way of a request to an instance's thread and of its answer back to the transport, in plain
hand-offs: two threads are woken, and each waits for the interpreter's lock."""

LONGEST_INLINE = 0.005
"""Seconds: the transport reads nothing while it runs batches."""


class Inline:
    """Of one model."""

    def __init__(
        self, policy: BatchPolicy, queue: Queue, cost_model: CostModel, clock: Callable[[], float]
    ) -> None:
        self.on = False
        """Whether the transport runs what it reads; `tune` decides."""
        self._policy = policy
        self._queue = queue
        self._curve = cost_model
        self._clock = clock
        self._recent_seconds = 0.0
        self._threads: set[int] = set()  # idents of those in `serve`

    def ran(self, seconds: float) -> None:
        """A batch took so long, wherever it ran."""
        self._recent_seconds += 0.2 * (seconds - self._recent_seconds)

    def tune(self) -> None:
        # The transport does not come back for a batch that is to fill first.
        self.on = not self._policy.max_delay and (
            self._is_short() if self._policy.inline is None else self._policy.inline
        )

    def serve(self, process: Callable[[Batch], None]) -> bool:
        """Runs what waits in the caller's thread, for no longer than a transport may read nothing.

        Whether something is left, for which it is to call again when it has read what there is.
        Batches that take long are left to instances.
        """
        thread = threading.get_ident()
        self._threads.add(thread)  # before it takes anything, so that `wait_until_idle` sees it
        try:
            end = self._clock() + LONGEST_INLINE
            while self._next_seconds() < LONGEST_INLINE:
                if (cut := self._queue.take_batch()) is None:
                    return False
                process(cut)
                if self._clock() >= end:
                    return bool(self._queue.rows)
        finally:
            self._threads.discard(thread)
        self._queue.wake()
        return False

    def wait_until_idle(self, end: float) -> bool:
        """False when a thread is still in `serve` at `end`, by the monotonic clock."""
        while self._threads:
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True

    def _is_short(self) -> bool:
        """One row costs less than the way to a thread and back, and no batch holds the transport
        up."""
        way = HAND_OFFS * hand_off_seconds()
        return 0.0 < self._curve.predict(1) < way and self._recent_seconds < LONGEST_INLINE

    def _next_seconds(self) -> float:
        """What the next batch takes, at the most."""
        return min(self._queue.backlog_seconds(), self._curve.predict(self._queue.max_batch_rows))


NewRun = Callable[[], Run]

Deferred = Callable[[], bool | None]
Defer = Callable[[Deferred], None]
"""Has it called when a transport has read what is there, and again while it returns True."""

EXPLORE = 16
"""Full batches after which the next higher rung is tried."""


class Batcher:
    """The queue of one model and what happens to the batches cut from it.

    Each of the model's instances, of which `new_runs` have the runs, has a thread from `start`
    until the batcher is closed and drained, and waits there for work. So a batch is cut when an
    instance is idle, never before, and is as large as load allows; nothing waits while an
    instance is idle. Where runs are short, the thread that submits requests runs them itself.

    `batched` is False for a model without a batch axis: its requests run one by one and
    get its outputs whole. `share` is the device's, if other models run on it too; `tracer` is
    told of batches that have run, if requests are traced.
    """

    def __init__(
        self,
        name: str,
        policy: BatchPolicy,
        metrics: ModelMetrics,
        new_runs: Sequence[NewRun],
        *,
        batched: bool = True,
        share: DeviceScheduler | None = None,
        tracer: BatchTracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name  # of the model, for the log
        self.policy = policy
        self.cost_model = CostModel(policy.batch_sizes if batched else (1,))
        self.queue = Queue(policy, clock, self.cost_model.predict)
        self.queue.max_batch_rows = self.cost_model.batch_sizes[-1]
        self.padding = Padding(self.cost_model.batch_sizes)
        self.failure_log = RateLimitedFailureLog(name)
        self.admission = Admission(policy, self.queue, self.cost_model, clock, len(new_runs))
        self._inline = Inline(policy, self.queue, self.cost_model, clock)
        self._metrics = metrics
        self._new_runs = new_runs
        self._instances: list[threading.Thread] = []
        self._batched = batched
        self._clock = clock
        self._tracer = tracer
        self._full_batches = 0  # since a higher rung was tried
        self._cuts: set[Batch] = set()  # that are being processed
        self._stop_error: NeuronaError | None = None
        self._share = share or DeviceScheduler(1 << 30)  # by itself, a model has every turn
        self.tune()

    def tune(self) -> None:
        """Sets the rows of a batch and where it runs by what runs cost now."""
        if self.policy.latency_objective is not None:
            self.queue.max_batch_rows = self._next_limit()
        self._inline.tune()

    @property
    def inline(self) -> bool:
        """Whether the transport runs what it reads, by `serve_inline`."""
        return self._inline.on

    def _next_limit(self) -> int:
        """The best rung; now and then, while batches are full, the one above it: what it cost
        when the machine was slow, it may not cost any more."""
        best = self.cost_model.best_batch_size(self.policy.latency_objective)
        if self._full_batches >= EXPLORE:
            self._full_batches = 0
            return next(
                (batch_size for batch_size in self.cost_model.batch_sizes if batch_size > best),
                best,
            )
        return best

    @property
    def instances(self) -> int:
        """How many batches may run at once."""
        return len(self._new_runs)

    def start(self) -> None:
        """Starts a thread for each instance."""
        for number, new_run in enumerate(self._new_runs):
            # A daemon: a run that never returns must not keep the process from ending.
            thread = threading.Thread(
                target=self.serve, args=(new_run,), name=f"{self.name}#{number}", daemon=True
            )
            self._instances.append(thread)
            thread.start()

    def join(self, end: float | None = None) -> bool:
        """Waits until the queue is drained; False when it was not at `end`, by the monotonic
        clock, or when the instances never started."""
        for thread in self._instances:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
            if thread.is_alive():
                return False
        return bool(self._instances)

    def submit(self, request: Request, defer: Defer | None = None) -> None:
        """Admits a request, or refuses it at once; never waits.

        While the model runs inline, `defer` has the caller's own thread run what waits once it
        has read all that is there to read: that is the batch then. Without `defer`, and for
        models with longer runs, an instance's thread takes it.

        Raises what `Admission.check` and `Queue.put` raise.
        """
        inline = defer is not None and self._inline.on
        self.admission.check(request)
        parts = split_request(request, self.policy.max_rows) if self._batched else [request]
        if request.ended:
            return
        try:
            self.queue.put(parts, wake=not inline)
        except QueueFullError as error:
            error.retry_after = self.admission.wait(request.priority)
            raise
        if inline and defer is not None:
            defer(self.serve_inline)

    def serve(self, new_run: NewRun) -> None:
        """Runs batch after batch until the queue is closed and empty."""
        while self.queue.wait():
            with self._share.turn(self.name, self._clock):
                if (cut := self.queue.take_batch()) is not None:
                    self.process(cut, new_run)
                    del cut  # an instance may wait long for the next one

    def serve_inline(self) -> bool:
        """Runs what waits in the caller's thread: see `Inline.serve`."""
        return self._inline.serve(lambda cut: self.process(cut, self._new_runs[0]))

    def wait_until_idle(self, end: float) -> bool:
        """For a batcher that is closed, and whose instances have ended: False when a thread
        that called `serve_inline` is still inside at `end`, by the monotonic clock."""
        return self._inline.wait_until_idle(end)

    def process(self, cut: Batch, new_run: NewRun) -> None:
        """Ends every request of the cut; raises nothing, whatever the model does."""
        self._cuts.add(cut)
        try:
            for request in cut.expired:
                request.fail(DeadlineExceededError("the deadline passed while the request waited"))
            if cut.batch:
                self._metrics.record_queue_waits(cut.waits)
                if self._tracer is not None:
                    self._tracer.record_queue_times(cut.batch)
                under_way = self.admission.begin(
                    self.cost_model.predict(cut.rows, cut.batch[0].group)
                )
                self._run_or_halve(cut, cut.batch, new_run)
                self.admission.end(under_way)
        except Exception:  # a fault of ours: it must end neither the thread nor the callers' hope
            log.exception("%s: a batch could not be processed", self.name)
            self._fail(cut, ModelFailedError())
        finally:
            self._cuts.discard(cut)

    def release_device(self) -> None:
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

    def _fail(self, cut: Batch, error: NeuronaError) -> None:
        for request in [*cut.expired, *cut.batch]:
            request.fail(error)

    def _run_or_halve(self, cut: Batch, batch: Sequence[Request], new_run: NewRun) -> None:
        """A batch that fails is run again by halves, so that only the guilty fail."""
        now = self._clock()
        for request in batch:
            if self._stop_error is not None:
                request.fail(self._stop_error)
            elif request.deadline <= now:
                request.fail(DeadlineExceededError("the deadline passed while the request waited"))
        batch = [request for request in batch if not request.ended]
        if not batch:
            return
        running = None
        halves: list[Sequence[Request]] = []
        try:
            run = new_run()
            running = RunningBatch(batch, run)
            parts = self._run(batch, run)
        except Exception as error:
            if self._tracer is not None:
                self._tracer.record_failed_run(batch, now, error)
            if running is not None and running.terminated:
                self._metrics.terminated_runs.inc()
            elif not (halves := cut.halves(batch)):
                self.failure_log.record("it failed on a request", error, batch[0].log_fields)
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
        predicted = self.cost_model.predict(padded, group)
        started = self._clock()
        inputs = join(batch, padded)
        joined = self._clock()
        outputs = run(inputs)
        ended = self._clock()
        seconds = ended - started
        parts = split(outputs, batch, padded) if self._batched else [outputs]
        over = self._clock()
        if self._tracer is not None:
            self._tracer.record_run(batch, rows, padded, RunTimes(started, joined, ended, over))
        taken = (joined - started, ended - joined, over - ended)
        requests = sum([request.count for request in batch])
        self._metrics.record_run(rows, requests, padded - rows, taken, predicted)
        self.cost_model.observe(padded, seconds, group, ended)
        self._full_batches += rows >= self.queue.max_batch_rows
        self._inline.ran(seconds)
        self.tune()
        return parts
