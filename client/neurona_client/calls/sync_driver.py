"""Conversations in threads: each waits in its caller's."""

import _thread
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from neurona_client.calls.backpressure import Gate
from neurona_client.calls.steps import Deadline, Step
from neurona_client.errors import NeuronaError
from neurona_client.transport.grpc_calls import Outcome
from neurona_client.transport.stream import Pending, Stream, Together

T = TypeVar("T")


class Reply:
    """What one thread waits for. A bare lock wakes it with the fewest steps."""

    __slots__ = ("_lock", "_next", "_stream", "outcome")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()
        self._next: Reply | None = None  # who is woken by this one
        self._stream: Stream | None = None  # of the last one, that goes on then

    def __call__(self, outcome: Outcome) -> None:
        self.outcome: Outcome = outcome
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Whether there is an outcome."""
        if timeout is None:
            self._lock.acquire()
        elif not self._lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX)):
            return False
        self.pass_on()
        return True

    def pass_on(self) -> None:
        """Wakes whoever is next. Twice does no harm."""
        if self._next is not None:
            try:  # noqa: SIM105
                self._next._lock.release()
            except RuntimeError:  # it has been woken, and did not run yet
                pass
            self._next = None
        elif self._stream is not None:
            self._stream.let_go()
            self._stream = None

    @staticmethod
    def deliver(stream: Stream, told: Any) -> None:
        """Each thread wakes the next one, and the last has the stream go on. So they do not all
        wake up to wait for the interpreter, and what they ask next travels together: a thread
        runs until it waits for its next answer, and then the one that it has woken does."""
        last = told[0][0]
        for reply, outcome in told:
            reply.outcome = outcome
            last._next = reply
            last = reply
        told[0][0]._next = told[1][0] if len(told) > 1 else None
        last._stream = stream
        stream.held += 1
        told[0][0]._lock.release()


def soon(begin: Callable[[], None]) -> None:
    """Those that are runnable ask first, so that their requests go along."""
    try:
        time.sleep(0)
    finally:
        begin()


def run(conversation: Generator[Step, bytes, T]) -> T:
    try:
        step = next(conversation)
        while True:
            outcome = _done(step)
            if isinstance(outcome, NeuronaError):
                step = conversation.throw(outcome)
            else:
                step = conversation.send(outcome)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        conversation.close()


def together(gate: Gate, stream: Stream, message: bytes, deadline: Deadline) -> Outcome:
    """The short way of a request that the gate has let in. Raises DeadlineError."""
    reply = Reply()
    pending = Pending(message, reply)
    try:
        left = deadline.left()
        try:
            stream.put(pending)
            if reply.wait(left):
                return reply.outcome
        except BaseException:  # Ctrl-C, perhaps in the middle of waking others
            if stream.give_up(pending):
                reply.pass_on()
            stream.let_go(entirely=True)
            raise
        if stream.give_up(pending):
            reply.pass_on()
            return reply.outcome
        raise deadline.error()
    finally:
        gate.leave(len(message))


def _done(step: Step) -> Outcome:
    reply = Reply()
    try:
        give_up = step.start(reply)
    except BaseException:  # Ctrl-C
        if isinstance(step, Together) and step.give_up():
            reply.pass_on()
        raise
    try:
        if reply.wait(step.timeout):
            return reply.outcome
    except BaseException:  # Ctrl-C
        if give_up():
            reply.pass_on()
        raise
    if give_up():
        reply.pass_on()
        return reply.outcome
    return step.expired()
