"""Runs operations in an event loop: each waits in the coroutine of its caller."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from neurona_client.calls.backpressure import CapacityLimiter
from neurona_client.calls.steps import Deadline, Operation, Step
from neurona_client.errors import ClosedError, DeadlineExceededError, NeuronaError
from neurona_client.transport.green_threads import prepare_green_threads
from neurona_client.transport.grpc_calls import Outcome
from neurona_client.transport.stream import PendingRequest, Stream

T = TypeVar("T")


class CoroutineReply:
    """The outcome that one coroutine waits for."""

    __slots__ = ("_resolve", "future")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, resolve: Callable[["CoroutineReply", Outcome], None]
    ) -> None:
        self._resolve = resolve
        self.future: asyncio.Future[Outcome] = loop.create_future()

    def __call__(self, outcome: Outcome) -> None:
        """Deliver the outcome, from any thread."""
        self._resolve(self, outcome)


class LoopDriver:
    """Runs the operations of one client in the event loop of its first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outcomes: deque[tuple[CoroutineReply, Outcome]] = deque()
        self._is_wake_up_scheduled = False
        """The loop is about to resolve `_outcomes`: each wake-up from outside is a system call."""

    def deliver(self, _: Stream, deliveries: Any) -> None:
        """Deliver outcomes of a stream, from any thread; see `Deliver`."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(_resolve_deliveries, deliveries)

    def yield_then(self, write: Callable[[], None]) -> None:
        """Let the coroutines that can run submit their requests first; see `ScheduleWrite`."""
        if self._loop is not None:
            self._loop.call_soon(write)

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation in this coroutine and return its result."""
        prepare_green_threads()  # perhaps gevent came after the client
        try:
            loop = self._running_loop()
            step = next(operation)
            while True:
                outcome = await self._perform(step, loop)
                if isinstance(outcome, NeuronaError):
                    step = operation.throw(outcome)
                else:
                    step = operation.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            operation.close()

    async def send_streamed(
        self, capacity: CapacityLimiter, stream: Stream, message: bytes, deadline: Deadline
    ) -> Outcome:
        """Send a request on a stream without an operation, and release its capacity at the end.

        Raises:
            DeadlineExceededError: there was no outcome before the deadline.
        """
        pending = timer = remaining = None
        try:
            loop = self._running_loop()
            reply = CoroutineReply(loop, self._resolve_later)
            pending = PendingRequest(message, reply)
            remaining = deadline.remaining()
            if remaining is not None:
                timer = loop.call_later(remaining, _expire, reply, deadline)
            stream.submit(pending)
            return await reply.future
        except DeadlineExceededError:
            if timer is not None:
                stream.record_timeout(remaining or 0.0)
            raise
        finally:
            if pending is not None:
                pending.abandoned = True  # has an effect if it was cancelled or is late
            if timer is not None:
                timer.cancel()
            capacity.release(len(message))

    async def _perform(self, step: Step, loop: asyncio.AbstractEventLoop) -> Outcome:
        reply = CoroutineReply(loop, self._resolve_later)
        give_up = step.start(reply)
        try:
            if step.timeout is None:
                return await reply.future
            async with asyncio.timeout(step.timeout):
                return await reply.future
        except TimeoutError:
            give_up()
            return step.timeout_outcome()
        except BaseException:  # the coroutine is cancelled
            give_up()
            raise

    def _resolve_later(self, reply: CoroutineReply, outcome: Outcome) -> None:
        self._outcomes.append((reply, outcome))
        if not self._is_wake_up_scheduled and self._loop is not None:
            self._is_wake_up_scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._resolve_outcomes)

    def _resolve_outcomes(self) -> None:
        # Before the queue is read, so that an outcome that arrives meanwhile is read now or then.
        self._is_wake_up_scheduled = False
        while self._outcomes:
            reply, outcome = self._outcomes.popleft()
            if not reply.future.done():
                reply.future.set_result(outcome)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._bind(loop)
        return loop

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise ClosedError(
                "client belongs to another event loop, that of its first call (expected one client "
                "for each loop)"
            )
        self._loop = loop


def _resolve_deliveries(deliveries: Sequence[tuple[CoroutineReply, Outcome]]) -> None:
    for reply, outcome in deliveries:
        if not reply.future.done():
            reply.future.set_result(outcome)


def _expire(reply: CoroutineReply, deadline: Deadline) -> None:
    if not reply.future.done():
        reply.future.set_exception(deadline.exceeded_error())
