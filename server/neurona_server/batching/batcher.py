"""Takes batches from a model's queue, runs them and finishes every request in them.

Batches run in the threads of the model's instances, or inline: in the transport's own thread,
where runs are shorter than handing requests over to another thread. It is one file since all that
may happen to a batch, from the queue to the last response, is in order here.
"""

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Protocol, cast

from neurona_server.batching.admission import Admission
from neurona_server.batching.batch import (
    Batch,
    DeviceFailures,
    EqualShapeJoiner,
    RequestSlots,
    RowJoiner,
    RowSlice,
    Run,
    RunningBatch,
    split_request,
)
from neurona_server.batching.batch_size_choice import BatchSizeChoice
from neurona_server.batching.cost_distribution import CostDistribution
from neurona_server.batching.cost_model import CostModel, Padding
from neurona_server.batching.device_scheduler import (
    CPU,
    DeviceScheduler,
    DeviceTurn,
    ModelRuns,
    NewCondition,
)
from neurona_server.batching.inline import InlineRunner
from neurona_server.batching.inline_scheduler import MAX_INLINE_SECONDS
from neurona_server.batching.memory_limit import MemoryLimit
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.queue import Queue
from neurona_server.batching.ranking import DeviceRanking, RankingRun
from neurona_server.batching.request import Inputs, Outputs, Request, ResponseOrder
from neurona_server.batching.watchdog import RunWatchdog
from neurona_server.errors import (
    DeadlineExceededError,
    DeviceLostError,
    DeviceMemoryError,
    InvalidArgumentError,
    InvalidValueError,
    ModelFailedError,
    NeuronaError,
    QueueFullError,
    RunTooLongError,
)
from neurona_server.telemetry.failure_log import RateLimitedFailureLog
from neurona_server.telemetry.metrics import ModelMetrics
from neurona_server.telemetry.trace import BatchTracer, RunTimes

log = logging.getLogger(__name__)

NewRun = Callable[[], Run]
"""Makes a run of an instance of the model."""

Deferred = Callable[[], bool | None]
Defer = Callable[[Deferred], None]
"""Has the transport's thread call a function once it has read all available messages, and again
while the function returns True."""

FULL_BATCHES_TO_EXPLORE = 16
"""Full batches after which the next larger batch size is tried."""

EXPIRED_IN_QUEUE = (
    "Request timeout expired: deadline exceeded while the request waited in the queue"
)
DROPPED_BEFORE_RUN = (
    "request dropped before its run: it can no longer be answered within its deadline or the "
    "latency objective"
)
DISPLACED_FROM_QUEUE = "queue full: the request was displaced by a more urgent one"
EXPIRED_IN_RUN = "deadline exceeded while the model ran"

LONG_RUN_RATIO = 10.0
"""A run no longer counts for the device's slots once it has taken this many times its prediction
..."""

LONG_RUN_SECONDS = 0.05
"""... and at least this long: shorter runs keep nobody waiting, and a prediction may be of another
group."""

OVERDUE_SECONDS = 1.0
"""Such a run is reported as overdue once it has taken at least this long."""

SUSPECT_SECONDS = 10.0
"""The driver is asked about a device on which such a run has gone on for this long."""

ABANDON_SECONDS = 1.0
"""Time for a run to return once its device is lost. Then its thread is abandoned."""

JOIN_SECONDS = 0.5
"""Interval in which a thread that is waited for may turn out to be abandoned."""

OVERDUE_LOG_SECONDS = 60.0
"""Between two lines about overdue runs of a model."""


class AnswerCheck(Protocol):
    """Checks that outputs are an answer, such as finite numbers."""

    def accepts(self, outputs: Outputs) -> bool:
        """Return whether the outputs of one or several requests are."""

    def check(self, outputs: Outputs, first_row: int) -> None:
        """Raise InvalidValueError with the number of a row that is not."""


