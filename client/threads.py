"""Conversations in threads: each waits in its caller's."""

import _thread
import threading
from collections.abc import Generator
from typing import TypeVar

from neurona_client.endpoints import Outcome
from neurona_client.errors import NeuronaError
from neurona_client.gate import Gate
from neurona_client.steps import Deadline, Step
from neurona_client.streams import Pending, Stream

T = TypeVar("T")


class Reply:
    """What one thread waits for. A bare lock wakes it with the fewest steps."""

    __slots__ = ("_lock", "outcome")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def __call__(self, outcome: Outcome) -> None:
        self.outcome: Outcome = outcome
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Whether there is an outcome."""
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=min(max(timeout, 0.0), threading.TIMEOUT_MAX))


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
        stream.put(pending)
        if reply.wait(deadline.timeout):
            return reply.outcome
        raise deadline.error()
    finally:
        pending.abandoned = True  # which Ctrl-C and the deadline make it
        gate.leave(len(message))


def _done(step: Step) -> Outcome:
    reply = Reply()
    give_up = step.start(reply)
    try:
        if reply.wait(step.timeout):
            return reply.outcome
    except BaseException:  # Ctrl-C
        give_up()
        raise
    give_up()
    return step.expired()
