"""Conversations in an event loop: each waits in its coroutine."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from neurona_client.calls.backpressure import Gate
from neurona_client.calls.steps import Deadline, Step
from neurona_client.errors import ClosedError, NeuronaError
from neurona_client.transport.grpc_calls import Outcome
from neurona_client.transport.stream import Pending, Stream

T = TypeVar("T")


class Reply:
    """What one coroutine waits for."""

    __slots__ = ("_resolve", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop, resolve: "Resolve") -> None:
        self._resolve = resolve
        self.future: asyncio.Future[Outcome] = loop.create_future()

    def __call__(self, outcome: Outcome) -> None:
        """From any thread."""
        self._resolve(self, outcome)


Resolve = Callable[[Reply, Outcome], None]


class Loop:
    """The event loop of a client's first call, which is that of all."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._came: deque[tuple[Reply, Outcome]] = deque()
        self._is_told = False
        """It will look at what came: each word to a loop from outside is a system call."""

    def deliver(self, _: Stream, told: Any) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(_resolve, told)

    def soon(self, begin: Callable[[], None]) -> None:
        """When the coroutines that can run have run."""
        if self._loop is not None:
            self._loop.call_soon(begin)

    async def run(self, conversation: Generator[Step, bytes, T]) -> T:
        try:
            loop = self._running()
            step = next(conversation)
            while True:
                outcome = await self._done(step, loop)
                if isinstance(outcome, NeuronaError):
                    step = conversation.throw(outcome)
                else:
                    step = conversation.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()

    async def together(
        self, gate: Gate, stream: Stream, message: bytes, deadline: Deadline
    ) -> Outcome:
        """The short way of a request that the gate has let in. Raises DeadlineError."""
        pending = timer = None
        try:
            loop = self._running()
            reply = Reply(loop, self._resolve)
            pending = Pending(message, reply)
            left = deadline.left()
            if left is not None:
                timer = loop.call_later(left, _expire, reply, deadline)
            stream.put(pending)
            return await reply.future
        finally:
            if pending is not None:
                pending.abandoned = True  # which cancelling and the deadline make it
            if timer is not None:
                timer.cancel()
            gate.leave(len(message))

    async def _done(self, step: Step, loop: asyncio.AbstractEventLoop) -> Outcome:
        reply = Reply(loop, self._resolve)
        give_up = step.start(reply)
        try:
            if step.timeout is None:
                return await reply.future
            async with asyncio.timeout(step.timeout):
                return await reply.future
        except TimeoutError:
            give_up()
            return step.expired()
        except BaseException:  # the coroutine is cancelled
            give_up()
            raise

    def _resolve(self, reply: Reply, outcome: Outcome) -> None:
        self._came.append((reply, outcome))
        if not self._is_told and self._loop is not None:
            self._is_told = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._resolve_all)

    def _resolve_all(self) -> None:
        self._is_told = False  # before it looks, so that what comes meanwhile is seen now or then
        while self._came:
            reply, outcome = self._came.popleft()
            if not reply.future.done():
                reply.future.set_result(outcome)

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._belong_to(loop)
        return loop

    def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise ClosedError(
                "the client belongs to another event loop, that of its first call: make one for "
                "each loop"
            )
        self._loop = loop


def _resolve(told: Sequence[tuple[Reply, Outcome]]) -> None:
    for reply, outcome in told:
        if not reply.future.done():
            reply.future.set_result(outcome)


def _expire(reply: Reply, deadline: Deadline) -> None:
    if not reply.future.done():
        reply.future.set_exception(deadline.error())