class Batcher:
    """The queue of one model, and the runs of the batches taken from it.

    `new_runs` has, for each run that the model can have at once, the label of its device and what
    makes the run. There are as many threads from `start` until the batcher is closed and drained.
    So a batch is formed when a run can begin, never before, and is as large as load allows; no
    request waits while a device that the model is loaded on is idle.

    `batched` is False for a model without a batch axis: its requests run one by one and each gets
    all of the outputs. `scheduler` is that of all devices, if other models run on them too;
    `tracer` records the batches of traced requests, `watchdog` the process's thread that finds runs
    which take too long; `new_cost_model` makes the cost model for the batch sizes, `new_condition`
    what threads wait in.
    """

    def __init__(
        self,
        name: str,
        policy: BatchPolicy,
        metrics: ModelMetrics,
        new_runs: Sequence[tuple[str, NewRun]],
        *,
        batched: bool = True,
        scheduler: DeviceScheduler | None = None,
        tracer: BatchTracer | None = None,
        watchdog: RunWatchdog | None = None,
        clock: Callable[[], float] = time.monotonic,
        new_cost_model: Callable[[Sequence[int]], CostModel] = CostModel,
        new_condition: NewCondition = threading.Condition,
    ) -> None:
        self.name = name  # of the model, for the log
        self.policy = policy
        self.cost_model = new_cost_model(policy.batch_sizes if batched else (1,))
        self.cost_distribution = CostDistribution(self.cost_model)
        self.queue = Queue(policy, clock, self.cost_distribution.usual_cycle, new_condition)
        self.queue.max_batch_rows = self.cost_model.batch_sizes[-1]
        self.padding = Padding(self.cost_model.batch_sizes)
        self.size_choice = BatchSizeChoice(
            # The queue asks it: a reference back would keep both until a garbage collection.
            *(self.cost_model, self.padding.padded_rows, weakref.proxy(self.queue)),
            *(clock, len(new_runs)),
        )
        # With an objective the largest batch that keeps it gives the highest rate within it.
        if batched and policy.latency_objective is None:
            self.queue.choose_rows = self.size_choice.choose
        self.failure_log = RateLimitedFailureLog(name)
        self._runs = ModelRuns(name, new_runs)
        self.admission = Admission(
            policy,
            self.queue,
            self.cost_model,
            self.cost_distribution,
            clock,
            len(new_runs),
            # A reference back would keep the batcher until a garbage collection.
            None if scheduler is None else partial(Batcher.predict_turn, weakref.proxy(self)),
        )
        self.check_inputs: Callable[[Inputs, int], None] | None = None
        """Raises InvalidValueError for inputs with values that the model does not take; it gets
        the number of their first row, too."""
        self.joiner: RowJoiner = EqualShapeJoiner()
        """How the requests of a batch share a run."""
        self.joins_in_place = False
        """Whether inputs are joined in the memory of runs that have some: see `ReserveInputs`."""
        self.answer_bounds: AnswerCheck | None = None
        """Checks that outputs are an answer."""
        self.ranking: DeviceRanking | None = None
        """When a device ranks the classes of the answer."""
        self.free_memory: Callable[[], object] = lambda: None
        """Returns what arenas hold without need, after a run has found too little memory."""
        self._watchdog = watchdog or RunWatchdog()
        self._inline = InlineRunner(
            name, policy, self.queue, self.cost_model, self._watchdog, clock
        )
        self._metrics = metrics
        self._runs.objective = policy.latency_objective
        # The transport's thread shares the run of an instance on the CPU; see `serve_inline`.
        self._shared_run = new_runs[0][1] if new_runs[0][0] == CPU else None
        if self._shared_run is None:
            self._runs.on_end = metrics.record_device_use
        self._threads: list[threading.Thread] = []
        self._new_slots: Callable[[], RequestSlots] | None = None
        self._slots: list[RequestSlots] = []  # of the threads
        self.admission.slots = self._slots
        self._batched = batched
        self._clock = clock
        self._tracer = tracer
        self._full_batches = 0  # since a larger batch size was tried
        self._max_request_rows = policy.max_rows  # of a request that is not split
        self._memory_limit: MemoryLimit | None = None  # once a run has found too little memory
        self._max_run_seconds = math.inf  # because of the objectives of other models
        self._active_batches, self._overdue_batches = set[Batch](), set[Batch]()
        self._overdue_logged_at = -math.inf
        self._stop_error: NeuronaError | None = None
        self._response_order = ResponseOrder() if policy.preserve_order else None
        # A model that has its devices for itself never waits for a slot.
        self._scheduler = scheduler or DeviceScheduler(1 << 30)
        self.tune()

    @property
    def instances(self) -> int:
        """The number of batches that may run at once."""
        return self._runs.total

    @property
    def devices(self) -> Sequence[str]:
        """The labels of the devices that the model is loaded on."""
        return self._runs.devices

    @property
    def inline(self) -> bool:
        """Whether the transport's thread runs the requests that it submits."""
        return self._inline.enabled

    @property
    def stalls(self) -> Sequence[tuple[float, float]]:
        """The least seconds of stalls of the process, and how many there are in a second."""
        return self._watchdog.stalls.rates()

    @property
    def overdue_runs(self) -> int:
        """The number of runs that take much longer than predicted."""
        return len(self._overdue_batches)

    def use_slots(self, new_slots: Callable[[], RequestSlots]) -> None:
        """Have requests join and leave between runs, in slots that each thread makes.

        The transport's thread then runs the model only if the policy says so: whole runs there
        would make short requests wait for long ones. Called before `start`.
        """
        self._new_slots = new_slots
        self.queue.choose_rows = None  # requests that join a run do not lengthen it
        self._inline.is_allowed = False
        self._inline.update()

    def start(self) -> None:
        """Start a thread for each run that may go on at once."""
        for _ in range(self.instances):
            self._start_instance()
        self._watchdog.add(self)

    def submit(self, request: Request, defer: Defer | None = None) -> None:
        """Admit a request, or reject it immediately; never blocks.

        While the model runs inline, the request runs in the caller's thread by means of `defer`:
        all that the thread has read by then is the batch. Otherwise, or without `defer`, an
        instance's thread takes it from the queue.

        Raises:
            NeuronaError: What `Admission.check` and `Queue.put` raise.
        """
        inline = defer is not None and self._inline.enabled
        displace = self.admission.check(request)
        policies = self.policy.queue_policies
        if policies is not None and request.queue_timeout is None:
            request.queue_timeout = policies.level_timeout(request.priority)
        parts = split_request(request, self._max_request_rows) if self._batched else [request]
        if request.finished:
            return
        try:
            if (order := self._response_order) is None:
                displaced = self.queue.put(parts, notify=not inline, displace=displace)
            else:
                with order.admit(request):
                    displaced = self.queue.put(parts, notify=not inline, displace=displace)
        except QueueFullError as error:
            error.retry_after = self.admission.retry_after(request)
            raise
        if displaced:
            self._fail_displaced(displaced)
        if inline and defer is not None:
            turns = self._scheduler.inline.in_this_thread(self._clock)
            defer(turns.request(self._runs, self.serve_inline))

    def serve(self) -> None:
        """Run batch after batch, on whichever device is free, until the queue is closed and empty.

        As many threads do this as the model can have runs, so each thread finds an idle one.
        """
        if self._new_slots is not None:
            self._serve_slots(self._new_slots())
            return
        while self.queue.wait():
            try:
                turn: DeviceTurn | None = self._scheduler.turn(self._runs, self._clock)
                while turn is not None:
                    with turn:
                        if (batch := self._take_batch(turn)) is None:
                            break
                        self.process(batch, turn.new_run)
                        if batch.abandoned:  # another thread has taken the place of this one
                            return
                        del batch  # otherwise it would be kept until the next batch
                        turn = self._following_turn(turn)
            except DeviceLostError as error:  # all of its devices
                self._fail_waiting(error)

    def _take_batch(self, turn: DeviceTurn) -> Batch | None:
        """Take a batch for a turn; None if another thread has taken what was ready."""
        self._limit_runs(turn.max_seconds)
        batch = self.queue.take_batch()
        if batch is not None:
            self._add_to_turn(batch, turn)
        return batch

    def _add_to_turn(self, batch: Batch, turn: DeviceTurn) -> None:
        batch.turn = turn
        turn.batches += 1
        if turn.device != CPU:
            batch.thread = threading.current_thread()

    def _following_turn(self, turn: DeviceTurn) -> DeviceTurn | None:
        """End a turn and return the next one, None if nothing waits for it."""
        return self._scheduler.turn_after(turn, self._clock) if self.queue.rows else None

    def _serve_slots(self, slots: RequestSlots) -> None:
        """Do as `serve` does, with requests that join and leave between runs."""
        self._slots.append(slots)
        while slots.requests or self.queue.wait():
            try:
                turn: DeviceTurn | None = self._scheduler.turn(self._runs, self._clock)
                while turn is not None:
                    with turn:
                        self._limit_runs(turn.max_seconds)
                        if not self._run_slots(slots, turn):
                            return
                        if not slots.requests:
                            break
                        turn = self._scheduler.turn_after(turn, self._clock)
            except DeviceLostError as error:  # all of its devices
                self._fail_waiting(error)
                slots = self._replace_slots(slots, error)
            except Exception:  # a bug, or no memory: the thread must keep running
                log.exception("%s: the requests of an instance could not run", self.name)
                slots = self._replace_slots(slots, ModelFailedError())
        self._slots.remove(slots)

    def _replace_slots(self, slots: RequestSlots, error: NeuronaError) -> RequestSlots:
        """Fail all requests in the slots of a thread, and return empty ones for it."""
        requests = slots.requests
        assert self._new_slots is not None  # noqa: S101  for the type checker
        self._slots[self._slots.index(slots)] = new_slots = self._new_slots()
        for request in requests:
            request.fail(error)
        return new_slots

    def _run_slots(self, slots: RequestSlots, turn: DeviceTurn) -> bool:
        """Run the slots once; return False if this thread was abandoned in the run."""
        for batch in self._fill_slots(slots):
            batch.instance_slots = slots
            self._add_to_turn(batch, turn)
            self.process(batch, turn.new_run)
            if batch.abandoned:
                return False
        return True

    def _fill_slots(self, slots: RequestSlots) -> Iterator[Batch]:
        """Move waiting requests into free slots, and yield the batches of one turn.

        Those are one that has no place in the slots, if there is one, and the run of the slots.
        """
        while (room := self._room(slots)) > 0 and (
            batch := self.queue.take_batch(max_rows=room)
        ) is not None:
            if batch.is_rerun or not batch.requests or not self._move_into(slots, batch):
                yield batch
                break
        requests = slots.next_requests(self.queue.max_batch_rows)
        if requests:
            batch = Batch(requests, is_rerun=True, slots=slots)
            if len(requests) < len(slots.requests):
                self._unfinished(batch, slots.requests, self._clock())
            yield batch

    def _room(self, slots: RequestSlots) -> int:
        """Return the rows that may join: no more than a run has while another instance is idle."""
        room = slots.room
        if any(not one.rows for one in self._slots if one is not slots):
            room = min(room, self.queue.max_batch_rows - slots.rows)
        return room

    def _move_into(self, slots: RequestSlots, batch: Batch) -> bool:
        """Move the requests of a batch into slots; return False if they must run by themselves."""
        try:
            if not slots.add(batch.requests):
                return False
            for request in batch.expired:
                request.fail(DeadlineExceededError(EXPIRED_IN_QUEUE))
            self._record_wait(batch)
        except Exception:  # a bug, or no memory: the thread must keep running
            log.exception("%s: requests could not join a run", self.name)
            for request in [*batch.expired, *batch.requests]:
                request.fail(ModelFailedError())
        return True

    def _record_wait(self, batch: Batch) -> None:
        """Record what requests have waited that have just left the queue."""
        self._metrics.record_queue_waits(batch.queue_seconds)
        if self._tracer is not None:
            self._tracer.record_queue_times(batch.requests)

    def runs_in_this_thread(self) -> bool:
        """Return whether the calling thread is a transport's that runs the model inline now."""
        return self._inline.runs_in_this_thread()

    def serve_inline(self, end: float | None = None, max_seconds: float = math.inf) -> bool:
        """Run waiting requests in the calling thread: see `InlineRunner.run_batches`.

        It does so until `end`, by default for MAX_INLINE_SECONDS; no run takes `max_seconds`.

        On the CPU beside the runs of the instances. A run on another device has buffers that only
        one batch can use, so it needs a turn there, as in `serve`; without one the instances run
        the requests.
        """
        if end is None:
            end = self._clock() + MAX_INLINE_SECONDS
        self._limit_runs(max_seconds)
        if (shared_run := self._shared_run) is not None:
            return self._inline.run_batches(lambda batch: self.process(batch, shared_run), end)
        try:
            turn = self._scheduler.try_turn(self._runs, self._clock)
        except DeviceLostError as error:
            self._fail_waiting(error)
            return False
        if turn is None:
            self.queue.notify()
            return False

        def process(batch: Batch) -> None:
            turn.batches += 1
            self.process(batch, turn.new_run)

        with turn:
            return self._inline.run_batches(process, end)

    def predict_turn(self, now: float, turns: int = 1) -> float:
        """Return the predicted seconds by which turns of other models delay the next batches.

        See `DeviceScheduler.predict_turn`.
        """
        if self._inline.enabled and self._shared_run is not None:
            inline = self._scheduler.inline.in_this_thread(self._clock)
            return inline.predict_turn(self._runs, now, turns)
        return self._scheduler.predict_turn(self._runs, now, turns)

    def process(self, batch: Batch, new_run: NewRun) -> None:
        """Finish every request of the batch; raise nothing, whatever the model does."""
        self._active_batches.add(batch)
        if self._watchdog.asleep:
            self._watchdog.wake()
        try:
            for request in batch.expired:
                request.fail(DeadlineExceededError(EXPIRED_IN_QUEUE))
            if batch.requests:
                group = (batch.slots or self.joiner).group(batch.requests)
                if not batch.is_rerun:
                    self._record_wait(batch)
                    if self.admission.is_learning:
                        self._drop_late(batch, group)
            if batch.requests:
                self._process_requests(batch, group, new_run)
            elif batch.expired and self.admission.is_learning:
                self._observe_answers(batch.expired, ())
        except Exception:  # a bug: the thread must keep running, and every caller gets a response
            log.exception("%s: a batch could not be processed", self.name)
            for request in [*batch.expired, *batch.requests]:
                request.fail(ModelFailedError())
        finally:
            try:
                self._active_batches.remove(batch)
            except KeyError:  # the watchdog has removed it just before: see `_leave_lost_device`
                batch.abandoned = True
            self._overdue_batches.discard(batch)

    def _process_requests(self, batch: Batch, group: Hashable, new_run: NewRun) -> None:
        """Run the requests of a batch, and observe what that takes and whether they are in time."""
        rows = batch.rows
        batch.predicted_seconds = self.cost_model.predict(rows, group)
        could_start = 0.0
        if batch.turn is not None:
            could_start = batch.turn.started
            batch.turn.expect(batch.predicted_seconds)
        estimate = self.admission.start_batch(rows, batch.level_rows, group, could_start)
        batch.estimate = estimate
        requests = [*batch.requests] if self.admission.is_learning else ()
        try:
            self._run_or_halve(batch, batch.requests, new_run)
        finally:  # or it would count as running for ever, and requests be rejected for it
            if not batch.abandoned:
                self.admission.finish_batch(estimate)
                if self.queue.choose_rows is not None:
                    queued_at = batch.requests[0].queued_at
                    self.size_choice.observe_batch(queued_at, estimate.started, self._clock())
        if requests and batch.slots is None and not batch.interrupted:
            self._observe_answers(batch.expired, requests)

    def _drop_late(self, batch: Batch, group: Hashable) -> None:
        """Fail the requests of a batch that cannot be answered in time, before it runs."""
        late = self.admission.pop_late(batch.requests, group)
        for request in late:
            if request.fail(DeadlineExceededError(DROPPED_BEFORE_RUN)):
                self._metrics.dropped_requests.inc(request.count)
        batch.expired.extend(late)
        for request in late:
            batch.level_rows[request.priority] -= request.rows

    def _observe_answers(self, expired: Sequence[Request], requests: Sequence[Request]) -> None:
        """Learn how many requests that have just been answered are in time."""
        met, missed = self.admission.observe_answers(expired, requests)
        if self.policy.latency_objective is not None:
            self._metrics.record_objective(met, missed)

    def check_runs(self) -> bool:
        """Act on the runs that take too long; return whether there are any runs.

        A request that has waited for longer than the queue policies allow is rejected. A run whose
        requests have all exceeded their deadlines is terminated, as is one longer than
        `max_run_seconds`. A run of an instance that takes much longer than predicted gives its slot
        of the device up. A run that does not return from a device that is lost is abandoned. The
        watchdog calls this now and then.
        """
        for request in self.queue.remove_rejectable():
            request.fail(DeadlineExceededError(EXPIRED_IN_QUEUE))
        if not self._active_batches:
            return False
        now = self._clock()
        limit = self.policy.max_run_seconds
        batches = list(self._active_batches)
        lost = self._scheduler.lost_devices
        for batch in batches:
            if lost and batch.turn is not None and batch.turn.device in lost:
                self._leave_lost_device(batch, now, lost[batch.turn.device])
                continue
            seconds = now - batch.run_started
            if seconds < LONG_RUN_SECONDS:
                continue
            for request in batch.requests:
                if request.deadline <= now:
                    request.cancel(DeadlineExceededError(EXPIRED_IN_RUN))
            if limit and seconds > limit and not batch.interrupted:
                log.warning(
                    "%s: run terminated: it has taken %.1f s (expected at most %g s)",
                    *(self.name, seconds, limit),
                )
                for request in batch.requests:  # at once: a single node cannot be terminated
                    request.cancel(RunTooLongError(limit))
                batch.interrupt()
            if batch.turn is not None and seconds > LONG_RUN_RATIO * batch.predicted_seconds:
                self._scheduler.give_up_slot(batch.turn, now)
                if seconds > OVERDUE_SECONDS and batch not in self._overdue_batches:
                    self._report_overdue(batch, seconds)
                if seconds > SUSPECT_SECONDS and batch.turn.device != CPU:
                    self._scheduler.check_device(batch.turn.device)
        return True

    def tune(self) -> None:
        """Adjust the maximum batch size and the choice of thread to the current costs."""
        if self._memory_limit is not None:
            self._apply_memory_limit(self._memory_limit)
        elif self.policy.latency_objective is not None or self._max_run_seconds != math.inf:
            self._set_max_batch_rows(self.cost_model.batch_sizes[-1])
        self._inline.update()

    def _limit_runs(self, seconds: float) -> None:
        """Make batches small enough that a run takes no longer: another model waits for its end."""
        if seconds != self._max_run_seconds:
            self._max_run_seconds = seconds
            self._set_max_batch_rows(self.cost_model.batch_sizes[-1])
            if self._memory_limit is not None:
                self._apply_memory_limit(self._memory_limit)

    def record_out_of_memory(self, rows: int) -> None:
        """Make batches smaller for a while: a run of `rows` has found too little memory."""
        self._metrics.out_of_memory_runs.inc()
        if self._memory_limit is None:
            self._memory_limit = MemoryLimit(self.cost_model.batch_sizes)
        if self._memory_limit.lower(rows, self._clock()):
            log.warning(
                "%s: out of memory in a run of %d rows: batches have at most %d rows for a while",
                *(self.name, rows, self._memory_limit.rows),
            )
        self._apply_memory_limit(self._memory_limit)

    def close(self) -> None:
        """Reject further requests; admitted requests are still served."""
        self.queue.close()

    def join(self, end: float | None = None) -> bool:
        """Wait until a closed batcher has drained its queue and no run goes on, inline ones too.

        Returns False if that was not so at `end`, a time of the monotonic clock, or the instances
        never started.
        """
        end = math.inf if end is None else end
        # An inline run that is interrupted starts a thread for its requests.
        return (
            self._join_threads(end)
            and self._inline.wait_until_idle(end)
            and (self._join_threads(end))
        )

    def cancel_all(self, error: NeuronaError) -> int:
        """Finish all waiting and running requests with `error`, and return their number."""
        self._stop_error = error  # for requests on their way from the queue to a run
        waiting = self.queue.clear()
        running = [request for batch in list(self._active_batches) for request in batch.requests]
        for slots in list(self._slots):
            running.extend(slots.requests)
        unfinished = [
            request for request in dict.fromkeys([*waiting, *running]) if not request.finished
        ]
        for request in unfinished:
            request.cancel(error)
        return sum([request.count for request in unfinished])

    def stop_watching(self) -> None:
        """Remove the model from the watchdog, after its last run."""
        self._watchdog.remove(self)
        self._scheduler.forget(self._runs)

    def _start_instance(self) -> None:
        # A daemon: a run that never returns must not keep the process from ending.
        name = f"{self.name}#{len(self._threads)}"
        thread = threading.Thread(target=self.serve, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _join_threads(self, end: float) -> bool:
        for thread in list(self._threads):
            while thread.is_alive() and thread in self._threads:  # or it is abandoned
                if (seconds := end - time.monotonic()) <= 0:
                    return False
                thread.join(min(seconds, JOIN_SECONDS))
        return bool(self._threads)

    def _report_overdue(self, batch: Batch, seconds: float) -> None:
        self._overdue_batches.add(batch)
        if batch not in self._active_batches:  # it has ended meanwhile
            self._overdue_batches.discard(batch)
        now = self._clock()
        if now - self._overdue_logged_at >= OVERDUE_LOG_SECONDS:
            self._overdue_logged_at = now
            log.warning(
                "%s: run overdue: it has taken %.1f s (predicted %.3g s), and no longer counts for "
                "the slots of the device",
                *(self.name, seconds, batch.predicted_seconds),
            )

    def _apply_memory_limit(self, limit: MemoryLimit) -> None:
        rows = limit.update(self._clock())
        self._set_max_batch_rows(rows)

    def _set_max_batch_rows(self, rows: int) -> None:
        """Set the size of the largest batch to `rows` or, if objectives require it, to less."""
        if self._max_run_seconds != math.inf:
            rows = min(rows, self.cost_model.rows_within(self._max_run_seconds))
        self._max_request_rows = min(rows, self.policy.max_rows)
        if self.policy.latency_objective is not None:
            rows = min(rows, self._next_batch_size())
        self.queue.max_batch_rows = rows

    def _fail_displaced(self, displaced: Sequence[Request]) -> None:
        """Finish requests that gave their place in the queue to more urgent ones."""
        for request in displaced:
            retry_after = self.admission.retry_after(request)
            if request.fail(QueueFullError(DISPLACED_FROM_QUEUE, retry_after)):
                self._metrics.displaced_requests.inc(request.count)

    def _next_batch_size(self) -> int:
        """Return the best batch size or, now and then while batches are full, the next larger one.

        A batch size that was slow when the machine was busy may not be slow any more.
        """
        best = self.cost_model.best_batch_size(self.policy.latency_objective)
        if self._full_batches >= FULL_BATCHES_TO_EXPLORE:
            self._full_batches = 0
            return next((size for size in self.cost_model.batch_sizes if size > best), best)
        return best

    def _run_or_halve(self, batch: Batch, requests: Sequence[Request], new_run: NewRun) -> None:
        """Run some requests of a batch and, if the run fails, its halves.

        So the error reaches only the requests that make a run fail.
        """
        now = self._clock()
        requests = self._unfinished(batch, requests, now)
        if not requests:
            return
        if batch.interrupted:
            self._run_again(batch, requests)
            return
        running = None
        halves: list[Sequence[Request]] = []
        try:
            run = new_run()
            running = RunningBatch(requests, run)
            batch.start_run(running, now)
            outputs = self._run(batch, requests, run)
        except InvalidValueError as error:
            halves = self._reject_invalid(batch, requests, error)
        except Exception as error:
            if batch.abandoned:  # its requests run elsewhere, and this is no second loss
                return
            if self._tracer is not None:
                self._tracer.record_failed_run(requests, now, error)
            terminated = running is not None and running.terminated
            halves = self._halve_after(error, batch, requests, terminated=terminated)
        else:
            ended = requests if batch.slots is None else batch.slots.pop_ended()
            self._deliver(batch, ended, outputs)
            if ended and batch.slots is not None and self.admission.is_learning:
                self._observe_answers((), ended)
        batch.finish_run()
        for half in halves:
            self._run_or_halve(batch, half, new_run)

    def _halve_after(
        self, error: Exception, batch: Batch, requests: Sequence[Request], *, terminated: bool
    ) -> list[Sequence[Request]]:
        """Return what of the requests to run in place of a run that has ended with `error`."""
        if isinstance(error, DeviceLostError):
            self._scheduler.mark_lost(error.device, error.reason)
            batch.interrupt()  # what is left of it does not run on this device either
            self._run_elsewhere(batch, requests, error)
        elif isinstance(error, DeviceMemoryError | MemoryError):
            return self._halve_for_memory(batch, requests, error)
        elif terminated:
            self._metrics.terminated_runs.inc()
            self._run_again(batch, requests)
        elif halves := batch.halve(requests):
            return halves
        else:
            self._fail_run(requests[0], error)
        return []

    def _halve_for_memory(
        self, batch: Batch, requests: Sequence[Request], error: Exception
    ) -> list[Sequence[Request]]:
        """Free memory, and return what to run in place of a run that has found too little.

        That is two halves or, for a single row, once more the same: what other runs held may be
        free by then. If it fails again, its request gets the error.
        """
        rows = sum([request.rows for request in requests])
        self.record_out_of_memory(self.padding.padded_rows(rows) if self._batched else rows)
        self.free_memory()
        request = requests[0]
        if halves := batch.halve(requests) or (self._batched and batch.halve_rows(request)):
            return halves
        failures = batch.note_device_failures()
        if failures.repeated is not request:
            failures.repeated = request
            return [[request]]
        self.failure_log.record("a request ran out of memory", error, request.log_fields)
        if isinstance(error, DeviceMemoryError):
            request.fail(error)
        else:
            request.fail(DeviceMemoryError("the server"))
        return []

    def _deliver(
        self, batch: Batch, requests: Sequence[Request], outputs: Sequence[Outputs]
    ) -> None:
        """Finish each request with its outputs, or with the error of outputs that are no answer."""
        check = self.answer_bounds
        if check is not None and outputs and _accepts_all(check, outputs):
            check = None
        for request, own_outputs in zip(requests, outputs, strict=True):
            if check is None:
                request.succeed(own_outputs)
            else:
                _deliver_checked(batch, request, own_outputs, check)

    def _unfinished(
        self, batch: Batch, requests: Sequence[Request], now: float
    ) -> Sequence[Request]:
        """Fail the requests that must not run any more, and return those to run."""
        for request in requests:
            if self._stop_error is not None:
                request.fail(self._stop_error)
            elif request.deadline <= now:
                if batch.slots is None:
                    request.fail(DeadlineExceededError(EXPIRED_IN_QUEUE))
                elif request.fail(DeadlineExceededError(EXPIRED_IN_RUN)):
                    self._observe_answers([request], ())
        return [request for request in requests if not request.finished]

    def _reject_invalid(
        self, batch: Batch, requests: Sequence[Request], error: InvalidValueError
    ) -> list[Sequence[Request]]:
        """Fail the requests with values that the model does not take.

        Returns the others, if there are any, to run together; two halves if `error` is of none.
        """
        valid: list[Request] = []
        unchecked = [*requests]
        for request in unchecked:
            try:
                if self.check_inputs is not None:
                    self.check_inputs(request.inputs, request.first_row)
            except InvalidValueError as own_error:
                if halves := batch.halve([request]):
                    unchecked.extend([request for half in halves for request in half])
                else:
                    request.fail(own_error)
            else:
                valid.append(request)
        if len(valid) == len(requests) and valid == [*requests]:  # they would run for ever
            if halves := batch.halve(requests):
                return halves
            requests[0].fail(error)
            return []
        return [valid] if valid else []

    def _fail_run(self, request: Request, error: Exception) -> None:
        """Fail the only request of a run that failed."""
        if isinstance(error, InvalidArgumentError):  # what it has sent does not suit the model
            request.fail(error)
            return
        self.failure_log.record("the run of a request failed", error, request.log_fields)
        request.fail(ModelFailedError())

    def _run_elsewhere(
        self, batch: Batch, requests: Sequence[Request], error: DeviceLostError
    ) -> None:
        """Run requests of a batch whose device was lost on another device, if there is one.

        That device may be lost, too, since the inputs or the model may be to blame. A third one is
        not tried, and the error is one after which clients do not retry.
        """
        failures = batch.note_device_failures()
        failures.losses += 1
        if self._scheduler.lost_error(self._runs) is None and failures.losses == 1:
            self._run_again(batch, requests)
            return
        for request in requests:
            if failures.losses == 1:
                request.fail(error)
            elif request.fail(ModelFailedError()):
                self.failure_log.record(
                    "two devices were lost while they ran a request", error, request.log_fields
                )

    def _leave_lost_device(self, batch: Batch, now: float, reason: str) -> None:
        """Interrupt a batch whose device is lost, and abandon it if its run does not return."""
        if batch.turn is None or batch.abandoned:
            return
        failures = batch.note_device_failures()
        if failures.lost_at == math.inf:
            failures.lost_at = now
            batch.interrupt()
        elif now - failures.lost_at >= ABANDON_SECONDS:
            try:
                self._active_batches.remove(batch)
            except KeyError:  # it has just ended: its thread goes on
                return
            batch.abandoned = True
            log.error(
                "%s: run abandoned: it does not return from %s, which is lost",
                *(self.name, batch.turn.device),
            )
            self._overdue_batches.discard(batch)
            if (estimate := getattr(batch, "estimate", None)) is not None:
                self.admission.finish_batch(estimate)
            if (thread := getattr(batch, "thread", None)) in self._threads:
                self._threads.remove(thread)
                self._start_instance()
            error = DeviceLostError(batch.turn.device, reason)
            self._run_elsewhere(batch, batch.requests, error)
            if (slots := batch.instance_slots) is not None:
                self._slots.remove(slots)  # or they would be taken for those of an idle instance
                others = [one for one in slots.requests if one not in batch.requests]
                self._run_elsewhere(Batch(others), others, error)

    def _fail_waiting(self, error: NeuronaError) -> None:
        for request in self.queue.clear():
            request.fail(error)

    def _run_again(self, batch: Batch, requests: Sequence[Request]) -> None:
        """Have an instance run the unfinished requests of a batch that was interrupted."""
        unfinished = [request for request in requests if not request.finished]
        if batch.slots is not None:
            batch.slots.remove(requests)
        for part in _limit_rows(unfinished, self.queue.max_batch_rows):  # slots have many rows
            again = Batch(part, is_rerun=True)
            if batch.device_failures is not None:
                again.device_failures = DeviceFailures(losses=batch.device_failures.losses)
            self.queue.put_back(again)
        if unfinished and self.queue.closed and self._threads:  # the instances may have ended
            self._start_instance()

    def _run(self, batch: Batch, requests: Sequence[Request], run: Run) -> Sequence[Outputs]:
        """Return the outputs of each request; in slots, of each that has ended.

        Raises BatchError, InvalidValueError and what the model raises.
        """
        batch.estimate.runs += 1
        rows = sum([request.rows for request in requests])
        padded = self.padding.padded_rows(rows) if self._batched else rows
        joiner = batch.slots or self.joiner
        group = joiner.group(requests)
        predicted = self.cost_model.predict(padded, group)
        batch_started = self._clock()
        inputs = joiner.join(requests, padded, run if self.joins_in_place else None)
        if self.check_inputs is not None:
            self.check_inputs(inputs, requests[0].first_row)
        if self.ranking is not None and (count := self.ranking.count_for(requests, padded)):
            cast(RankingRun, run).rank(count)
        run_started = self._clock()
        run_outputs = run(inputs)
        run_finished = self._clock()
        batch.estimate.record_run(padded, run_started, run_finished)
        outputs = joiner.split(run_outputs, requests, padded) if self._batched else [run_outputs]
        batch_finished = self._clock()
        if self._tracer is not None:
            times = RunTimes(batch_started, run_started, run_finished, batch_finished)
            self._tracer.record_run(requests, rows, padded, times)
        seconds = run_finished - batch_started
        phases = (
            run_started - batch_started,
            run_finished - run_started,
            batch_finished - run_finished,
        )
        count = sum([request.count for request in requests])
        self._metrics.record_run(rows, count, padded - rows, phases, predicted)
        self.cost_model.observe(padded, seconds, group, run_finished)
        self.size_choice.observe_run(padded, seconds, group)
        # One is full if the next request does not fit.
        self._full_batches += 4 * rows >= 3 * self.queue.max_batch_rows
        self._inline.observe(seconds)
        self.tune()
        return outputs


def _limit_rows(requests: Sequence[Request], max_rows: int) -> list[list[Request]]:
    """Return the requests in as many parts as needed, each with at most so many rows."""
    parts: list[list[Request]] = []
    rows = 0
    for request in requests:
        rows += request.rows
        if not parts or rows > max_rows:
            parts.append([])
            rows = request.rows
        parts[-1].append(request)
    return parts


def _accepts_all(check: AnswerCheck, outputs: Sequence[Outputs]) -> bool:
    """Return whether the outputs are answers, as far as one look at those of a run can show it."""
    first, last = outputs[0], outputs[-1]
    if not isinstance(first, RowSlice):
        return check.accepts(first)
    # Requests of which the run had several kinds have outputs of their own.
    return isinstance(last, RowSlice) and (
        first.batch is last.batch and check.accepts(first.batch.outputs)
    )


def _deliver_checked(batch: Batch, request: Request, outputs: Outputs, check: AnswerCheck) -> None:
    """Finish a request, or each of those that were coalesced, with its outputs or their error."""
    if check.accepts(outputs):
        request.succeed(outputs)
    elif isinstance(outputs, RowSlice) and (halves := batch.halve([request])):
        start = outputs.start
        for (half,) in halves:
            _deliver_checked(batch, half, RowSlice(outputs.batch, start, half.rows), check)
            start += half.rows
    else:
        try:
            check.check(outputs, request.first_row)
        except InvalidValueError as error:
            request.fail(error)
